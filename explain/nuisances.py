"""The regressions and classifiers behind the estimators: families of scikit-learn estimators, and the choice of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler

from explain.data import Sample
from explain.errors import ExplainError
from explain.functional.rows import Floats

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
        native: Whether the estimators take codes of categories as they are (through `categorical_features`); else
            categories are one-hot encoded before them.
    """

    name: str
    classifier: BaseEstimator
    regressor: BaseEstimator
    native: bool = False

    def fit_classifier(self, X: Floats, y: NDArray[Any], categorical: Mask) -> Any:
        """A fitted classifier; `categorical` marks the columns of X that hold codes of categories."""
        return self.estimator(self.classifier, categorical).fit(X, y)

    def fit_regressor(self, X: Floats, y: Floats, categorical: Mask) -> Any:
        """A fitted regressor, likewise."""
        return self.estimator(self.regressor, categorical).fit(X, y)

    def estimator(self, template: BaseEstimator, categorical: Mask) -> Any:
        """An unfitted copy of the classifier or regressor, ready for categories."""
        estimator = clone(template)
        if self.native:
            keys = [key for key in estimator.get_params() if key.endswith("categorical_features")]
            return estimator.set_params(**dict.fromkeys(keys, categorical))
        if not categorical.any():
            return estimator
        one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        encoder = ColumnTransformer(
            [
                ("numbers", "passthrough", np.flatnonzero(~categorical)),
                ("categories", one_hot, np.flatnonzero(categorical)),
            ]
        )
        return make_pipeline(encoder, estimator)


class _Quadratic(BaseEstimator):  # type: ignore[misc]
    """Standardised numbers with their squares and products; columns of zeros and ones (of categories) as they are."""

    def fit(self, X: Floats, y: Any = None) -> _Quadratic:
        """Learn scales, and which columns hold only zeros and ones."""
        self.dummy_ = ((X == 0) | (X == 1)).all(0)
        self.basis_ = (
            make_pipeline(StandardScaler(), PolynomialFeatures(2, include_bias=False), StandardScaler()).fit(
                X[:, ~self.dummy_]
            )
            if not self.dummy_.all()
            else None
        )
        return self

    def transform(self, X: Floats) -> Floats:
        """The basis at the rows of X."""
        dummies = X[:, self.dummy_]
        return dummies if self.basis_ is None else np.hstack([self.basis_.transform(X[:, ~self.dummy_]), dummies])


@dataclass(frozen=True)
class Families:
    """One family for each kind of nuisance, so that errors of the same kind cancel."""

    outcome: Family
    density: Family
    loss: Family

    def names(self) -> dict[str, str]:
        """Names of the families by kind."""
        return {"outcome": self.outcome.name, "density": self.density.name, "loss": self.loss.name}


def linear() -> Family:
    """Quadratic polynomials with logistic regression and ridge regression, its penalty chosen by leave-one-out."""
    return Family(
        "linear",
        make_pipeline(_Quadratic(), LogisticRegression(C=1.0, solver="newton-cholesky")),
        make_pipeline(_Quadratic(), RidgeCV(alphas=np.logspace(-1, 4, 6))),
    )


def hist_gb() -> Family:
    """Histogram gradient boosting of small trees; the classifier with sigmoid calibration on held-out predictions."""
    options: dict[str, Any] = {
        "max_iter": 60,
        "learning_rate": 0.1,
        "max_leaf_nodes": 8,
        "min_samples_leaf": 30,
        "early_stopping": False,
        "random_state": 0,
    }
    classifier = HistGradientBoostingClassifier(**options)
    return Family(
        "hist_gb",
        CalibratedClassifierCV(classifier, method="sigmoid", cv=3, ensemble=False),
        HistGradientBoostingRegressor(**options),
        native=True,
    )


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
    (X_0, X_1), categorical = sample.features, sample.categorical
    loss = best_family(families, [(X_0, sample.loss.source)], categorical, classify=False)
    domain = np.repeat([0, 1], sample.sizes)
    density = best_family(families, [(np.concatenate([X_0, X_1]), domain)], categorical, classify=True)
    if sample.labels is None:
        return Families(outcome=loss, density=density, loss=loss)
    problems = [(X_0, sample.labels[0]), (X_1, sample.labels[1])]
    return Families(outcome=best_family(families, problems, categorical, classify=True), density=density, loss=loss)


def best_family(
    families: Sequence[Family], problems: Sequence[tuple[Floats, NDArray[Any]]], categorical: Mask, *, classify: bool
) -> Family:
    """The family with the best cross-validated score over all problems together.

    Args:
        families: Candidates; a single one is taken as it is.
        problems: Features and outcomes.
        categorical: Columns of the features that hold categories.
        classify: Whether to score the log loss of classifiers, else the squared error of regressors.
    """
    if len(families) == 1:
        return families[0]
    splits = (StratifiedKFold if classify else KFold)(_CHOICE_FOLDS, shuffle=True, random_state=0)
    scoring = "neg_log_loss" if classify else "neg_mean_squared_error"

    def score(family: Family) -> float:
        estimator = family.estimator(family.classifier if classify else family.regressor, categorical)
        return float(sum(cross_val_score(estimator, X, y, scoring=scoring, cv=splits).mean() for X, y in problems))

    return max(families, key=score)
