"""Weights: a row of weight k is k rows, in every estimate, interval and diagnostic; errors against a known variance."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from explain import ExplainError, GapExplainer, ModelGapExplainer, gap_of_gaps
from explain.functional import Rows, covariance, density_ratio, effective, overlap, quantile, quantile_bins
from tests.explain.test_gap_explainer import make

# Learners without a penalty, for which repeating a row and weighing it are the same to rounding.
EXACT = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cholesky"), LinearRegression()
OPTIONS = {"learners": EXACT, "folds": 3, "cluster": "id", "min_shift_z": 0.0}


def table(domain, rows=500):
    """Rows with weights of 1, 2, 2 and 3 in equal parts, and the number of the row as its cluster."""
    frame = make(rows, domain, 1)
    weight = np.random.default_rng(5).permutation(np.tile([1, 2, 3, 2], rows // 4))
    red = (frame.colour == "red").astype(int)
    return frame.assign(weight=weight, id=np.arange(rows) + 1000 * domain, colour=red, other=frame.prediction**2)


def repeated(frame):
    return frame.loc[frame.index.repeat(frame.weight)].reset_index(drop=True)


def numbers(report):
    """Every number of a report but counts of rows, by its place."""

    def flat(value, path):
        if isinstance(value, dict):
            return [pair for key, inner in value.items() for pair in flat(inner, (*path, key))]
        if isinstance(value, list):
            return [pair for place, inner in enumerate(value) for pair in flat(inner, (*path, place))]
        return [(path, value)]

    found = dict(flat(json.loads(report.to_json()), ()))
    left = {"rows", "status"}  # few rows are few rows, whatever they weigh
    return {path: value for path, value in found.items() if not left & set(path) and not isinstance(value, str)}


def agree(one, other):
    found, expected = numbers(one), numbers(other)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path] == pytest.approx(value, abs=1e-9), path


@pytest.mark.parametrize("loss", ["zero_one", "brier"])
@pytest.mark.parametrize("interval", ["wald", "fieller"])
def test_a_row_of_weight_k_is_k_rows(loss, interval):
    frames = table(0), table(1)
    explainer = GapExplainer(
        ["w"], {"a": "a", "b": "b", "c": "colour"}, loss=loss, n_bins=8, interval=interval, **OPTIONS
    )
    plain = explainer.fit(*map(repeated, frames)).report_
    weighted = explainer.set_params(weight="weight").fit(*frames).report_
    agree(weighted, plain)
    unweighted = explainer.set_params(weight=None).fit(*frames).report_
    assert abs(weighted.totals["gap"] - unweighted.totals["gap"]) > 1e-3
    scaled = [frame.assign(weight=frame.weight * 7.5) for frame in frames]  # a scale says nothing
    agree(explainer.set_params(weight="weight").fit(*scaled).report_, weighted)


def test_a_row_of_weight_k_is_k_rows_in_losses_and_in_pairs():
    frames = table(0), table(1)
    groups = {"a": "a", "b": "b"}
    models = {"models": ("prediction", "other"), "loss": "brier", **OPTIONS}
    agree(
        gap_of_gaps(*frames, ["w"], groups, weight="weight", n_bins=8, **models),
        gap_of_gaps(*map(repeated, frames), ["w"], groups, n_bins=8, **models),
    )
    agree(
        ModelGapExplainer(groups, weight="weight", **models).fit(frames[0]).report_,
        ModelGapExplainer(groups, **models).fit(repeated(frames[0])).report_,
    )


@pytest.mark.parametrize("learners", ["linear", "hist_gb", "auto"])
def test_every_learner_takes_weights(learners):
    """The target's rows with a large b weigh nothing much: the weighted gap is that of the other rows."""
    source, target = make(400, 0, 1), make(400, 1, 1)
    weight = np.where(target.b > 0, 1e-6, 1.0)
    explainer = GapExplainer(["w"], {"b": "b"}, weight="weight", learners=learners, folds=2, n_bins=4)
    report = explainer.fit(source.assign(weight=1.0), target.assign(weight=weight)).report_
    wrong = (target.prediction > 0.5) != target.label
    assert report.totals["target"] == pytest.approx(wrong[target.b <= 0].mean(), abs=1e-4)
    assert sum(term.value for term in report.aggregate) == pytest.approx(report.totals["gap"], abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 0.0}, "column 'weight' of the source has the weight 0, but weights must be above 0"),
        ({"weight": np.nan}, "column 'weight' of the source, the weight, has 500 missing"),
        ({"weight": "1"}, "but numbers are needed"),
    ],
)
def test_refused_weights(change, message):
    frames = [table(side).assign(**change) for side in (0, 1)]
    with pytest.raises(ExplainError, match=message):
        GapExplainer(["w"], {"a": "a"}, weight="weight", learners="linear", folds=3).fit(*frames)


def test_learners_that_cannot_weigh_are_refused():
    pair = KNeighborsClassifier(), KNeighborsRegressor()
    with pytest.raises(ExplainError, match="takes no sample_weight"):
        GapExplainer(["w"], {"a": "a"}, weight="weight", learners=pair, folds=3).fit(table(0), table(1))


def test_weights_in_the_formulas():
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 5, 60)
    values = rng.normal(size=60)
    many = np.repeat(values, weight)
    for q in (0.1, 0.5, 0.99):
        assert quantile(values, q, weight.astype(float)) == quantile(many, q)
        assert quantile(many, q) == np.quantile(many, q, method="inverted_cdf")
    np.testing.assert_allclose(quantile_bins(values, 6, weight.astype(float)).centres, quantile_bins(many, 6).centres)
    chance, ones = rng.uniform(0.2, 0.8, 60), np.ones(60)
    ratio = density_ratio(chance, (60, 60), weight.astype(float))
    np.testing.assert_allclose(np.repeat(ratio, weight), density_ratio(np.repeat(chance, weight), (60, 60)))
    found = overlap(ratio, chance, values, weights=(weight, ones))
    expected = overlap(np.repeat(ratio, weight), np.repeat(chance, weight), values)
    assert found.auc == pytest.approx(expected.auc)
    assert found.effective == pytest.approx((ratio * weight).sum() ** 2 / ((ratio * weight) ** 2).sum())
    assert effective(weight.astype(float)) == pytest.approx(weight.sum() ** 2 / (weight**2).sum())


def test_the_variance_of_a_weighted_clustered_mean_is_unbiased():
    """CR2: with values of variance 1 over weight, independent in clusters of very unequal size, no bias remains."""
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(6), [1, 2, 3, 8, 20, 30])
    weight = rng.uniform(0.5, 3, len(clusters))
    share = weight / weight.sum()
    truth = float((share**2 / weight).sum())
    found = [
        covariance([rng.normal(size=(1, len(weight))) / weight**0.5], [clusters], [weight])[0, 0] for _ in range(4000)
    ]
    assert np.mean(found) == pytest.approx(truth, rel=0.05)
    draws = rng.normal(size=(4000, len(weight))) / weight**0.5
    plain = [(np.bincount(clusters, share * (row - row @ share)) ** 2).sum() for row in draws]
    assert np.mean(plain) < 0.75 * truth  # what the correction mends
    with pytest.raises(ValueError, match="single unit"):
        covariance(Rows(np.zeros((1, 4)), np.zeros((1, 4))), (np.zeros(4, int), np.arange(4)))


def test_a_pandas_index_does_not_matter():
    frames = [table(side) for side in (0, 1)]
    moved = [frame.set_axis(pd.Index(np.arange(len(frame)) % 7)) for frame in frames]
    explainer = GapExplainer(["w"], {"a": "a"}, weight="weight", **OPTIONS)
    assert explainer.fit(*frames).report_.to_json() == explainer.fit(*moved).report_.to_json()
