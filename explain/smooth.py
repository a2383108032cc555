"""Ridge and logistic regression on the quadratic basis; where rows are many the basis is made block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.linear_model import LogisticRegression

from explain.design import BLOCK, Quadratic, blocks_of
from explain.functional.rows import Floats
from explain.ridge import MomentRidge

_STEPS, _TOLERANCE = 50, 1e-7  # of Newton's method: the gradient of the mean loss


class _Smooth(BaseEstimator):  # type: ignore[misc]
    """What both share: the basis.

    Args:
        crossed: Of :class:`~explain.design.Quadratic`.
    """

    def __init__(self, crossed: tuple[int, ...] = ()) -> None:
        self.crossed = crossed

    def _learn_basis(self, X: Floats, weight: Floats | None) -> None:
        self.quadratic_ = Quadratic(self.crossed).fit(X, sample_weight=weight)

    def _blocks(self, X: Floats) -> Iterator[Floats]:
        return (self.quadratic_.transform(X[rows]) for rows in blocks_of(len(X)))


class QuadraticRidge(RegressorMixin, _Smooth):  # type: ignore[misc]
    """Ridge regression on the quadratic basis, its penalty chosen by leave-one-out, for each of several outcomes."""

    def fit(self, X: Floats, y: Floats, sample_weight: Floats | None = None) -> QuadraticRidge:
        """Fit to rows, shape (n, m), and outcomes, shape (n,) or (n, k)."""
        self._learn_basis(X, sample_weight)
        if len(X) <= BLOCK:
            self.ridge_ = MomentRidge().fit(self.quadratic_.transform(X), y, sample_weight)
        else:
            self.ridge_ = MomentRidge().fit_blocks(lambda: self._blocks(X), y, sample_weight)
        return self

    def predict(self, X: Floats) -> Floats:
        """Predictions, shape (n,) or (n, k)."""
        return np.concatenate([self.ridge_.predict(block) for block in self._blocks(X)])


class QuadraticLogistic(ClassifierMixin, _Smooth):  # type: ignore[misc]
    """Logistic regression on the quadratic basis with a penalty of half the squared coefficients.

    scikit-learn fits it where the basis fits into memory, or where there are more than two classes; else Newton's
    method, from the sums over blocks of rows.
    """

    def fit(self, X: Floats, y: NDArray[np.generic], sample_weight: Floats | None = None) -> QuadraticLogistic:
        """Fit to rows, shape (n, m) and (n,)."""
        self._learn_basis(X, sample_weight)
        self.classes_ = np.unique(y)
        if len(X) <= BLOCK or len(self.classes_) != 2:
            model = LogisticRegression(C=1.0, solver="newton-cholesky")
            self.logistic_ = model.fit(self.quadratic_.transform(X), y, sample_weight=sample_weight)
            return self
        weight = np.ones(len(X)) if sample_weight is None else sample_weight
        coefficients = self._newton(X, (y == self.classes_[1]).astype(np.float64), weight)
        self.logistic_ = LogisticRegression(C=1.0, solver="newton-cholesky")
        self.logistic_.classes_ = self.classes_
        self.logistic_.coef_, self.logistic_.intercept_ = coefficients[None, 1:], coefficients[:1]
        return self

    def _newton(self, X: Floats, y: Floats, weight: Floats) -> Floats:
        """Constant and coefficients."""
        found = self._start(X, y, weight)
        loss, slope, curve = self._sums(found, X, y, weight)
        for _ in range(_STEPS):
            if np.abs(slope).max() <= _TOLERANCE * weight.sum():
                break
            step = np.linalg.solve(curve, slope)
            for _ in range(20):  # a full step that leads uphill is halved
                after = self._sums(found - step, X, y, weight)
                if after[0] <= loss:
                    break
                step = step / 2
            found, (loss, slope, curve) = found - step, after
        return found

    def _start(self, X: Floats, y: Floats, weight: Floats) -> Floats:
        """Coefficients that every so many rows give, as many as are in memory at once: few steps lead on from there."""
        every = -(-len(X) // BLOCK)
        some = slice(None, None, every)
        basis = self.quadratic_.transform(X[some])
        if len(np.unique(y[some])) < 2:
            return np.zeros(1 + basis.shape[1])
        model = LogisticRegression(C=float(every), solver="newton-cholesky")
        model.fit(basis, y[some], sample_weight=weight[some])
        return np.concatenate([model.intercept_, model.coef_[0]])

    def _sums(self, found: Floats, X: Floats, y: Floats, weight: Floats) -> tuple[float, Floats, Floats]:
        """Penalised loss, its gradient and its second derivatives, summed over the blocks."""
        penalty = np.append(0.0, np.ones(len(found) - 1))
        loss, slope, curve = float(penalty @ found**2) / 2, penalty * found, np.diag(penalty)
        for rows, block in zip(blocks_of(len(X)), self._blocks(X), strict=True):
            basis = np.column_stack([np.ones(len(block)), block])
            score, seen, mass = basis @ found, y[rows], weight[rows]
            chance = 1 / (1 + np.exp(-np.clip(score, -500, 500)))
            loss += float(mass @ (np.logaddexp(0.0, score) - seen * score))
            slope = slope + basis.T @ (mass * (chance - seen))
            curve = curve + (basis * (mass * chance * (1 - chance))[:, None]).T @ basis
        return loss, slope, curve

    def predict_proba(self, X: Floats) -> Floats:
        """Probabilities, shape (n, classes)."""
        return np.concatenate([self.logistic_.predict_proba(block) for block in self._blocks(X)])

    def predict(self, X: Floats) -> NDArray[np.generic]:
        """The most probable labels, shape (n,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])
