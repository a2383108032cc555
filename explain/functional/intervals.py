r"""Standard errors and intervals from influence values, stratified or cluster-robust, for means and ratios of means.

Every detailed term, a value v(s) or a Shapley share, has the form :math:`c - N/D` with N and D estimated by means of
influence values and the same D for all, so one formula serves them all.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from explain.functional.rows import Floats

Codes = NDArray[np.int64]
Status = Literal["ok", "low-overlap", "near-one"]


def covariance(rows: Sequence[Floats], clusters: Sequence[Codes] | None = None) -> Floats:
    r"""Covariance of estimates that are means of influence values.

    .. math:: \frac{Cov(a)}{n_0} + \frac{Cov(b)}{n_1}

    With clusters, centred influence values (divided by n_0 or n_1) are summed over each cluster, whatever the domain of
    its rows, and the outer products of the sums are added up.

    Args:
        rows: Influence values of every sample: both domains, shape (k, n_0) and (k, n_1), or a single sample.
        clusters: Cluster of every row of every sample, codes common to all.

    Returns:
        Shape (k, k).

    Example:
        >>> import numpy as np
        >>> covariance([np.array([[0.0, 2.0]]), np.array([[1.0, 1.0]])])
        array([[1.]])
    """
    centred = [(part - part.mean(-1, keepdims=True)) / part.shape[-1] for part in rows]
    if clusters is None:
        return np.asarray(sum(part @ part.T * (part.shape[-1] / (part.shape[-1] - 1)) for part in centred))
    codes = np.concatenate(clusters)
    present, codes = np.unique(codes, return_inverse=True)
    sums = np.stack([np.bincount(codes, row, len(present)) for row in np.concatenate(centred, axis=-1)])
    return np.asarray(sums @ sums.T * (len(present) / (len(present) - 1)))


class Ratios(NamedTuple):
    r"""Terms :math:`c - N/D` with what their intervals need.

    Attributes:
        constant: c, shape (k,).
        numerator: N, shape (k,).
        denominator: D, common to all.
        var_numerator: Variance of N, shape (k,).
        covariance: Covariance of N and D, shape (k,).
        var_denominator: Variance of D.
    """

    constant: Floats
    numerator: Floats
    denominator: float
    var_numerator: Floats
    covariance: Floats
    var_denominator: float

    @property
    def value(self) -> Floats:
        """The terms, shape (k,)."""
        return self.constant - self.numerator / self.denominator

    @property
    def variance(self) -> Floats:
        r"""Delta method: :math:`[Var(N) - 2R\,Cov(N,D) + R^2\,Var(D)] / D^2` with R = N/D, shape (k,)."""
        ratio = self.numerator / self.denominator
        spread = self.var_numerator - 2 * ratio * self.covariance + ratio**2 * self.var_denominator
        return np.asarray(np.maximum(spread, 0.0) / self.denominator**2)


def ratio_terms(maps: Floats, numerators: Floats, denominator: float, spread: Floats) -> Ratios:
    r"""Linear combinations of values :math:`v(s) = 1 - num(s)/D`.

    Args:
        maps: Rows are combinations: the identity for the values, the Shapley map for the shares; shape (k, S).
        numerators: num(s), shape (S,).
        denominator: D.
        spread: Covariance of all numerators and the denominator, in this order, shape (S + 1, S + 1).

    Returns:
        The k terms as :class:`Ratios`.
    """
    inner = spread[:-1, :-1]
    return Ratios(
        maps.sum(1),
        maps @ numerators,
        float(denominator),
        np.einsum("ks,st,kt->k", maps, inner, maps, optimize=True),
        maps @ spread[:-1, -1],
        float(spread[-1, -1]),
    )


def critical(level: float) -> float:
    """The normal quantile of a two-sided interval: 1.645 for a level of 0.9."""
    return float(norm.ppf((1 + level) / 2))


def wald(value: Floats, variance: Floats, level: float) -> tuple[Floats, Floats]:
    """Value plus and minus a multiple of the standard error.

    Args:
        value: Shape (k,).
        variance: Shape (k,).
        level: In (0, 1).

    Returns:
        Lower and upper ends, shape (k,) each.
    """
    half = critical(level) * np.sqrt(variance)
    return value - half, value + half


def fieller(ratios: Ratios, level: float) -> tuple[Floats, Floats]:
    r"""All values c - R with :math:`(N - R D)^2 \le z^2\,Var(N - R D)`: exact for normal N and D, however weak D is.

    Args:
        ratios: The terms.
        level: In (0, 1).

    Returns:
        Lower and upper ends, shape (k,) each; infinite where D does not differ from 0 at this level.

    Reference:
        Fieller (1954), "Some problems in interval estimation".
    """
    z2 = critical(level) ** 2
    a = ratios.denominator**2 - z2 * ratios.var_denominator
    b = ratios.numerator * ratios.denominator - z2 * ratios.covariance
    c = ratios.numerator**2 - z2 * ratios.var_numerator
    if a <= 0:
        return np.full_like(b, -np.inf), np.full_like(b, np.inf)
    root = np.sqrt(np.maximum(b**2 - a * c, 0.0))
    return ratios.constant - (b + root) / a, ratios.constant - (b - root) / a


def statuses(value: Floats, variance: Floats, overlap: bool) -> Sequence[Status]:
    """Whether to trust each term.

    Args:
        value: Terms, shape (k,).
        variance: Their variances, shape (k,).
        overlap: Whether the domains overlap well enough.

    Returns:
        For each term "low-overlap" where they do not; "near-one" within two standard errors of 1, where influence
        values vanish and normal intervals cover less often than their level (a value that is 1 by definition has the
        variance 0 and is not meant); else "ok".

    Example:
        >>> import numpy as np
        >>> statuses(np.array([0.5, 0.95, 1.0]), np.array([0.01, 0.01, 0.0]), True)
        ['ok', 'near-one', 'ok']
    """
    if not overlap:
        return ["low-overlap"] * len(value)
    near = (value > 1 - 2 * np.sqrt(variance)) & (variance > 0)
    return ["near-one" if flag else "ok" for flag in near]
