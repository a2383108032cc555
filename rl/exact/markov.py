"""Tabular Markov games: robust dynamic programming against targets that are consistent state by state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rl.exact.matrix import solve_matrix
from rl.exact.sets import ConsistentSet, check_policy

Array = NDArray[np.float64]
Sets = Sequence[ConsistentSet]
_MAX_ITERATIONS = 100_000


@dataclass(frozen=True)
class MarkovGame:
    """A two-player Markov game as arrays; the reward is ours, and we maximise it.

    Args:
        transition: Probability of the next state, (S, A, B, S).
        reward: (S, A, B).
        discount: g in [0, 1); below 1 also where every episode ends, because an absorbing state counts as a state.
        start: Distribution of the first state, (S,).

    Raises:
        ValueError: If shapes differ, a row of probabilities does not sum to 1, a reward is not finite or the discount
            is out of range.
    """

    transition: Array
    reward: Array
    discount: float
    start: Array

    def __post_init__(self) -> None:
        shape = (*self.reward.shape, self.reward.shape[0])
        if self.reward.ndim != 3 or self.transition.shape != shape or self.start.shape != shape[:1]:
            raise ValueError(
                f"the game's rewards have shape {self.reward.shape}, transitions {self.transition.shape} and start "
                f"{self.start.shape}, but they must be (S, A, B), (S, A, B, S) and (S,)"
            )
        for name, table in (("transition", self.transition), ("start", self.start)):
            if (table < 0).any() or not np.allclose(table.sum(-1), 1):
                raise ValueError(f"the game's {name} probabilities must be at least 0 and sum to 1 in every row")
        if not np.isfinite(self.reward).all() or not 0 <= self.discount < 1:
            raise ValueError(f"rewards must be finite and the discount, {self.discount}, in [0, 1)")

    def stage(self, values: Array) -> Array:
        """Reward plus discounted value of what follows, (S, A, B), given values (S,)."""
        return np.asarray(self.reward + self.discount * self.transition @ values)

    def values(self, plan: Array, target: Array) -> Array:
        """Value of every state, (S,), under a plan (S, A) and a target (S, B).

        Raises:
            ValueError: If a row of either is no distribution; so in :meth:`value` and :meth:`occupancy`.
        """
        step, reward = self._chain(plan, target)
        return np.asarray(np.linalg.solve(np.eye(len(step)) - self.discount * step, reward), dtype=np.float64)

    def value(self, plan: Array, target: Array) -> float:
        """Expected discounted return from the start."""
        return float(self.start @ self.values(plan, target))

    def occupancy(self, plan: Array, target: Array) -> Array:
        """Discounted share of time in every state, (S,), summing to 1."""
        step, _ = self._chain(plan, target)
        visits = np.linalg.solve(np.eye(len(step)) - self.discount * step.T, self.start)
        return np.asarray((1 - self.discount) * visits, dtype=np.float64)

    def _chain(self, plan: Array, target: Array) -> tuple[Array, Array]:
        """Transitions (S, S) and expected rewards (S,) once both sides are fixed."""
        S, A, B = self.reward.shape
        plan, target = check_policy(plan, "plan", S, A), check_policy(target, "target", S, B)
        joint = plan[:, :, None] * target[:, None, :]
        return np.einsum("sab,sabt->st", joint, self.transition), (joint * self.reward).sum((1, 2))


class RobustSolution(NamedTuple):
    """Values (S,), our plan (S, A), the target's worst consistent policy (S, B) and the value from the start."""

    values: Array
    plan: Array
    target: Array
    value: float


def robust_plan(game: MarkovGame, sets: Sets, tolerance: float = 1e-9) -> RobustSolution:
    r"""The plan with the best worst value over all targets that are consistent at every state.

    The values solve :math:`V(s) = \max_x \min_{m \in U(s)} x^T [r(s) + g P(s) V] m`, a contraction with a stationary
    saddle, so no target with memory does more harm. Each round solves the stage game of every state and then evaluates
    that plan exactly against its worst target (Hoffman and Karp's policy iteration, for consistent sets); values only
    rise from their lower bound.

    Args:
        game: The game.
        sets: U(s), one for each of the S states.
        tolerance: How far values may be from the fixed point.

    Returns:
        The plan, and its values against its worst target. They bound those against the true target if that lies in
        the sets; :func:`rl.exact.certificate.certified_sets` hold it with a stated probability.

    Raises:
        ValueError: If the number of sets differs from that of states.
        RuntimeError: If the iteration does not settle.

    Reference:
        Iyengar (2005), "Robust dynamic programming"; Hoffman and Karp (1966), "On nonterminating stochastic games".
    """
    _check_sets(game, sets)
    values = np.full(len(sets), game.reward.min() / (1 - game.discount))
    for _ in range(_MAX_ITERATIONS):
        stage = game.stage(values)
        solutions = [solve_matrix(matrix, consistent) for matrix, consistent in zip(stage, sets, strict=True)]
        change = np.abs([solution.value for solution in solutions] - values).max()
        plan = np.stack([solution.plan for solution in solutions])
        worst = worst_case(game, plan, sets, tolerance)
        if change <= tolerance * (1 - game.discount):
            return worst
        values = worst.values
    raise RuntimeError(f"robust dynamic programming still moved by {change:.2g} after {_MAX_ITERATIONS} rounds")


def worst_case(game: MarkovGame, plan: Array, sets: Sets, tolerance: float = 1e-9) -> RobustSolution:
    r"""The worst value of a plan of ours: that under the worst consistent target.

    Policy iteration of the target, whose actions at a state are the distributions of its set.

    Args:
        game: The game.
        plan: (S, A).
        sets: U(s), one for each of the S states.
        tolerance: How far values may be above the fixed point.

    Returns:
        The plan with its worst target, and values under exactly that target.

    Raises:
        ValueError: If the number of sets differs from that of states, or a row of the plan is no distribution.
        RuntimeError: If the iteration does not settle.
    """
    _check_sets(game, sets)
    plan = check_policy(plan, "plan", *game.reward.shape[:2])
    values = np.full(len(sets), game.reward.max() / (1 - game.discount))
    for _ in range(_MAX_ITERATIONS):
        cost = np.einsum("sa,sab->sb", plan, game.stage(values))
        target = np.stack([consistent.worst(row) for row, consistent in zip(cost, sets, strict=True)])
        change = np.abs((target * cost).sum(1) - values).max()
        values = game.values(plan, target)
        if change <= tolerance * (1 - game.discount):
            return RobustSolution(values, plan, target, float(game.start @ values))
    raise RuntimeError(f"the worst consistent target still moved by {change:.2g} after {_MAX_ITERATIONS} rounds")


def best_response(game: MarkovGame, target: Array) -> RobustSolution:
    """The pure plan with the best value against one known target (S, B), by policy iteration."""
    values = np.full(len(target), -np.inf)
    plan = np.eye(game.reward.shape[1])[np.zeros(len(target), dtype=int)]
    while True:
        improved = game.values(plan, target)
        if not (improved > values + 1e-12).any():
            return RobustSolution(values, plan, target, float(game.start @ values))
        values = improved
        gain = np.einsum("sab,sb->sa", game.stage(values), target)
        kept = plan.argmax(1)  # changed only for a gain, so that rounding cannot make it cycle
        better = gain.max(1) > gain[np.arange(len(gain)), kept] + 1e-12
        plan = np.eye(gain.shape[1])[np.where(better, gain.argmax(1), kept)]


def robust_plan_by_stage(game: MarkovGame, sets: Sets, horizon: int, final: Array | None = None) -> tuple[Array, Array]:
    """The finite-horizon counterpart, without discount: backward induction with one stage game a state and step.

    Args:
        game: The game; its discount and start are not used.
        sets: U(s), one for each of the S states, the same at every step.
        horizon: Number of steps T, at least 1.
        final: Value of the state after the last step, (S,); 0 if None.

    Returns:
        Values (T + 1, S), the last of them ``final``, and plans (T, S, A).
    """
    _check_sets(game, sets)
    values = [np.zeros(len(sets)) if final is None else final]
    plans = []
    for _ in range(horizon):
        stage = game.reward + game.transition @ values[-1]
        solutions = [solve_matrix(matrix, consistent) for matrix, consistent in zip(stage, sets, strict=True)]
        values.append(np.array([solution.value for solution in solutions]))
        plans.append(np.stack([solution.plan for solution in solutions]))
    return np.stack(values[::-1]), np.stack(plans[::-1])


def _check_sets(game: MarkovGame, sets: Sets) -> None:
    """One set a state."""
    if len(sets) != len(game.start):
        raise ValueError(
            f"there are {len(sets)} consistent sets for {len(game.start)} states, but every state needs one"
        )
