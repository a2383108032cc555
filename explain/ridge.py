"""Ridge regression whose penalty is chosen by leaving each row out, from the moments of the columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin

from explain.functional.rows import Floats

ALPHAS = tuple(np.logspace(-1, 4, 6))


class MomentRidge(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Ridge regression; of several penalties the one with the least leave-one-out error.

    scikit-learn's `RidgeCV` does the same by a decomposition of the whole matrix, an order of magnitude slower where
    rows are many: the eigenvectors of the columns' moments are enough.

    Args:
        alphas: Penalties to choose from, positive; the constant has none.
    """

    def __init__(self, alphas: Sequence[float] = ALPHAS) -> None:
        self.alphas = alphas

    def fit(self, X: Floats, y: Floats, sample_weight: Floats | None = None) -> MomentRidge:
        """Fit to rows, shape (n, m) and (n,)."""
        weight = np.ones(len(X)) if sample_weight is None else sample_weight
        total = weight.sum()
        self.centre_, self.constant_ = weight @ X / total, float(weight @ y / total)
        moved, left = X - self.centre_, y - self.constant_
        heavy = moved * weight[:, None]
        values, vectors = np.linalg.eigh(heavy.T @ moved)
        scale = 1 / (np.maximum(values, 0.0)[:, None] + np.array(self.alphas))  # one column a penalty
        turned = vectors.T @ (heavy.T @ left)
        best = 0
        if len(self.alphas) > 1:
            seen = moved @ vectors
            leverage = weight[:, None] * (seen**2 @ scale + 1 / total)
            error = (left[:, None] - seen @ (turned[:, None] * scale)) / np.maximum(1 - leverage, 1e-9)
            best = int((weight @ error**2).argmin())
        self.alpha_ = float(self.alphas[best])
        self.coef_ = vectors @ (turned * scale[:, best])
        return self

    def predict(self, X: Floats) -> Floats:
        """Predictions, shape (n,)."""
        return np.asarray((X - self.centre_) @ self.coef_ + self.constant_)
