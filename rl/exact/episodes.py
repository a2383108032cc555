"""The worst value of episodes that end after a number of steps, also where our own plan is known only by its draws."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from rl.exact.intervals import Intervals
from rl.exact.markov import MarkovGame
from rl.exact.sets import ConsistentSet, check_policy

Array = NDArray[np.float64]
MOST_ACTIONS = 6  # of ours, where the plan is known by intervals: their corners are listed


def worst_episode(
    game: MarkovGame,
    plan: Array | Sequence[Intervals],
    sets: Sequence[ConsistentSet],
    terminal: NDArray[np.bool_],
    horizon: int,
) -> float:
    r"""A lower bound of the discounted return of an episode, over all targets that are consistent at every state.

    Backward induction, :math:`V_t(s) = \min_{x \in X(s), m \in U(s)} x^T [r(s) + g P(s) V_{t+1}] m`, with
    :math:`V_T = 0` and 0 in terminal states. The minimum of a bilinear form is at corners of either set. It is exact
    for a target that may choose anew at every step, and a lower bound for one that is the same at every step.

    Args:
        game: The game.
        plan: Ours, (S, A), or an interval for every probability where it is known by draws.
        sets: U(s), one for each of the S states.
        terminal: States in which an episode is over, boolean (S,).
        horizon: Steps after which every episode is, T.

    Raises:
        ValueError: If shapes differ, a row of the plan is no distribution, or intervals are given for more than six
            actions.
    """
    S, A, _ = game.reward.shape
    if len(sets) != S or len(plan) != S or len(terminal) != S:
        raise ValueError(
            f"there are {len(sets)} consistent sets, {len(plan)} rows of the plan and {len(terminal)} marks of "
            f"terminal states, but the game has {S} states, each of which needs one"
        )
    if isinstance(plan, np.ndarray):
        corners = [row[None] for row in check_policy(plan, "plan", S, A)]
    else:
        corners = [_corners(one) for one in plan]
    values = np.zeros(S)
    for _ in range(horizon):
        stage = game.stage(values)
        following = np.zeros(S)
        for state in np.flatnonzero(~terminal).tolist():
            costs = corners[state] @ stage[state]
            following[state] = min(float(sets[state].worst(cost) @ cost) for cost in costs)
        values = following
    return float(game.start @ values)


def _corners(intervals: Intervals) -> Array:
    """Corners of the distributions within intervals: for every order of actions, as much as possible to the first."""
    A = intervals.n_actions
    if A > MOST_ACTIONS:
        raise ValueError(
            f"the plan is known by draws and has {A} actions, but at most {MOST_ACTIONS} can be; give a policy whose "
            "probabilities can be asked for"
        )
    return np.unique([intervals.worst(np.argsort(order).astype(float)) for order in permutations(range(A))], axis=0)
