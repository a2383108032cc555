"""What finite data certify: intervals that hold at all states at once, and the worst value within them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.exact.extensive import Key, SequenceGame
from rl.exact.intervals import Intervals, confidence_intervals, intervals_needed
from rl.exact.markov import MarkovGame, RobustSolution, robust_plan
from rl.exact.sets import ConsistentSet, Free

Array = NDArray[np.float64]


class Certificate(NamedTuple):
    """What the data guarantee.

    Attributes:
        solution: The plan; ``solution.value`` is a lower bound of its value against the true target, with probability
            ``confidence`` over the data.
        sets: What the target may do at every state, S of them.
        confidence: 1 minus the probability of failure.
    """

    solution: RobustSolution
    sets: list[ConsistentSet]
    confidence: float


def weissman_radius(count: float, n_actions: int, states: int, failure: float, *, any_count: bool = True) -> float:
    r"""Total variation radius that holds at ``states`` states at once with probability ``1 - failure``.

    :math:`\frac12 \sqrt{2 \ln(\max(2^B - 2, 2)\, S / \delta) / n}`, at most 1. The count is itself random, because it
    depends on what was visited; with ``any_count`` the failure is shared out over all counts, :math:`\delta / (n (n +
    1))`, and the statement holds whatever the count turns out to be. Without it the radius is smaller and only holds
    for a count that was fixed beforehand. :func:`certified_sets` are tighter: the radius is that of the widest law.

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
    _checked(failure)
    if count <= 0:
        return 1.0
    share = failure / (count * (count + 1)) if any_count else failure
    subsets = max(2.0**n_actions - 2, 2.0)
    return min(1.0, 0.5 * math.sqrt(2 * math.log(subsets * states / share) / count))


def certified_sets(
    game: MarkovGame, counts: ArrayLike, failure: float = 0.05, *, any_count: bool = True
) -> list[ConsistentSet]:
    r"""Sets that hold the true target at all states at once, with probability ``1 - failure`` over the data.

    The failure is shared out evenly (Bonferroni) over the intervals of all states at which the target's action matters:
    one interval of two actions, B of more; see :func:`rl.exact.intervals.confidence_intervals`. The statement is about
    a stationary target, one whose policy is the same at every visit.

    Args:
        game: The game, known.
        counts: How often the target took every action at every state, (S, B).
        failure: Probability that some set misses the target, in (0, 1).
        any_count: Leave it on for data whose number of visits is not fixed by design.

    Returns:
        S sets; free where nothing was seen.

    Raises:
        ValueError: If the counts do not fit the game, or the failure is out of range.
    """
    table = np.asarray(counts, dtype=np.float64)
    S, _, B = game.reward.shape
    if table.shape != (S, B):
        raise ValueError(
            f"the counts have shape {table.shape}, but the game has {S} states and {B} actions of the target"
        )
    matter = (np.ptp(game.reward, axis=2) > 0).any(1) | (np.ptp(game.transition, axis=2) > 0).any((1, 2))
    intervals = max(int(matter.sum()) * intervals_needed(B), 1)
    lower, upper = confidence_intervals(table, _checked(failure) / intervals, any_count=any_count)
    seen = table.sum(1) > 0
    return [Intervals(*row) if any_seen else Free(B) for *row, any_seen in zip(lower, upper, seen, strict=True)]


def certified_information_sets(
    game: SequenceGame, counts: Mapping[Key, ArrayLike], failure: float = 0.05, seat: int = 0
) -> dict[Key, ConsistentSet]:
    """The counterpart of :func:`certified_sets` for extensive-form games: one set for every visited information set.

    Args:
        game: The game.
        counts: How often the target took every legal action, by its information set.
        failure: Probability that some set misses the target, in (0, 1); shared out over all information sets of the
            target, those that the data never visit included.
        seat: Which player we are, 0 or 1.

    Returns:
        Sets by information set.

    Raises:
        ValueError: If the failure is out of range.
    """
    needed = sum(intervals_needed(len(one.actions)) for one in game.information_sets[1 - seat].values())
    share = _checked(failure) / max(needed, 1)
    return {key: Intervals(*confidence_intervals(row, share)) for key, row in counts.items()}


def certify(game: MarkovGame, counts: ArrayLike, failure: float = 0.05, *, any_count: bool = True) -> Certificate:
    r"""The plan with the best certified value: all that the counts of the target's actions support.

    With probability ``1 - failure`` the true target lies in all of :func:`certified_sets`, so the worst value of the
    plan within them bounds its true value from below, at every size of the data.

    Args:
        game: The game, known.
        counts: How often the target took every action at every state, (S, B).
        failure: Probability of a wrong certificate, in (0, 1).
        any_count: Leave it on for data whose number of visits is not fixed by design.

    Returns:
        The plan, its guaranteed value and the sets.

    Raises:
        ValueError: If the counts do not fit the game, or the failure is out of range.
    """
    sets = certified_sets(game, counts, failure, any_count=any_count)
    return Certificate(robust_plan(game, sets), sets, 1 - failure)


def _checked(failure: float) -> float:
    """A probability of failure."""
    if not 0 < failure < 1:
        raise ValueError(
            f"the probability of failure is {failure}, but it must lie strictly between 0 and 1, as in 0.05"
        )
    return failure
