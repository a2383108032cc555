"""Metrics that are no means of losses: against scikit-learn, DeLong and simulated truths; groups; refusals."""

import numpy as np
import pandas as pd
import pytest
from joblib import Parallel
from scipy.special import expit
from sklearn.metrics import f1_score, mean_pinball_loss, recall_score, roc_auc_score

from explain import ExplainError, GapExplainer, ModelGapExplainer, gap_by_group, gap_of_gaps
from explain.estimate import watched
from explain.functional.metrics import CALIBRATION_BINS, METRICS, Law, auc_parts, auc_square, metric_levels
from explain.functional.rows import Rows
from explain.levels import with_levels

FAST = {"outcome": "loss", "learners": "linear", "folds": 3, "n_bins": 5}
HYBRIDS = ((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1))
REFERENCES = {
    "f1": lambda y, s: 1 - f1_score(y, s > 0.5),
    "recall": lambda y, s: 1 - recall_score(y, s > 0.5),
    "auc": lambda y, s: 1 - roc_auc_score(y, s),
}


def draw(rows, baseline, covariate, outcome, rng):
    """Rows of w, z and a label whose distributions come from domain 0 or 1, and a score that knows the source."""
    w = rng.normal(0.4 * baseline, 1, rows)
    z = 0.5 * w + 0.6 * covariate + rng.normal(0, 1, rows)
    label = (rng.random(rows) < expit(-0.5 + 0.5 * w + (1 - 0.6 * outcome) * z)).astype(int)
    return pd.DataFrame({"w": w, "z": z, "label": label, "prediction": expit(-0.3 + 0.6 * w + 0.9 * z)})


def pair(rows, seed):
    rng = np.random.default_rng([5, seed])
    return draw(rows, 0, 0, 0, rng), draw(rows, 1, 1, 1, rng)


def calibration(y, s, edges):
    bins = np.searchsorted(edges, s, side="right")
    count = np.bincount(bins, minlength=len(edges) + 1)
    return float((np.bincount(bins, y - s, len(count)) ** 2 / np.maximum(count, 1)).sum() / len(y))


def truth(kind, rows=400_000):
    """Terms by simulation of the four distributions."""
    rng = np.random.default_rng(0)
    tables = [draw(rows, *factors, rng) for factors in HYBRIDS]
    pooled = np.concatenate([tables[0].prediction, tables[3].prediction])
    edges = np.quantile(pooled, np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS)
    metric = REFERENCES.get(kind, lambda y, s: calibration(y, s, edges))
    return np.diff([metric(table.label.to_numpy(), table.prediction.to_numpy()) for table in tables])


def terms(kind, frames):
    """Terms and their standard errors, without the shares."""
    explainer = GapExplainer(["w"], {"z": "z"}, loss=kind, **FAST)
    case = explainer.plan(frames, explainer.losses(frames)).cases()[0]
    levels = with_levels(*case, watched(Parallel(n_jobs=1), progress=False))[1]
    steps = np.diff(np.eye(4), axis=0)
    return steps @ levels.value, np.sqrt(np.diag(steps @ levels.spread @ steps.T))


@pytest.mark.parametrize("kind", METRICS)
def test_terms_are_what_simulation_says(kind):
    value, error = terms(kind, pair(4000, 1))
    expected = truth(kind)
    assert (np.abs(value - expected) < 3.3 * error).all()
    assert (error < 0.02).all()
    assert np.abs(expected).max() > 5 * error[np.abs(expected).argmax()]  # and there is something to be seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", METRICS)
def test_intervals_cover(kind):
    expected = truth(kind, 2_000_000)
    z = []
    for seed in range(100):
        value, error = terms(kind, pair(2000, seed))
        z.append((value - expected) / error)
    assert (np.mean(np.abs(z) < 1.645, axis=0) > 0.8).all()
    assert (np.abs(np.mean(z, axis=0)) < 0.5).all()


@pytest.mark.parametrize("kind", ["f1", "recall", "auc"])
def test_a_report_of_a_metric(kind):
    frames = pair(500, 2)
    report = GapExplainer(["w"], {"z": "z"}, loss=kind, min_shift_z=1, **FAST).fit(*frames).report_
    for name, frame in zip(("source", "target"), frames, strict=True):
        assert report.totals[name] == pytest.approx(REFERENCES[kind](frame.label, frame.prediction), abs=1e-12)
    assert sum(term.value for term in report.aggregate) == pytest.approx(report.totals["gap"], abs=1e-12)
    if kind != "auc":  # whose shifts take more rows to be told from noise
        assert sum(term.value for term in report.covariate) == pytest.approx(1, abs=1e-9)
        assert sum(term.value for term in report.outcome) == pytest.approx(1, abs=1e-9)
    assert report.loss == {"f1": "1 - F1", "recall": "1 - recall", "auc": "1 - AUC"}[kind]
    assert "1 - " in report.summary()


def test_the_influence_function_of_the_auc_gives_delongs_variance():
    frame = draw(600, 0, 0, 0, np.random.default_rng(3)).round(1)  # with ties
    y, s = frame.label.to_numpy(dtype=float), frame.prediction.to_numpy()
    law = Law(y, s, np.full(600, 1 / 600))
    parts = auc_parts(law, y, s)
    nothing = Rows(np.zeros((2, 600)), parts)
    here = Rows(parts, np.zeros((2, 600)))
    levels = metric_levels("auc", [here, here, here, nothing], [auc_square(law)] * 4)
    positive, negative = s[y == 1], s[y == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    assert levels.value[0] == pytest.approx(1 - wins.mean(), abs=1e-12)
    delong = wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)
    assert levels.spread[0, 0] == pytest.approx(delong, rel=0.01)
    assert levels.spread[0, 3] == pytest.approx(0, abs=1e-15)  # source and target are independent


def test_a_row_of_weight_two_counts_as_two_rows_of_a_metric():
    source, target = pair(300, 4)
    weighted = [frame.assign(weight=1.0 + (np.arange(len(frame)) % 2)) for frame in (source, target)]
    doubled = [frame.loc[frame.index.repeat(frame.weight.astype(int))] for frame in weighted]
    for kind in ("recall", "auc"):
        explainer = GapExplainer(["w"], {"z": "z"}, loss=kind, weight="weight", **FAST)
        found = []
        for frames in (weighted, [frame.assign(weight=1.0) for frame in doubled]):
            case = explainer.plan(frames, explainer.losses(frames)).cases()[0]
            levels = with_levels(*case, watched(Parallel(n_jobs=1), progress=False))[1]
            found.append(levels.value[[0, 3]])
        assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_a_perfect_calibration_has_no_error_beyond_its_interval():
    """The delta method alone would give an interval of no width around a square of 0."""
    rng = np.random.default_rng(6)
    frames = []
    for _ in (0, 1):
        w, z = rng.normal(size=(2, 3000))
        chance = expit(w + z)
        label = (rng.random(3000) < chance).astype(int)
        frames.append(pd.DataFrame({"w": w, "z": z, "label": label, "prediction": chance}))
    value, error = terms("calibration", frames)
    assert (np.abs(value) < 3 * error).all()
    assert error[2] > 2e-4
    assert error.min() > 0


def test_the_quantile_loss_is_a_loss_of_rows():
    rng = np.random.default_rng(7)
    frames = []
    for domain in (0, 1):
        x = rng.normal(size=(400, 2))
        y = x @ [1.0, 1 - domain] + rng.normal(size=400)
        frames.append(pd.DataFrame(x, columns=["w", "z"]).assign(label=y, prediction=x.sum(1) + 1.28))
    report = GapExplainer(["w"], {"z": "z"}, loss="quantile", quantile=0.9, **FAST).fit(*frames).report_
    for name, frame in zip(("source", "target"), frames, strict=True):
        assert report.totals[name] == pytest.approx(mean_pinball_loss(frame.label, frame.prediction, alpha=0.9))
    assert report.aggregate[2].low > 0
    gaps = gap_of_gaps(
        *(frame.assign(other=0.0) for frame in frames),
        ["w"],
        {"z": "z"},
        models=("prediction", "other"),
        loss="quantile",
        quantile=0.9,
        learners="linear",
        folds=2,
    )
    assert gaps.diagnostics["models"]["first"]["outcome"]["value"] == pytest.approx(report.aggregate[2].value, abs=0.05)


def test_recall_by_group():
    source, target = pair(900, 8)
    frames = [frame.assign(sex=np.array(["f", "m"])[np.arange(len(frame)) % 2]) for frame in (source, target)]
    curve = gap_by_group(*frames, "sex", ["w"], {"z": "z"}, loss="recall", **FAST)
    assert list(curve.reports) == ["f", "m"]
    for sex, report in curve.reports.items():
        for name, frame in zip(("source", "target"), frames, strict=True):
            part = frame[frame.sex == sex]
            assert report.totals[name] == pytest.approx(REFERENCES["recall"](part.label, part.prediction), abs=1e-12)
    assert 0.9 < curve.each_level < 1
    assert "2 groups from source to target" in curve.to_text()
    assert curve.plot().axes[0].get_ylabel() == "gap to the target"
    alone = GapExplainer(["w"], {"z": "z"}, loss="recall", **FAST)
    alone.fit(*(frame[frame.sex == "m"].drop(columns="sex") for frame in frames))
    assert alone.report_.to_json() == curve["m"].to_json()
    with pytest.raises(ExplainError, match="column 'sex' tells the groups"):
        gap_by_group(*frames, "sex", ["sex"], {"z": "z"}, loss="recall", **FAST)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"loss": "f1"}, lambda f: f.assign(label=np.arange(len(f)) % 3), "holds 3 different labels"),
        (
            {"loss": "auc", "prediction": ["p", "q"]},
            lambda f: f.assign(p=0.1, q=0.9),
            "has 2 prediction columns, but it needs one",
        ),
        ({"loss": "recall"}, lambda f: f.assign(label=(np.arange(len(f)) < 7).astype(int)), "a label occurs 7 times"),
        ({"loss": "calibration"}, lambda f: f.assign(prediction=f.z), "needs probabilities: apply the sigmoid"),
        ({"loss": "calibration", "prediction": "word"}, lambda f: f.assign(word="yes"), "needs probabilities"),
        ({"loss": "f1", "outcome": "risk"}, None, "outcome='risk' needs the loss for every label"),
        ({"loss": "quantile", "quantile": 1.0}, None, "quantile: expected a finite number > 0 and < 1"),
    ],
)
def test_refusals(options, change, message):
    frames = pair(200, 9)
    frames = frames if change is None else [change(frame) for frame in frames]
    with pytest.raises(ExplainError, match=message) as caught:
        GapExplainer(["w"], {"z": "z"}, **{**FAST, **options}).fit(*frames)
    assert "\n" not in str(caught.value)


def test_two_models_are_not_compared_by_a_metric():
    frames = pair(200, 10)
    with pytest.raises(ExplainError, match="the loss 'auc' is no mean of losses of rows"):
        gap_of_gaps(*frames, ["w"], {"z": "z"}, models=("prediction", "z"), loss="auc")
    with pytest.raises(ExplainError, match="loss: expected one of"):
        ModelGapExplainer(loss="auc")


def test_hardly_any_overlap_is_refused_where_a_metric_divides_by_nothing():
    parts = [Rows(np.zeros((2, 9)) + 1e-9, np.zeros((2, 9))) for _ in range(4)]
    with pytest.raises(ValueError, match="1 - F1 divides by a share of 1e-09 of the rows"):
        metric_levels("f1", parts)
