"""What an explainer's options say of one another is looked at when it is made, before any table is read."""

import copy
import pickle
from typing import Any

import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from explain import ExplainError, GapExplainer, ModelGap, ModelGapExplainer, PerformanceGap


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": {"w": []}}, "there is no variable to attribute the gap to"),
        ({"groups": {}}, "there is no variable to attribute the gap to"),
        ({"groups": {"w": 5.5}}, "group 'w' is 5.5, but it must be a column or a list of columns"),
        ({"groups": {"w": None}}, "group 'w' is None, but it must be a column or a list of columns"),
        ({"groups": {"w": [["x"]]}}, r"\['x'\] is listed as a column, but it is no name of one"),
        ({"groups": "edu"}, "groups: expected a mapping from a name to any value or None, got 'edu'"),
        ({"groups": {"a": ["x"], "b": ["x", "y"]}}, "column 'x' is listed twice"),
        ({"groups": {"a": ["age"]}}, "column 'age' is listed twice"),
        ({"groups": {1: ["x"], "1": ["y"]}}, "two groups are called '1' when written out"),
        ({"groups": {"recalibration": ["x"]}}, "a group is called 'recalibration'"),
        ({"groups": {"a": ["label"]}}, "column 'label' is a label, prediction, loss, cluster or weight"),
        ({"learners": "x"}, "learners are 'x', but"),
        ({"learners": 5}, "learners are 5, but"),
        ({"learners": []}, r"learners are \[\], but"),
        ({"ordinal": 5}, "ordinal: expected a mapping from a name to a list, each a name or None, got 5"),
        ({"ordinal": {"edu": []}}, r"ordinal has the values \[\] of column 'edu'"),
        ({"ordinal": {"edu": ["a", "a"]}}, r"ordinal has the values \['a', 'a'\] of column 'edu'"),
        ({"ordinal": {"edu": "ab"}}, "ordinal: expected a mapping from a name to a list, each a name or None"),
        ({"label": ["y"]}, r"label: expected a name, got \['y'\]"),
        ({"label": "age"}, "column 'age' is a label, prediction, loss, cluster or weight and cannot be a feature too"),
        ({"cluster": ["a"]}, r"cluster: expected a name or None, got \['a'\]"),
        ({"prediction": ["p", "p"]}, r"prediction has the columns \['p', 'p'\], but a column for each class is needed"),
        ({"baseline": ["age", "age"]}, "column 'age' is listed twice"),
        ({"baseline": [["age"]]}, r"baseline: expected a list, each a name, got \[\['age'\]\]"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
    ],
)
def test_a_wrong_option_is_refused_when_the_explainer_is_made(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ExplainError, match=message) as caught:
        GapExplainer(**({"baseline": ["age"]} | given))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": ("a",)}, "models: expected a list of 2 values"),
        ({"models": (["a", "a"], "b")}, r"models has the columns \['a', 'a'\]"),
        ({"cluster": ["a"]}, r"cluster: expected a name or None, got \['a'\]"),
        ({"groups": {"x": ["first"]}}, "column 'first' is a label, prediction, loss, cluster or weight"),
        ({"learners": 5}, "learners are 5, but"),
    ],
)
def test_two_models_likewise(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ExplainError, match=message):
        ModelGapExplainer(**given)


def test_an_option_that_is_set_later_is_looked_at_before_any_row() -> None:
    explainer = GapExplainer(["age"]).set_params(groups={"a": []})
    with pytest.raises(ExplainError, match="there is no variable to attribute the gap to"):
        explainer.fit(None, None)


@pytest.mark.parametrize("features", [[], "ab", ["a", "a"], [1], ("a", None)])
def test_features_are_names_each_once(features: Any) -> None:
    for make in (lambda: PerformanceGap(features, baseline=["a"]), lambda: ModelGap(features)):
        with pytest.raises(ExplainError, match=r"features is .*(each once|at least one: name the columns)"):
            make()


def test_a_report_before_fit_says_so() -> None:
    for explainer in (GapExplainer(["age"]), ModelGapExplainer()):
        assert not hasattr(explainer, "report_")
        with pytest.raises(NotFittedError, match="has no report_ yet: call fit first"):
            _ = explainer.report_
        with pytest.raises(AttributeError, match="has no attribute 'reports'"):
            _ = explainer.reports
        for again in (clone(explainer), copy.deepcopy(explainer), pickle.loads(pickle.dumps(explainer))):  # noqa: S301
            assert again.get_params() == explainer.get_params()
