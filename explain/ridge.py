"""Ridge regression whose penalty is chosen by leaving each row out, from the moments of the columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin

from explain.functional.rows import Floats

ALPHAS = tuple(np.logspace(-1, 4, 6))


class MomentRidge(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Ridge regression; of several penalties the one with the least leave-one-out error.

    scikit-learn's `RidgeCV` does the same by a decomposition of the whole matrix, an order of magnitude slower where
    rows are many: the eigenvectors of the columns' moments are enough. They are found once for several outcomes, each
    of which has the penalty and the coefficients that it would have alone.

    Args:
        alphas: Penalties to choose from, positive; the constant has none.
    """

    def __init__(self, alphas: Sequence[float] = ALPHAS) -> None:
        self.alphas = alphas

    def fit(self, X: Floats, y: Floats, sample_weight: Floats | None = None) -> MomentRidge:
        """Fit to rows, shape (n, m), and outcomes, shape (n,) or (n, k)."""
        return self.fit_blocks(lambda: [X], y, sample_weight)

    def fit_blocks(
        self, blocks: Callable[[], Iterable[Floats]], y: Floats, sample_weight: Floats | None = None
    ) -> MomentRidge:
        """Fit to rows that are not in memory together.

        Args:
            blocks: Gives the columns of all rows, block by block, whenever it is called: three times.
            y: Outcomes of all rows, shape (n,) or (n, k).
            sample_weight: Weights of all rows.
        """
        weight = np.ones(len(y)) if sample_weight is None else sample_weight
        outcomes = y[:, None] if y.ndim == 1 else y
        total = weight.sum()
        self.centre_ = sum(heavy @ X for X, heavy, _ in _with(blocks, weight, outcomes)) / total
        constants = weight @ outcomes / total
        moments, towards = 0.0, 0.0
        for X, mass, outcome in _with(blocks, weight, outcomes):
            moved = X - self.centre_
            heavy = moved * mass[:, None]
            moments, towards = moments + heavy.T @ moved, towards + heavy.T @ (outcome - constants)
        values, vectors = np.linalg.eigh(moments)
        scale = 1 / (np.maximum(values, 0.0)[:, None] + np.array(self.alphas))  # one column a penalty
        turned = vectors.T @ towards
        errors = np.zeros((outcomes.shape[1], len(self.alphas)))
        for X, mass, outcome in _with(blocks, weight, outcomes) if len(self.alphas) > 1 else ():
            seen = (X - self.centre_) @ vectors
            leverage = mass[:, None] * (seen**2 @ scale + 1 / total)
            kept = np.maximum(1 - leverage, 1e-9)
            for k, here in enumerate((outcome - constants).T):
                errors[k] += mass @ ((here[:, None] - seen @ (turned[:, [k]] * scale)) / kept) ** 2
        best = errors.argmin(1)
        alpha, coef = np.array(self.alphas)[best], vectors @ (turned * scale[:, best])
        first = 0 if y.ndim == 1 else slice(None)
        self.alpha_, self.constant_, self.coef_ = alpha[first], constants[first], coef[:, first]
        return self

    def predict(self, X: Floats) -> Floats:
        """Predictions, shape (n,) or (n, k)."""
        return np.asarray((X - self.centre_) @ self.coef_ + self.constant_)


def _with(blocks: Callable[[], Iterable[Floats]], weight: Floats, y: Floats) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Every block with the weights and outcomes of its rows."""
    start = 0
    for X in blocks():
        stop = start + len(X)
        yield X, weight[start:stop], y[start:stop]
        start = stop
