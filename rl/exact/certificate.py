"""A guarantee from finite data: radii that hold at all states at once, and the robust value within them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.exact.markov import MarkovGame, RobustSolution, robust_plan
from rl.exact.sets import ConsistentSet, TotalVariation, consistent_sets

Array = NDArray[np.float64]


class Certificate(NamedTuple):
    """What the data guarantee.

    Attributes:
        solution: The plan; ``solution.value`` is a lower bound of its value against the true target, with probability
            ``confidence`` over the data.
        radii: Total variation radius of every state, (S,); 1 where nothing is known.
        confidence: 1 minus the probability of failure.
    """

    solution: RobustSolution
    radii: Array
    confidence: float


def weissman_radius(count: float, n_actions: int, states: int, failure: float, *, any_count: bool = True) -> float:
    r"""Total variation radius that holds at ``states`` states at once with probability ``1 - failure``.

    :math:`\frac12 \sqrt{2 \ln(\max(2^B - 2, 2)\, S / \delta) / n}`, at most 1. The count is itself random, because it
    depends on what was visited; with ``any_count`` the failure is shared out over all counts, :math:`\delta / (n (n +
    1))`, and the statement holds whatever the count turns out to be. Without it the radius is smaller and only holds
    for a count that was fixed beforehand.

    Args:
        count: Visits n of the state.
        n_actions: B.
        states: How many states the statement is about; those that could be visited, not only those that were.
        failure: :math:`\delta` in (0, 1).
        any_count: Whether the count depends on the data.

    Returns:
        The radius in (0, 1].

    Raises:
        ValueError: If the failure is out of range.

    Example:
        >>> round(weissman_radius(100, 2, 4, 0.05, any_count=False), 4)
        0.1593

    Reference:
        Weissman et al. (2003), "Inequalities for the L1 deviation of the empirical distribution", theorem 2.1.
    """
    if not 0 < failure < 1:
        raise ValueError(
            f"the probability of failure is {failure}, but it must lie strictly between 0 and 1, as in 0.05"
        )
    if count <= 0:
        return 1.0
    share = failure / (count * (count + 1)) if any_count else failure
    subsets = max(2.0**n_actions - 2, 2.0)
    return min(1.0, 0.5 * math.sqrt(2 * math.log(subsets * states / share) / count))


def certify(game: MarkovGame, counts: ArrayLike, failure: float = 0.05, *, any_count: bool = True) -> Certificate:
    r"""The best guarantee that the counts of the target's actions support.

    With probability ``1 - failure`` the true target lies in all balls, so the robust value of the plan bounds its true
    value from below, at every size of the data.

    Args:
        game: The game, known.
        counts: How often the target took every action at every state, (S, B).
        failure: Probability of a wrong certificate, in (0, 1).
        any_count: Leave it on for data whose number of visits is not fixed by design; see :func:`weissman_radius`.

    Returns:
        The plan, its guaranteed value and the radii.

    Raises:
        ValueError: If the counts do not fit the game, or the failure is out of range.
    """
    table = np.asarray(counts, dtype=np.float64)
    S, _, B = game.reward.shape
    if table.shape != (S, B):
        raise ValueError(
            f"the counts have shape {table.shape}, but the game has {S} states and {B} actions of the target"
        )
    states = int((np.ptp(game.reward, axis=2).any(1) | np.ptp(game.transition, axis=2).any((1, 2))).sum())

    def ball(model: Array, n: float) -> ConsistentSet:
        return TotalVariation(model, weissman_radius(n, B, max(states, 1), failure, any_count=any_count))

    sets = consistent_sets(table, ball)
    radii = np.array([getattr(one, "radius", 1.0) for one in sets])
    return Certificate(robust_plan(game, sets), radii, 1 - failure)
