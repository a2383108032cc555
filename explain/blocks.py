"""Logistic and ridge regression on a quadratic basis that is made block by block, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.linear_model import LogisticRegression

from explain.design import Quadratic, blocks
from explain.functional.rows import Floats

ALPHAS = tuple(np.logspace(-1, 4, 6))
_STEPS, _TOLERANCE = 30, 1e-8
_SINGULAR = 1e-9  # of the largest moment of a basis: no direction is fitted below


class _OnBasis(BaseEstimator):  # type: ignore[misc]
    """What both share.

    Args:
        curve: Of :class:`~explain.design.Quadratic`.
    """

    def __init__(self, curve: float = 1.0) -> None:
        self.curve = curve

    def _blocks(self, X: Floats) -> Iterator[tuple[slice, Floats]]:
        """Rows, and the basis there with a column of ones before it."""
        for rows in blocks(len(X)):
            basis = self.quadratic_.transform(X[rows])
            yield rows, np.column_stack([np.ones(len(basis)), basis])

    def _linear(self, X: Floats, coefficients: Floats) -> Floats:
        found = np.empty(len(X))
        for rows, basis in self._blocks(X):
            found[rows] = basis @ coefficients
        return found


class BlockRidge(RegressorMixin, _OnBasis):  # type: ignore[misc]
    """Ridge regression on the quadratic basis; of several penalties the one with the least leave-one-out error.

    Args:
        curve: Of :class:`~explain.design.Quadratic`.
        alphas: Penalties to choose from, 0 for least squares; the constant has none.
    """

    def __init__(self, curve: float = 1.0, alphas: Sequence[float] = ALPHAS) -> None:
        super().__init__(curve)
        self.alphas = alphas

    def fit(self, X: Floats, y: Floats, sample_weight: Floats | None = None) -> BlockRidge:
        """Fit by the eigenvectors of the moments of the basis, which is seen twice."""
        self.quadratic_ = Quadratic(self.curve).fit(X, sample_weight=sample_weight)
        weight = np.ones(len(X)) if sample_weight is None else sample_weight
        # The basis is standardised with these weights, so the constant is orthogonal to it.
        self.constant_ = float(np.average(y, weights=weight))
        left = y - self.constant_
        moments, cross = np.zeros(()), np.zeros(())
        for rows, basis in self._blocks(X):
            heavy = basis[:, 1:] * weight[rows, None]
            moments, cross = moments + heavy.T @ basis[:, 1:], cross + heavy.T @ left[rows]
        values, vectors = np.linalg.eigh(moments)
        turned = vectors.T @ np.asarray(cross)
        held = values[:, None] + np.array(self.alphas)  # one column a penalty
        kept = held > _SINGULAR * max(values.max(initial=0.0), 1e-300)
        scale = np.where(kept, 1 / np.where(kept, held, 1.0), 0.0)
        missed = np.zeros(len(self.alphas))
        if len(self.alphas) > 1:
            for rows, basis in self._blocks(X):
                seen = basis[:, 1:] @ vectors
                leverage = weight[rows, None] * (seen**2 @ scale + 1 / weight.sum())
                error = (left[rows, None] - seen @ (turned[:, None] * scale)) / (1 - leverage)
                missed += (weight[rows, None] * error**2).sum(0)
        best = int(missed.argmin())
        self.alpha_ = float(self.alphas[best])
        self.coefficients_ = np.append(self.constant_, vectors @ (turned * scale[:, best]))
        return self

    def predict(self, X: Floats) -> Floats:
        """Predictions, shape (n,)."""
        return self._linear(X, self.coefficients_)


class BlockLogistic(ClassifierMixin, _OnBasis):  # type: ignore[misc]
    """Logistic regression on the quadratic basis with a penalty of half the squared coefficients, by Newton's method.

    Of two labels, block by block; of more, scikit-learn's on the whole basis.
    """

    def fit(self, X: Floats, y: NDArray[np.int64], sample_weight: Floats | None = None) -> BlockLogistic:
        """Fit; the constant has no penalty."""
        self.quadratic_ = Quadratic(self.curve).fit(X, sample_weight=sample_weight)
        self.classes_ = np.unique(y)
        if len(self.classes_) != 2:
            model = LogisticRegression(C=1.0, solver="newton-cholesky")
            self.several_ = model.fit(self.quadratic_.transform(X), y, sample_weight=sample_weight)
            return self
        weight = np.ones(len(X)) if sample_weight is None else sample_weight
        second = (y == self.classes_[1]).astype(np.float64)
        beta = np.zeros(1 + np.size(self.quadratic_.mean_))
        penalty = np.append(0.0, np.ones(len(beta) - 1))
        worth = self._worth(X, second, weight, beta)
        for _ in range(_STEPS):
            gradient, curved = -penalty * beta, np.diag(penalty)
            for rows, basis in self._blocks(X):
                chance = expit(basis @ beta)
                gradient += basis.T @ (weight[rows] * (second[rows] - chance))
                curved += (basis * (weight[rows] * chance * (1 - chance))[:, None]).T @ basis
            step = cho_solve(cho_factor(curved + 1e-10 * np.eye(len(beta))), gradient)
            size = 1.0
            while (tried := self._worth(X, second, weight, beta + size * step)) < worth and size > 1e-4:
                size /= 2
            beta, gained, worth = beta + size * step, tried - worth, tried
            if gradient @ step < _TOLERANCE * (1 + abs(worth)) or gained < 0:
                break
        self.coefficients_ = beta
        return self

    def _worth(self, X: Floats, second: Floats, weight: Floats, beta: Floats) -> float:
        """The penalised log likelihood."""
        score = self._linear(X, beta)
        return float(weight @ (second * score - np.logaddexp(0.0, score)) - beta[1:] @ beta[1:] / 2)

    def predict_proba(self, X: Floats) -> Floats:
        """Probabilities, shape (n, classes)."""
        if len(self.classes_) != 2:
            return np.asarray(self.several_.predict_proba(self.quadratic_.transform(X)))
        second = expit(self._linear(X, self.coefficients_))
        return np.column_stack([1 - second, second])

    def predict(self, X: Floats) -> NDArray[np.int64]:
        """The most probable labels, shape (n,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])
