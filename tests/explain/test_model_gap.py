"""Two models on the same rows, and the gap of their gaps."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from explain import ExplainError, GapExplainer, ModelGapExplainer, gap_of_gaps

FAST = {"learners": "linear", "folds": 3}


def make(rows, domain=0, seed=0):
    """The second model has lost the weight of b; in the target b is twice as wide."""
    rng = np.random.default_rng([seed, domain])
    w, a, b = rng.normal(size=(3, rows))
    b = b * (1 + domain)
    y = (rng.random(rows) < expit(a + 2 * b)).astype(int)
    frame = pd.DataFrame({"w": w, "a": a, "b": b, "label": y, "first": expit(a + 2 * b), "second": expit(a)})
    losses = {name: (frame[name] - y) ** 2 for name in ("first", "second")}
    return frame.assign(**{f"{name}_loss": loss for name, loss in losses.items()})


def test_the_lost_input_is_named():
    frame = make(1500)
    report = ModelGapExplainer({"a": "a", "b": "b"}, loss="brier", **FAST).fit(frame).report_
    assert report.mode == "models"
    assert report.totals["gap"] == pytest.approx((frame.second_loss - frame.first_loss).mean())
    shares = {term.name: term for term in report.outcome}
    assert sum(term.value for term in report.outcome) == pytest.approx(1, abs=1e-10)
    assert shares["b"].value > 3 * abs(shares["a"].value)
    assert shares["b"].low > 0
    assert not report.aggregate
    assert not report.covariate


def test_values_are_differences_of_held_out_errors():
    """Exact on a discrete population: d depends on b alone, so v({b}) = 1 and v() = mean^2 / mean square."""
    rng = np.random.default_rng(1)
    b = rng.integers(0, 2, 6000)
    d = np.where(b == 1, 0.6, -0.1) + rng.normal(size=6000) * 0.1
    frame = pd.DataFrame({"a": rng.integers(0, 2, 6000), "b": b, "first": 0.0, "second": d})
    report = ModelGapExplainer({"a": "a", "b": "b"}, loss="given", **FAST).fit(frame).report_
    values = {value.subset: value.value for value in report.values}
    share = (0.5 * (0.6 - 0.1)) ** 2 / (0.5 * (0.36 + 0.01))
    assert values[()] == pytest.approx(share, abs=0.02)
    assert values[("a",)] == pytest.approx(share, abs=0.02)
    assert values[("b",)] == pytest.approx(1, abs=0.002)


def test_intervals_cover_the_share_of_a_linear_difference():
    """d = 1/2 + a + b/2 + noise: v() = 1/4, v({a}) = 5/4, v({b}) = 1/2 over 3/2."""
    truth = {(): 1 / 6, ("a",): 5 / 6, ("b",): 2 / 6}
    hits = dict.fromkeys(truth, 0)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a, b, noise = rng.normal(size=(3, 400))
        frame = pd.DataFrame({"a": a, "b": b, "first": 0.0, "second": 0.5 + a + 0.5 * b + noise})
        explainer = ModelGapExplainer({"a": "a", "b": "b"}, loss="given", learners="linear", folds=2)
        for value in explainer.fit(frame).report_.values:
            if value.subset in truth:
                hits[value.subset] += value.low <= truth[value.subset] <= value.high
    assert all(45 <= count <= 60 for count in hits.values()), hits  # 54 of 60 are expected


def test_equal_models_have_nothing_to_share_out():
    frame = make(600)
    explainer = ModelGapExplainer({"a": "a", "b": "b"}, models=("first", "first"), loss="brier", **FAST)
    report = explainer.fit(frame).report_
    assert report.totals["gap"] == 0
    assert {term.status for term in report.outcome} == {"no-shift"}


def test_order_of_rows_and_columns_does_not_matter():
    frame = make(600)
    explainer = ModelGapExplainer({"a": "a", "b": "b"}, loss="brier", **FAST)
    one = explainer.fit(frame).report_
    other = explainer.fit(frame.sample(frac=1, random_state=0)[frame.columns[::-1]]).report_
    assert one.to_json() == other.to_json()


def test_clusters_widen_the_intervals():
    frame = make(400).assign(prompt=np.arange(400))
    four = pd.concat([frame] * 4)
    options = {"loss": "brier", **FAST}
    naive = ModelGapExplainer({"b": "b", "a": "a"}, **options).fit(four.drop(columns="prompt")).report_
    robust = ModelGapExplainer({"b": "b", "a": "a"}, cluster="prompt", **options).fit(four).report_
    assert robust.outcome[0].se > 1.5 * naive.outcome[0].se


def test_the_gap_of_gaps_is_the_difference_of_the_gaps_of_both_models():
    tables = make(800), make(800, domain=1)
    options = {"loss": "given", "outcome": "loss", **FAST}
    report = gap_of_gaps(*tables, ["w"], {"a": "a", "b": "b"}, loss="brier", **FAST)
    assert report.mode == "gap-of-gaps"
    one, two = (
        GapExplainer(["w"], {"a": "a", "b": "b"}, loss_column=f"{name}_loss", **options).fit(*tables).report_
        for name in ("first", "second")
    )
    assert report.totals["gap"] == pytest.approx(two.totals["gap"] - one.totals["gap"], abs=1e-12)
    for term, a, b in zip(report.aggregate, one.aggregate, two.aggregate, strict=True):
        assert term.value == pytest.approx(b.value - a.value, abs=3 * term.se)  # nuisances are fitted anew
    by_loss = gap_of_gaps(
        *tables, ["w"], {"a": "a", "b": "b"}, models=("first_loss", "second_loss"), loss="given", **FAST
    )
    assert by_loss.aggregate[0].value == pytest.approx(report.aggregate[0].value, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ("first", "third")}, "no column 'third'"),
        ({"models": "first"}, "models: expected a list of 2 values.*got 'first'"),
        ({"groups": {"g": "second"}}, "'second' is a label"),
        ({"folds": 100}, "the source has 600 usable rows, but 100 folds need 1000"),
    ],
)
def test_refusals(options, message):
    options = {"groups": {"a": "a"}, "loss": "brier", "learners": "linear", **options}
    with pytest.raises(ExplainError, match=message):
        ModelGapExplainer(**options).fit(make(600))
