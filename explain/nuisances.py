"""The regressions and classifiers behind the estimators: families of scikit-learn estimators, and the choice of one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from explain.boosting import BoostedClassifier, BoostedRegressor
from explain.data import Sample
from explain.design import Plain
from explain.errors import ExplainError
from explain.functional.rows import Floats
from explain.smooth import QuadraticLogistic, QuadraticRidge

Mask = NDArray[np.bool_]
LEARNERS = ("auto", "linear", "hist_gb")
_CHOICE_FOLDS = 3


@dataclass(frozen=True)
class Family:
    """A classifier and a regressor of like capacity, for nuisances whose errors must cancel.

    Attributes:
        name: For the report.
        classifier: Any scikit-learn classifier with `predict_proba`.
        regressor: Any scikit-learn regressor.
        native: Whether the estimators take missing values, and codes of categories (through `categorical_features`), as
            they are; else :class:`~explain.design.Plain` stands before them.
        joint: Whether the regressor learns several outcomes at once, each as it would alone.
        base: A smoother family for what is noise for the most part; the family itself when not given.
        kept: Fitted estimators by what they learnt from; none are kept when not given.
    """

    name: str
    classifier: BaseEstimator
    regressor: BaseEstimator
    native: bool = False
    joint: bool = False
    base: Family | None = None
    kept: dict[bytes, Fitted] | None = field(default=None, compare=False, repr=False)

    def keeping(self, kept: dict[bytes, Fitted]) -> Family:
        """The same family, which learns the same thing from the same rows once."""
        return replace(self, kept=kept, base=None if self.base is None else self.base.keeping(kept))

    def fit_classifier(
        self, X: Floats, y: NDArray[np.generic], categorical: Mask, weight: Floats | None = None
    ) -> Fitted:
        """A fitted classifier; `categorical` marks the columns of X that hold codes of categories."""
        return self._fit(self.classifier, X, y, categorical, weight)

    def fit_regressor(
        self, X: Floats, y: Floats, categorical: Mask, weight: Floats | None = None, risks: int = 0
    ) -> Fitted:
        """A fitted regressor, likewise; the last `risks` numbers are crossed with all others by families that can."""
        return self._fit(self.regressor, X, y, categorical, weight, risks)

    @property
    def smooth(self) -> Family:
        """The family for what is noise for the most part."""
        return self if self.base is None else self.base

    def _fit(
        self,
        template: BaseEstimator,
        X: Floats,
        y: NDArray[np.generic],
        categorical: Mask,
        weight: Floats | None,
        risks: int = 0,
    ) -> Fitted:
        if self.kept is None:
            return self._learn(template, X, y, categorical, weight, risks)
        key = hashlib.sha256(f"{self.name} {type(template).__name__} {template is self.classifier} {risks}".encode())
        for part in (X, y, categorical, weight):
            key.update(b"none" if part is None else f"{part.shape}{part.dtype}".encode())
            key.update(b"" if part is None else np.ascontiguousarray(part).data)
        if key.digest() not in self.kept:
            self.kept[key.digest()] = self._learn(template, X, y, categorical, weight, risks)
        return self.kept[key.digest()]

    def _learn(
        self,
        template: BaseEstimator,
        X: Floats,
        y: NDArray[np.generic],
        categorical: Mask,
        weight: Floats | None,
        risks: int,
    ) -> Fitted:
        estimator, plain = clone(template), None
        if risks:
            numbers = int((~categorical).sum())
            crossed = tuple(range(numbers - risks, numbers))  # numbers come first, see Plain
            keys = [key for key in estimator.get_params() if key.rpartition("__")[2] == "crossed"]
            estimator.set_params(**dict.fromkeys(keys, crossed))
        if self.native:
            keys = [key for key in estimator.get_params() if key.endswith("categorical_features")]
            estimator.set_params(**dict.fromkeys(keys, categorical))
        else:
            plain = Plain(categorical).fit(X, weight)
            X = plain.transform(X)
        return Fitted(plain, estimator.fit(X, y, **_weighted(estimator, weight)))


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator that takes codes of categories and missing values.

    Attributes:
        plain: What makes plain numbers of them; None where the estimator takes them itself.
        estimator: The estimator.
    """

    plain: Plain | None
    estimator: Any

    def predict(self, X: Floats) -> Floats:
        """Predictions of a regressor, shape (n,), or (n, k) where it learnt k outcomes at once."""
        found: Floats = self.estimator.predict(X if self.plain is None else self.plain.transform(X))
        return found

    def chances(self, X: Floats, classes: int) -> Floats:
        """Probabilities of the labels 0 to classes - 1, shape (n, classes); 0 for one that training had not."""
        found = np.zeros((len(X), classes))
        seen = X if self.plain is None else self.plain.transform(X)
        found[:, self.estimator.classes_.astype(np.int64)] = self.estimator.predict_proba(seen)
        return found


def _weighted(estimator: Any, weight: Floats | None) -> dict[str, Floats]:
    """The keyword arguments that carry the weights to every step of an estimator that takes them."""
    if weight is None:
        return {}
    steps = estimator.steps if isinstance(estimator, Pipeline) else [("", estimator)]
    if not has_fit_parameter(steps[-1][1], "sample_weight"):
        raise ExplainError(
            f"rows have weights, but the fit of {type(steps[-1][1]).__name__} takes no sample_weight: "
            "choose another learner"
        )
    taking = [name for name, step in steps if has_fit_parameter(step, "sample_weight")]
    return {f"{name}__sample_weight" if name else "sample_weight": weight for name in taking}


@dataclass(frozen=True)
class Families:
    """One family for each kind of nuisance, so that errors of the same kind cancel."""

    outcome: Family
    density: Family
    loss: Family

    def keeping(self, kept: dict[bytes, Fitted]) -> Families:
        """The same families, which learn the same thing from the same rows once."""
        return Families(*(family.keeping(kept) for family in (self.outcome, self.density, self.loss)))

    def names(self) -> dict[str, str]:
        """Names of the families by kind."""
        return {"outcome": self.outcome.name, "density": self.density.name, "loss": self.loss.name}


def linear() -> Family:
    """Quadratic polynomials with bends for logistic and ridge regression, its penalty chosen by leave-one-out."""
    return Family(
        "linear",
        QuadraticLogistic(),
        QuadraticRidge(),
        joint=True,
    )


def hist_gb() -> Family:
    """The same, then histogram gradient boosting of small trees on what it leaves."""
    return Family("hist_gb", BoostedClassifier(), BoostedRegressor(), native=True, base=linear())


def candidates(learners: str | tuple[BaseEstimator, BaseEstimator]) -> list[Family]:
    """Families to choose among.

    Args:
        learners: "linear", "hist_gb", "auto" for either, or a pair of a scikit-learn classifier and a regressor.

    Raises:
        ExplainError: If it is none of these.
    """
    if isinstance(learners, tuple) and len(learners) == 2:
        classifier, regressor = learners
        if hasattr(classifier, "predict_proba") and hasattr(regressor, "predict"):
            return [Family("given", classifier, regressor)]
    families = {"linear": [linear], "hist_gb": [hist_gb], "auto": [linear, hist_gb]}
    if not isinstance(learners, str) or learners not in families:
        raise ExplainError(
            f"learners are {learners!r}, but {', '.join(LEARNERS)} or a pair of a scikit-learn classifier (with "
            "predict_proba) and regressor are accepted"
        )
    return [make() for make in families[learners]]


def choose_families(families: Sequence[Family], sample: Sample) -> Families:
    """For each kind of nuisance the family with the best cross-validated score, the same for both domains.

    Args:
        families: Candidates; a single one is taken as it is.
        sample: The data.
    """
    first, second = (problem(sample, side, sample.loss[side]) for side in (0, 1))
    loss = best_family(families, [first], sample.categorical, classify=False)
    both = Problem(
        np.concatenate([first.X, second.X]),
        np.repeat([0, 1], sample.sizes),
        None if first.weight is None or second.weight is None else np.concatenate([first.weight, second.weight]),
        None if sample.clusters is None else np.concatenate(sample.clusters),
    )
    density = best_family(families, [both], sample.categorical, classify=True)
    if sample.labels is None:
        return Families(outcome=loss, density=density, loss=loss)
    problems = [problem(sample, side, sample.labels[side]) for side in (0, 1)]
    outcome = best_family(families, problems, sample.categorical, classify=True)
    return Families(outcome=outcome, density=density, loss=loss)


class Problem(NamedTuple):
    """Features, outcomes, and weights and clusters where rows have them."""

    X: Floats
    y: NDArray[np.generic]
    weight: Floats | None = None
    clusters: NDArray[np.int64] | None = None


def problem(sample: Sample, side: int, y: NDArray[np.generic]) -> Problem:
    """What is to be learnt from a domain."""
    clusters = None if sample.clusters is None else sample.clusters[side]
    return Problem(sample.features[side], y, sample.weights(side, slice(None)), clusters)


def best_family(
    families: Sequence[Family], problems: Sequence[Problem], categorical: Mask, *, classify: bool
) -> Family:
    """The family with the best cross-validated score over all problems together.

    Args:
        families: Candidates; a single one is taken as it is.
        problems: What is to be learnt.
        categorical: Columns of the features that hold categories.
        classify: Whether to score the log loss of classifiers, else the squared error of regressors.
    """
    if len(families) == 1:
        return families[0]

    def error(family: Family) -> float:
        return sum(_error(family, problem, categorical, classify) for problem in problems)

    return min(families, key=error)


def _error(family: Family, problem: Problem, categorical: Mask, classify: bool) -> float:
    """Mean held-out error over the folds."""
    X, y, weight, clusters = problem
    if clusters is not None and len(np.unique(clusters)) >= _CHOICE_FOLDS:
        splits = GroupKFold(_CHOICE_FOLDS).split(X, y, clusters)
    else:
        splits = (StratifiedKFold if classify else KFold)(_CHOICE_FOLDS, shuffle=True, random_state=0).split(X, y)
    found = []
    for train, test in splits:
        seen, held = (None if weight is None else weight[rows] for rows in (train, test))
        if classify:
            classes = 1 + int(y.max())
            chances = family.fit_classifier(X[train], y[train], categorical, seen).chances(X[test], classes)
            misses = -np.log(np.clip(chances[np.arange(len(test)), y[test]], 1e-15, 1.0))
        else:
            misses = (family.fit_regressor(X[train], y[train], categorical, seen).predict(X[test]) - y[test]) ** 2
        found.append(float(np.average(misses, weights=held)))
    return float(np.mean(found))
