"""What an explainer's options say of one another: looked at when it is made and again before it works."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NoReturn

from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from explain.errors import ExplainError, check_options as check_values
from explain.nuisances import candidates
from explain.tables import check_roles, players_of

Options = Mapping[str, Any]  # of an explainer, by name


class Explainer(BaseEstimator):  # type: ignore[misc]
    """Base of the explainers: an estimator whose `report_` is there after `fit`."""

    def __getattr__(self, name: str) -> NoReturn:
        """What is not there.

        Raises:
            NotFittedError: For the report, before `fit`.
            AttributeError: For everything else.
        """
        if name == "report_":
            raise NotFittedError(f"this {type(self).__name__} has no report_ yet: call fit first")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def check_options(explainer: BaseEstimator) -> None:
    """Compare an explainer's options with their annotations and with each other.

    Raises:
        ExplainError: For the first that is not accepted.
    """
    check_values(explainer)
    given: Options = explainer.get_params(deep=False)
    candidates(given["learners"])
    for column, levels in (given["ordinal"] or {}).items():
        _check_levels(column, list(levels))
    sides = [("prediction", given["prediction"])] if "prediction" in given else []
    if "models" in given:
        sides = [("models", side) for side in given["models"]]
    for name, side in sides:
        if isinstance(side, list) and len(set(side)) < len(side):
            raise ExplainError(f"{name} has the columns {side!r}, but a column for each class is needed, none twice")
    baseline = list(given.get("baseline", ()))
    check_roles(baseline, {} if given["groups"] is None else players_of(given["groups"]), roles(given))


def roles(given: Options) -> set[Hashable]:
    """Columns that are no features: labels, predictions, losses, clusters and weights.

    Args:
        given: Options of an explainer.
    """
    sides = [given.get("prediction"), *given.get("models", ())]
    named = {name for side in sides for name in (side if isinstance(side, list) else [side])}
    named |= {given.get(name) for name in ("label", "loss_column", "cluster", "weight")}
    return named - {None}


def _check_levels(column: Hashable, levels: list[Hashable]) -> None:
    if not levels or len(set(levels)) < len(levels):
        raise ExplainError(
            f"ordinal has the values {levels!r} of column '{column}', but it needs all of them, from the lowest to "
            "the highest, each once"
        )
