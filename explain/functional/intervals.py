r"""Standard errors and intervals from influence values, stratified or cluster-robust, for means and ratios of means.

Every detailed term, a value v(s) or a Shapley share, has the form :math:`c - N/D` with N and D estimated by means of
influence values and the same D for all, so one formula serves them all.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from explain.functional.rows import Floats

Codes = NDArray[np.int64]
Status = Literal["ok", "no-shift", "weak-shift", "low-overlap", "few-clusters", "few-rows", "near-one"]
NEAR_ONE = 0.85
REACH = 3.0  # standard errors within which a value cannot be told from 1


def covariance(
    rows: Sequence[Floats], clusters: Sequence[Codes] | None = None, weights: Sequence[Floats] | None = None
) -> Floats:
    r"""Covariance of estimates that are (weighted) means of influence values.

    With :math:`v_i` the share of a row in the weight of its domain (:math:`1/n_d` without weights), a unit g (a
    cluster, or a row where there are none) contributes

    .. math:: S_g = \sum_d \Big(1 - \sum_{i\in g,d} v_i\Big)^{-1/2} \sum_{i\in g,d} v_i\,(a_i - \bar a_d),
        \qquad Cov = \sum_g S_g S_g^T

    The factor is the bias-reduced correction CR2, which has this closed form for means: it makes the covariance
    unbiased for rows of equal variance over weight. Without clusters and weights the result is the textbook's
    :math:`Cov(a)/n_0 + Cov(b)/n_1`. A cluster's rows are summed whatever their domain.

    Args:
        rows: Influence values of every sample: both domains, shape (k, n_0) and (k, n_1), or a single sample.
        clusters: Cluster of every row of every sample, codes common to all.
        weights: Weights of the rows, on any scale; equal when not given.

    Returns:
        Shape (k, k).

    Raises:
        ValueError: If a domain has a single cluster, whose error nothing tells.

    Reference:
        Bell and McCaffrey (2002), "Bias reduction in standard errors for linear regression with multi-stage samples".

    Example:
        >>> import numpy as np
        >>> covariance([np.array([[0.0, 2.0]]), np.array([[1.0, 1.0]])])
        array([[1.]])
    """
    sums: list[Floats] = []
    codes: list[Codes] = []
    for side, part in enumerate(rows):
        share = np.full(part.shape[-1], 1 / part.shape[-1]) if weights is None else weights[side] / weights[side].sum()
        moved = share * (part - (part @ share)[..., None])
        if clusters is not None:
            present, code = np.unique(clusters[side], return_inverse=True)
            share = np.bincount(code, share)
            moved = np.stack([np.bincount(code, row, len(present)) for row in moved])
            codes.append(present)
        if share.max() > 1 - 1e-12:
            raise ValueError("a domain has a single unit, but an error needs two: give a domain two rows or clusters")
        sums.append(moved / np.sqrt(1 - share))
    if clusters is None:
        return np.asarray(sum(part @ part.T for part in sums))
    _, code = np.unique(np.concatenate(codes), return_inverse=True)
    whole = np.stack([np.bincount(code, row) for row in np.concatenate(sums, axis=-1)])
    return np.asarray(whole @ whole.T)


def effective(weights: Floats, clusters: Codes | None = None) -> float:
    r"""Effective number of rows, or of clusters: :math:`(\sum_g u_g)^2 / \sum_g u_g^2` with u_g the weight of a unit.

    Args:
        weights: Of the rows, shape (n,), positive.
        clusters: Cluster of every row; every row is one of its own when not given.

    Returns:
        From 1 to the number of units.

    Reference:
        Kish (1965), "Survey sampling".

    Example:
        >>> import numpy as np
        >>> effective(np.array([1.0, 1.0, 2.0])), effective(np.array([1.0, 1.0, 2.0]), np.array([0, 0, 1]))
        (2.6666666666666665, 2.0)
    """
    units = weights if clusters is None else np.bincount(clusters, weights)
    return float(units.sum() ** 2 / (units**2).sum())


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


def critical(level: float, freedom: float = np.inf) -> float:
    """The quantile of a two-sided interval: 1.645 for a level of 0.9, more with few degrees of freedom.

    Args:
        level: In (0, 1).
        freedom: Degrees of freedom of the standard error, at least 1: Student's t, which is normal at infinity.
    """
    return float(student.ppf((1 + level) / 2, max(freedom, 1.0)))


def wald(value: Floats, variance: Floats, level: float, freedom: float = np.inf) -> tuple[Floats, Floats]:
    """Value plus and minus a multiple of the standard error.

    Args:
        value: Shape (k,).
        variance: Shape (k,).
        level: In (0, 1).
        freedom: Degrees of freedom of the standard error.

    Returns:
        Lower and upper ends, shape (k,) each.
    """
    half = critical(level, freedom) * np.sqrt(variance)
    return value - half, value + half


def fieller(ratios: Ratios, level: float, freedom: float = np.inf) -> tuple[Floats, Floats]:
    r"""All values c - R with :math:`(N - R D)^2 \le z^2\,Var(N - R D)`: exact for normal N and D, however weak D is.

    Args:
        ratios: The terms.
        level: In (0, 1).
        freedom: Degrees of freedom of the variances.

    Returns:
        Lower and upper ends, shape (k,) each; infinite where D does not differ from 0 at this level.

    Reference:
        Fieller (1954), "Some problems in interval estimation".
    """
    z2 = critical(level, freedom) ** 2
    a = ratios.denominator**2 - z2 * ratios.var_denominator
    b = ratios.numerator * ratios.denominator - z2 * ratios.covariance
    c = ratios.numerator**2 - z2 * ratios.var_numerator
    if a <= 0:
        return np.full_like(b, -np.inf), np.full_like(b, np.inf)
    root = np.sqrt(np.maximum(b**2 - a * c, 0.0))
    return ratios.constant - (b + root) / a, ratios.constant - (b - root) / a


def at_most_one(value: Floats, variance: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats, Floats]:
    """Values of subsets and their intervals, which end at 1: what is left of a shift is a mean square.

    Above 0.85 an interval that is within three standard errors of 1 reaches to 1. What is left is so little there that
    its influence values vanish and its estimate is too large for what the regressions missed, which is squared.

    Args:
        value: Shape (k,).
        variance: Their variances, shape (k,).
        low: Lower ends.
        high: Upper ends.

    Returns:
        Values, lower and upper ends, shape (k,) each.

    Example:
        >>> import numpy as np
        >>> value, se = np.array([0.5, 0.96, 1.02]), np.full(3, 0.02)
        >>> at_most_one(value, se**2, value - se, value + se)[2].tolist()
        [0.52, 1.0, 1.0]
    """
    close = (value > NEAR_ONE) & (value + REACH * np.sqrt(variance) >= 1)
    return np.minimum(value, 1.0), np.minimum(low, 1.0), np.where(close, 1.0, np.minimum(high, 1.0))


def statuses(value: Floats, variance: Floats, worst: Status = "ok") -> Sequence[Status]:
    """Whether to trust each share of a variance.

    Args:
        value: Terms, shape (k,).
        variance: Their variances, shape (k,).
        worst: What the data as a whole deserve, such as "low-overlap"; it stands above everything.

    Returns:
        For each term what the data deserve; if that is "ok", "near-one" within three standard errors of 1 or above
        0.85, where influence values vanish and what is left of the error is no longer normal (a value that is 1 by
        definition has the variance 0 and is not meant).

    Example:
        >>> import numpy as np
        >>> statuses(np.array([0.5, 0.95, 1.0]), np.array([0.01, 0.01, 0.0]))
        ['ok', 'near-one', 'ok']
    """
    if worst != "ok":
        return [worst] * len(value)
    near = (value > np.minimum(1 - REACH * np.sqrt(variance), NEAR_ONE)) & (variance > 0)
    return ["near-one" if flag else "ok" for flag in near]
