"""Two samples side by side, one array for each domain; weighted means and quantiles."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Rows(NamedTuple):
    """A quantity with a value for every row of both domains; influence values have the rows as their last axis.

    Attributes:
        source: Values at the rows of the source domain, n_0 of them.
        target: Values at the rows of the target domain, n_1 of them.
    """

    source: Floats
    target: Floats


def stack(parts: Sequence[Rows]) -> Rows:
    """Influence values of several quantities as one, shape (k, n_0) and (k, n_1)."""
    return Rows(np.stack([part.source for part in parts]), np.stack([part.target for part in parts]))


def mean(rows: Rows, weights: Rows | None = None) -> Floats:
    r"""The estimate behind uncentred influence values: the mean over source rows plus the mean over target rows.

    .. math:: \hat\theta = P_0\,a(O) + P_1\,b(O)

    Args:
        rows: a and b, shape (..., n_0) and (..., n_1).
        weights: Weights of the rows of a weighted population, shape (n_0,) and (n_1,), each summing to 1; equal weights
            when not given.

    Returns:
        The estimates, shape (...).

    Example:
        >>> import numpy as np
        >>> float(mean(Rows(np.array([1.0, 3.0]), np.array([5.0]))))
        7.0
    """
    if weights is None:
        total: Floats = rows.source.mean(-1) + rows.target.mean(-1)
    else:
        total = rows.source @ weights.source + rows.target @ weights.target
    return total


def quantile(values: Floats, q: float, weights: Floats | None = None) -> float:
    """The smallest value that at least a share q of the (weighted) rows do not exceed.

    Args:
        values: Shape (n,).
        q: In [0, 1].
        weights: Weights of the rows, on any scale; a row of weight 2 counts as two rows.

    Example:
        >>> import numpy as np
        >>> quantile(np.array([1.0, 2.0, 3.0]), 0.5), quantile(np.array([1.0, 2.0, 3.0]), 0.5, np.array([3, 1, 1]))
        (2.0, 1.0)
    """
    return quantiles(values, [q], weights)[0]


def quantiles(values: Floats, shares: Iterable[float], weights: Floats | None = None) -> list[float]:
    """Several quantiles of the same values, which are sorted once; see :func:`quantile`.

    Args:
        values: Shape (n,).
        shares: In [0, 1].
        weights: Weights of the rows, on any scale.
    """
    if weights is None:
        ordered, below = np.sort(values), np.arange(1, len(values) + 1)
    else:
        order = np.argsort(values, kind="stable")
        ordered, below = values[order], np.cumsum(weights[order])
    # Rounding of the sum must not move to the next row.
    places = (np.searchsorted(below, share * below[-1] * (1 - 1e-12)) for share in shares)
    return [float(ordered[min(int(place), len(ordered) - 1)]) for place in places]
