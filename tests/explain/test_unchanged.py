"""Numbers that were found before there were curves and metrics: two domains and losses of rows stay as they were."""

import json
from pathlib import Path

import numpy as np
import pytest

from explain import GapExplainer, ModelGapExplainer, gap_of_gaps
from tests.explain.test_gap_explainer import make

FOUND = Path(__file__).parent / "unchanged.json"
FAST = {"learners": "linear", "folds": 2, "n_bins": 5}


def tables():
    """Two domains with two models, weights, clusters and given losses."""
    frames = []
    for side, frame in enumerate((make(260, 0, 5), make(240, 1, 5))):
        rng = np.random.default_rng([9, side])
        frame["second"] = np.clip(frame.prediction + rng.normal(0, 0.1, len(frame)), 0.01, 0.99)
        frame["weight"] = rng.uniform(0.5, 2, len(frame))
        frame["patient"] = rng.integers(0, 40, len(frame))
        frame["loss"] = (frame.label - frame.prediction) ** 2 + rng.normal(0, 0.01, len(frame))
        frames.append(frame)
    return frames


def reports():
    """One report for every way that two domains or two models are explained."""
    one, two = tables()
    features = {"a": "a", "rest": ["b", "colour"]}
    options = {"weight": "weight", "cluster": "patient"}
    pair = {"models": ("prediction", "second"), "loss": "brier"}
    plain = [frame.drop(columns=["weight", "patient", "second", "loss"]) for frame in (one, two)]
    return {
        "zero_one": GapExplainer(["w"], repeats=1, **FAST).fit(*plain).report_,
        "brier": GapExplainer(["w"], features, loss="brier", repeats=1, **options, **FAST).fit(one, two).report_,
        "given": GapExplainer(["w"], features, loss="given", outcome="loss", repeats=2, trim=0.02, **FAST)
        .fit(one, two)
        .report_,
        "boosting": GapExplainer(["w"], {"a": "a"}, loss="log", learners="hist_gb", folds=2).fit(one, two).report_,
        "models": ModelGapExplainer(features, **pair, learners="linear", folds=2, repeats=1).fit(one).report_,
        "gaps": gap_of_gaps(one, two, ["w"], features, **pair, repeats=1, **FAST),
    }


def numbers(report):
    """Every number of the terms, shares and values."""
    terms = [*report.aggregate, *report.covariate, *report.outcome, *report.values]
    return [[term.value, term.se, term.low, term.high] for term in terms] + [[*report.totals.values()]]


@pytest.fixture(scope="module")
def found():
    return {name: numbers(report) for name, report in reports().items()}


@pytest.mark.parametrize("name", ["zero_one", "brier", "given", "boosting", "models", "gaps"])
def test_numbers_stay_as_they_were(found, name):
    before = json.loads(FOUND.read_text())[name]
    flat = [np.array([value for row in part for value in row], dtype=float) for part in (before, found[name])]
    np.testing.assert_allclose(flat[1], flat[0], rtol=1e-9, atol=1e-12)  # sums of other processors round otherwise


if __name__ == "__main__":  # python -m tests.explain.test_unchanged writes what is compared with
    FOUND.write_text(json.dumps({name: numbers(report) for name, report in reports().items()}) + "\n")
