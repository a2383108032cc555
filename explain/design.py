"""What learners of plain numbers see: missing values filled and marked, categories one-hot, a quadratic basis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from explain.functional.rows import Floats, quantiles

Mask = NDArray[np.bool_]
_KNOTS = (0.2, 0.5, 0.8)  # quantiles of a number at which its slope may change
_CROSSED_KNOTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # where columns are crossed
_ROWS_PER_TERM = 20  # of the basis, before products with columns of zeros and ones are left out
_ROWS_PER_CROSSING = 10  # what is learnt from crossed columns is a regression, which hardly has noise
_MOST_CROSSED = 1000  # products with crossed terms; beyond, time grows faster than anything is learnt
BLOCK = 25_000  # rows whose basis is made as a whole
PIECE = 2_000  # rows of it that are in memory at once where there are more


def blocks_of(rows: int) -> list[slice]:
    """One slice up to `BLOCK` rows, else slices of at most `PIECE` rows."""
    step = BLOCK if rows <= BLOCK else PIECE
    return [slice(start, start + step) for start in range(0, max(rows, 1), step)]


class Plain(BaseEstimator):  # type: ignore[misc]
    """Plain numbers from columns with codes of categories and missing values.

    Numbers come first, with the mean in the place of missing values; then a column of zeros and ones for each number
    that is missing somewhere, and one for each category seen in training.

    Args:
        categorical: Which columns hold codes of categories, shape (m,).
    """

    def __init__(self, categorical: Mask) -> None:
        self.categorical = categorical

    def fit(self, X: Floats, weight: Floats | None = None) -> Plain:
        """Learn means, categories, and where something is missing."""
        numbers = X[:, ~self.categorical]
        missing = np.isnan(numbers)
        self.holes_ = np.flatnonzero(missing.any(0))
        mass = np.where(missing, 0.0, 1.0 if weight is None else weight[:, None])
        self.fill_ = (np.where(missing, 0.0, numbers) * mass).sum(0) / np.maximum(mass.sum(0), 1e-300)
        self.levels_ = [np.unique(X[:, column]) for column in np.flatnonzero(self.categorical)]
        return self

    def transform(self, X: Floats) -> Floats:
        """The numbers at the rows of X."""
        numbers = X[:, ~self.categorical]
        missing = np.isnan(numbers)
        parts = [np.where(missing, self.fill_, numbers), missing[:, self.holes_].astype(np.float64)]
        for column, levels in zip(np.flatnonzero(self.categorical), self.levels_, strict=True):
            parts.append((X[:, column, None] == levels).astype(np.float64))
        return np.hstack(parts)


class Quadratic(BaseEstimator):  # type: ignore[misc]
    """Standardised columns, squares and bends of numbers, and products of all pairs, also with zeros and ones.

    A number's slope may change at three of its quantiles, five where columns are crossed, where there are 20 rows for
    each term. A column of zeros and ones is its own square. Products that never vary (of two categories of one
    column) are left out. Products with zeros and ones are many where categories are: there is room for one term in 20
    rows, and those that vary most stay.

    Args:
        crossed: Columns whose terms (themselves, squares and bends) are also multiplied with the whole basis of the
            others, or with the other columns alone where rows are few, or not at all: what a source risk says about
            a label is another thing at every value of the variables that it was learnt from.
    """

    def __init__(self, crossed: tuple[int, ...] = ()) -> None:
        self.crossed = crossed

    def fit(self, X: Floats, y: object = None, sample_weight: Floats | None = None) -> Quadratic:
        """Learn scales, and which products to take."""
        weight = np.full(len(X), 1 / len(X)) if sample_weight is None else sample_weight / sample_weight.sum()
        self.dummy_ = ((X == 0) | (X == 1)).all(0)
        self.centre_, self.scale_ = np.where(self.dummy_, 0.0, weight @ X), np.ones(X.shape[1])
        spread = np.sqrt(weight @ (X - self.centre_) ** 2)
        self.scale_[~self.dummy_] = np.where(spread > 0, spread, 1.0)[~self.dummy_]
        U = (X - self.centre_) / self.scale_
        self.squares_ = np.flatnonzero(~self.dummy_)
        left, right = np.triu_indices(X.shape[1], 1)
        mixed = self.dummy_[left] | self.dummy_[right]
        varies = np.zeros(len(left))
        for pair in np.flatnonzero(mixed):
            product = U[:, left[pair]] * U[:, right[pair]]
            varies[pair] = weight @ (product - weight @ product) ** 2
        room = len(X) // _ROWS_PER_TERM - X.shape[1] - len(self.squares_) - int((~mixed).sum())
        knots = _CROSSED_KNOTS if self.crossed else _KNOTS
        self.knots_ = [
            (column, knot)
            for column in self.squares_
            for knot in sorted(set(quantiles(U[:, column], knots, sample_weight)))
        ]
        if len(self.knots_) > room:  # few rows: no bends
            self.knots_ = []
        room -= len(self.knots_)
        ranked = np.lexsort([np.arange(len(left)), -varies.round(12)])
        ranked = ranked[mixed[ranked] & (varies[ranked] > 1e-12)][: max(room, 0)]
        chosen = np.sort(np.concatenate([np.flatnonzero(~mixed), ranked]))
        self.left_, self.right_ = left[chosen], right[chosen]
        self.cross_: tuple[tuple[int, int], ...] = ()
        origin = self._origin(X.shape[1])
        first, others = (np.flatnonzero(origin == inside) for inside in (1, 0))
        room = min(len(X) // _ROWS_PER_CROSSING - len(origin), _MOST_CROSSED)
        for partners in (others, others[others < X.shape[1]]):
            if not self.cross_ and len(first) * len(partners) <= room:
                self.cross_ = tuple((int(a), int(b)) for a in first for b in partners)
        parts = blocks_of(len(X))
        once = [self._basis(X)] if len(parts) == 1 else None  # many blocks are made again for each sum
        self.mean_ = sum(weight[rows] @ basis for rows, basis in zip(parts, once or self._each(X), strict=True))
        squares = (
            weight[rows] @ (basis - self.mean_) ** 2 for rows, basis in zip(parts, once or self._each(X), strict=True)
        )
        self.spread_ = np.sqrt(sum(squares))
        self.spread_[self.spread_ < 1e-12] = 1.0
        return self

    def _each(self, X: Floats) -> Iterator[Floats]:
        return (self._basis(X[rows]) for rows in blocks_of(len(X)))

    def _basis(self, X: Floats) -> Floats:
        U = (X - self.centre_) / self.scale_
        hinges = [np.maximum(U[:, column] - knot, 0.0) for column, knot in self.knots_]
        bent = np.stack(hinges, axis=1) if hinges else np.empty((len(U), 0))
        plain = np.hstack([U, U[:, self.squares_] ** 2, bent, U[:, self.left_] * U[:, self.right_]])
        if not self.cross_:
            return plain
        first, second = np.array(self.cross_).T
        return np.hstack([plain, plain[:, first] * plain[:, second]])

    def _origin(self, columns: int) -> NDArray[np.int64]:
        """For every term 1 if it is of crossed columns alone, 0 if of others alone, -1 if of both."""
        inside = np.isin(np.arange(columns), self.crossed).astype(np.int64)
        knots = np.array([column for column, _ in self.knots_], dtype=np.int64)
        left, right = inside[self.left_], inside[self.right_]
        pairs = np.where(left == right, left, -1)
        return np.concatenate([inside, inside[self.squares_], inside[knots], pairs])

    def transform(self, X: Floats) -> Floats:
        """The basis at the rows of X, standardised."""
        return np.asarray((self._basis(X) - self.mean_) / self.spread_)
