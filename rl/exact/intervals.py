"""Confidence intervals for the probabilities of the target's actions, and the consistent set that they make."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, xlog1py, xlogy
from scipy.stats import beta

from rl.exact.sets import ConsistentSet, Rows, polytope_rows

Array = NDArray[np.float64]
_HALVINGS = 60


class Intervals(ConsistentSet):
    """All distributions whose every probability lies in an interval of its own.

    Args:
        lower: Least probabilities (B,).
        upper: Greatest probabilities (B,).

    Raises:
        ValueError: If no distribution lies in the intervals.

    Example:
        >>> Intervals([0.2, 0.1, 0.0], [0.7, 0.6, 0.5]).worst(np.array([1.0, 0.0, 2.0])).round(4)
        array([0.4, 0.6, 0. ])
    """

    def __init__(self, lower: ArrayLike, upper: ArrayLike) -> None:
        self.lower, self.upper = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
        shapes = self.lower.ndim == 1 and self.lower.shape == self.upper.shape
        if not shapes or not (self.lower >= 0).all() or not (self.lower <= self.upper).all():
            raise ValueError(
                f"the intervals have the bounds {self.lower} and {self.upper}, but they must be two vectors of equal "
                "length with 0 <= lower <= upper"
            )
        if self.lower.sum() > 1 + 1e-9 or self.upper.sum() < 1 - 1e-9:
            raise ValueError(
                f"the lower bounds sum to {self.lower.sum():.6g} and the upper to {self.upper.sum():.6g}, but 1 must "
                "lie between them"
            )
        self.n_actions = len(self.lower)

    def __repr__(self) -> str:
        return f"Intervals(lower={self.lower}, upper={self.upper})"

    def worst(self, cost: Array) -> Array:
        """The least probabilities, and what is left of 1 to the cheapest actions first."""
        worst, left = self.lower.copy(), 1 - self.lower.sum()
        for action in np.argsort(cost):
            added = min(self.upper[action] - worst[action], max(left, 0.0))
            worst[action] += added
            left -= added
        return worst

    def rows(self) -> Rows:
        """M >= lower and -m >= -upper."""
        eye = np.eye(self.n_actions)
        return polytope_rows(
            self.n_actions, least=np.vstack([eye, -eye]), least_bound=np.concatenate([self.lower, -self.upper])
        )


def confidence_intervals(counts: ArrayLike, failure: float, *, any_count: bool = True) -> tuple[Array, Array]:
    r"""Intervals for the probabilities of actions from how often each was taken.

    Each interval misses its probability with probability at most ``failure``. With ``any_count`` that holds whatever
    decided how many actions were seen, such as the target's own earlier actions: p is outside where

    .. math::
       \frac{B(k + \frac12, n - k + \frac12)}{B(\frac12, \frac12)\, p^k (1 - p)^{n - k}} \ge \frac1\delta,

    the likelihood of the data under a Beta(1/2, 1/2) mixture over that under p. Under p this is a martingale with mean
    1, which ever reaches :math:`1/\delta` with probability at most :math:`\delta` (Ville's inequality). Without it the
    number n must have been fixed beforehand, and the interval is Clopper and Pearson's. Both follow the binomial law
    rather than its widest case, so they are narrow where an action is rare or common.

    Args:
        counts: Of every action, (..., B), at least 0.
        failure: :math:`\delta` of each interval, in (0, 1); share the failure of a whole statement out over intervals.
        any_count: Whether the number of visits may depend on the data.

    Returns:
        Lower and upper bounds, (..., B) each; 0 and 1 where nothing was seen.

    Raises:
        ValueError: If the failure is out of range, or a count is negative or not finite.

    Example:
        >>> lower, upper = confidence_intervals([80, 20], 0.05)
        >>> lower.round(3).tolist(), upper.round(3).tolist()
        ([0.648, 0.091], [0.909, 0.352])

    Reference:
        Robbins (1970), "Statistical methods related to the law of the iterated logarithm"; Clopper and Pearson (1934),
        "The use of confidence or fiducial limits illustrated in the case of the binomial".
    """
    if not 0 < failure < 1:
        raise ValueError(
            f"the probability of failure is {failure}, but it must lie strictly between 0 and 1, as in 0.05"
        )
    k = np.asarray(counts, dtype=np.float64)
    if not np.isfinite(k).all() or (k < 0).any():
        raise ValueError("the counts hold a negative or not finite number, but an action was taken 0, 1, 2, ... times")
    n = np.broadcast_to(k.sum(-1, keepdims=True), k.shape)
    seen = n > 0
    if not any_count:
        with np.errstate(invalid="ignore"):
            lower = np.where(seen & (k > 0), beta.ppf(failure / 2, k, n - k + 1), 0.0)
            upper = np.where(seen & (k < n), beta.ppf(1 - failure / 2, k + 1, n - k), 1.0)
        return lower, upper
    share = np.divide(k, n, out=np.full(k.shape, 0.5), where=seen)
    budget = math.log(1 / failure) - betaln(k + 0.5, n - k + 0.5) + betaln(0.5, 0.5)

    def outside(p: Array) -> NDArray[np.bool_]:
        return np.asarray(-xlogy(k, p) - xlog1py(n - k, -p) > budget)

    def boundary(end: float) -> Array:
        out, inside = np.full(k.shape, end), share
        for _ in range(_HALVINGS):
            middle = (out + inside) / 2
            beyond = outside(middle)
            out, inside = np.where(beyond, middle, out), np.where(beyond, inside, middle)
        # The bound is on the outer side; an end that is itself inside the interval is the bound.
        return np.where(outside(np.full(k.shape, end)), out, end)

    return boundary(0.0), boundary(1.0)


def intervals_needed(n_actions: int) -> int:
    """How many intervals a statement about so many actions is made of: two actions share one."""
    return {1: 0, 2: 1}.get(n_actions, n_actions)
