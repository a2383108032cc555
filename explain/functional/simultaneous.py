"""Intervals that hold for many estimates at once: max-t by a multiplier bootstrap of influence functions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from explain.functional.rows import Floats

DRAWS = 20_000


def common_rows(parts: Sequence[Floats], places: Sequence[NDArray[np.int64]], shares: Sequence[Floats]) -> Floats:
    r"""Influence values of several estimates at the rows of a sample that all of them use, or parts of it.

    The j-th estimates are means of :math:`a_i` over the rows of their part with shares :math:`v_i`. Over all rows, with
    shares :math:`u_i`, they are means of :math:`(v_i / u_i)(a_i - \bar a)` up to a constant, 0 elsewhere.

    Args:
        parts: Influence values, shape (k_j, m_j) each.
        places: Which rows of the sample they are of, shape (m_j,) each.
        shares: Shares of the rows: of every part, and last of the whole sample, shape (n,); each sums to 1.

    Returns:
        Shape (sum of k_j, n), with a mean of 0 over the sample.
    """
    *own, whole = shares
    found = np.zeros((sum(len(part) for part in parts), len(whole)))
    start = 0
    for part, place, share in zip(parts, places, own, strict=True):
        found[start : start + len(part), place] = (part - (part @ share)[:, None]) * (share / whole[place])
        start += len(part)
    return found


def each_level(spread: Floats, level: float, *, draws: int = DRAWS, seed: int = 0) -> float:
    r"""The level that every interval must have for all estimates to be covered at once, by the max-t method.

    .. math:: 2 \Phi(c) - 1, \qquad c = \text{the level-quantile of } \max_k |Z_k| / \sqrt{\Sigma_{kk}}, \qquad
        Z = \sum_g S_g e_g, \quad e_g \sim N(0, 1)

    with :math:`S_g` the contributions of a unit (a row or a cluster) to all estimates, so that :math:`\Sigma = \sum_g
    S_g S_g^T`. Given the data Z is normal with this covariance, which is what is drawn: the multipliers themselves are
    not needed. A level in the place of c lets every estimate have degrees of freedom of its own.

    Args:
        spread: Covariance of the estimates, shape (k, k); estimates of variance 0 do not count.
        level: Of the intervals together, in (0, 1).
        draws: Number of draws; 20 000 know c to about one in a hundred.
        seed: Of the draws.

    Returns:
        At least `level`, at most that of Bonferroni, 1 - (1 - level) / k, up to the error of the draws.

    Raises:
        ValueError: If no estimate varies.

    Example:
        >>> round(each_level(np.ones((3, 3)), 0.9), 2), round(each_level(np.eye(10), 0.9), 3)
        (0.9, 0.99)

    Reference:
        Chernozhukov, Chetverikov and Kato (2013), "Gaussian approximations and multiplier bootstrap for maxima of sums
        of high-dimensional random vectors", arXiv 1212.6906.
    """
    varies = np.diag(spread) > 0
    if not varies.any():
        raise ValueError("no estimate has a variance above 0, so there is nothing to cover: give estimates with errors")
    kept = spread[np.ix_(varies, varies)]
    error = np.sqrt(np.diag(kept))
    values, vectors = np.linalg.eigh(kept / np.outer(error, error))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    rng = np.random.default_rng([seed, 11])
    largest = np.abs(rng.standard_normal((draws, len(root))) @ root.T).max(1)
    return max(float(2 * norm.cdf(np.quantile(largest, level)) - 1), level)
