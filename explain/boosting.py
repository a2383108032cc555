"""Boosting of what a quadratic model leaves: smooth where the world is, and free to bend where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.ensemble import HistGradientBoostingRegressor

from explain.design import Mask, Plain
from explain.functional.rows import Floats
from explain.smooth import QuadraticLogistic, QuadraticRidge

_EDGE = 1e-4  # of a probability
_TREES: dict[str, Any] = {
    "max_iter": 40,
    "learning_rate": 0.05,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 30,
    "early_stopping": False,
    "random_state": 0,
}


class _Boosted(BaseEstimator):  # type: ignore[misc]
    """What both share: the quadratic model, and small trees that learn its residuals.

    Args:
        categorical_features: Which columns hold codes of categories, shape (m,); none when not given.
        crossed: Of :class:`~explain.design.Quadratic`.
    """

    def __init__(self, categorical_features: Mask | None = None, crossed: tuple[int, ...] = ()) -> None:
        self.categorical_features = categorical_features
        self.crossed = crossed

    def _numbers(self, X: Floats, weight: Floats | None) -> Floats:
        mask = np.zeros(X.shape[1], bool) if self.categorical_features is None else self.categorical_features
        self.plain_ = Plain(mask).fit(X, weight)
        return self.plain_.transform(X)

    def _trees(self, X: Floats, residual: Floats, weight: Floats | None) -> HistGradientBoostingRegressor:
        trees = HistGradientBoostingRegressor(categorical_features=self.categorical_features, **_TREES)
        return trees.fit(X, residual, sample_weight=weight)


class BoostedRegressor(RegressorMixin, _Boosted):  # type: ignore[misc]
    """Ridge regression on the quadratic basis, then trees."""

    def fit(self, X: Floats, y: Floats, sample_weight: Floats | None = None) -> BoostedRegressor:
        """Fit both."""
        numbers = self._numbers(X, sample_weight)
        self.base_ = QuadraticRidge(self.crossed).fit(numbers, y, sample_weight)
        self.trees_ = self._trees(X, y - self.base_.predict(numbers), sample_weight)
        return self

    def predict(self, X: Floats) -> Floats:
        """Predictions, shape (n,)."""
        return np.asarray(self.base_.predict(self.plain_.transform(X)) + self.trees_.predict(X))


class BoostedClassifier(ClassifierMixin, _Boosted):  # type: ignore[misc]
    """Logistic regression on the quadratic basis, then trees on what it leaves of every label's indicator."""

    def fit(self, X: Floats, y: NDArray[np.generic], sample_weight: Floats | None = None) -> BoostedClassifier:
        """Fit both."""
        numbers = self._numbers(X, sample_weight)
        self.base_ = QuadraticLogistic(self.crossed).fit(numbers, y, sample_weight)
        self.classes_ = self.base_.classes_
        chances = self.base_.predict_proba(numbers)
        labels = range(1, 2) if len(self.classes_) == 2 else range(len(self.classes_))
        self.trees_ = [self._trees(X, (y == self.classes_[k]) - chances[:, k], sample_weight) for k in labels]
        return self

    def predict_proba(self, X: Floats) -> Floats:
        """Probabilities, shape (n, classes), each at least 1e-4."""
        chances = self.base_.predict_proba(self.plain_.transform(X))
        moves = np.column_stack([trees.predict(X) for trees in self.trees_])
        if moves.shape[1] == 1:
            moves = np.hstack([-moves, moves])
        chances = np.clip(chances + moves, _EDGE, None)
        return np.asarray(chances / chances.sum(1, keepdims=True))

    def predict(self, X: Floats) -> NDArray[np.generic]:
        """The most probable labels, shape (n,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])
