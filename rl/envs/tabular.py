"""Any tabular Markov game as a batched game: what a network trains in is exactly what the exact solvers solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.markov_game import Actions, BatchedGame, State
from rl.exact.markov import MarkovGame

Array = NDArray[np.float64]
_NEAR = 1e-5  # a distance of observations that rounding explains
Policy = Callable[[Tensor, Tensor | None, torch.Generator], Tensor]


class TabularGame(BatchedGame):
    """A :class:`~rl.exact.markov.MarkovGame` played by many episodes at once.

    Args:
        exact: The game as arrays.
        terminal: States in which an episode is done.
        horizon: Number of steps after which every episode is done.
        observations: What both players see in every state, (S, D); the state's number as one-hot vector if None.
        seats: Names of our seat and of the target's.

    Attributes:
        terminal: Whether an episode is done in a state, boolean (S,).

    Raises:
        ValueError: If observations do not fit the states, or two states look the same.
    """

    def __init__(
        self,
        exact: MarkovGame,
        terminal: Sequence[int],
        horizon: int,
        observations: Array | None = None,
        seats: tuple[str, str] = ("agent", "target"),
    ) -> None:
        S, A, B = exact.reward.shape
        table = np.eye(S) if observations is None else observations
        if table.ndim != 2 or len(table) != S or len(np.unique(table.astype(np.float32), axis=0)) != S:
            raise ValueError(
                f"the observations have shape {table.shape}, but they must be (states, D) with {S} rows that all "
                "differ as float32"
            )
        self.exact, self.seats, self.horizon, self.discount = exact, seats, horizon, exact.discount
        self.players = dict.fromkeys(seats, 1)
        self.observation_dim = dict.fromkeys(seats, int(table.shape[1]))
        self.n_actions = dict(zip(seats, (A, B), strict=True))
        self.action_dim = dict.fromkeys(seats, 0)
        self.observations = torch.tensor(table, dtype=torch.float32)
        self.terminal = np.isin(np.arange(S), list(terminal))
        self._terminal = torch.zeros(S, dtype=torch.bool)
        self._terminal[list(terminal)] = True
        self._reward = torch.tensor(exact.reward, dtype=torch.float32)
        self._next = _cumulative(exact.transition)
        self._start = _cumulative(exact.start)

    def reset(self, batch: int, generator: torch.Generator) -> State:
        """``node``, ``done`` and ``time``, (batch,) each."""
        node = _draw(self._start.expand(batch, -1), generator)
        return {"node": node, "done": self._terminal[node], "time": torch.zeros(batch, dtype=torch.int64)}

    def observe(self, state: State) -> dict[str, Tensor]:
        """The state's observation for both seats."""
        seen = self.observations[state["node"]][:, None]
        return dict.fromkeys(self.seats, seen)

    def step(self, state: State, actions: Actions, generator: torch.Generator) -> tuple[State, Tensor, Tensor]:
        """Draw the next state from the table."""
        node, done, (ours, theirs) = state["node"], state["done"], (actions[seat][:, 0] for seat in self.seats)
        reward = self._reward[node, ours, theirs].masked_fill(done, 0)
        following = torch.where(done, node, _draw(self._next[node, ours, theirs], generator))
        time = state["time"] + ~done
        done = done | self._terminal[following] | (time >= self.horizon)
        return {"node": following, "done": done, "time": time}, reward, done

    def ends(self) -> bool:
        """Whether every episode reaches a terminal state within the horizon, so that it is never cut.

        Where it does not, the values of :attr:`exact`, which knows no horizon, are not those of episodes.
        """
        leads = self.exact.transition.max((1, 2)) > 0
        possible = (self.exact.start > 0) & ~self.terminal
        for _ in range(self.horizon):
            possible = leads[possible].any(0) & ~self.terminal
        return not possible.any()

    def impossible(self, seat: str, observations: Tensor) -> Tensor:
        """Observations that are those of no state."""
        return self._nearest(observations)[0] > _NEAR

    def _nearest(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Of observations (N, D), the distance to that of the nearest state, and its number, (N,) each."""
        how = "donot_use_mm_for_euclid_dist"  # products of large numbers leave nothing of small differences
        distance = torch.cdist(observations.double(), self.observations.double(), compute_mode=how)
        return distance.min(1).values, distance.argmin(1)

    def state_counts(self, observations: Tensor, actions: Tensor) -> Array:
        """How often the target took every action at every state, (S, B).

        Args:
            observations: Of the target, (N, D).
            actions: int64 (N,).

        Returns:
            Counts for :func:`rl.exact.consistent_sets` and :func:`rl.exact.certify`.

        Raises:
            ValueError: If an observation is that of no state.
        """
        nearest, node = self._nearest(observations)
        if (nearest > _NEAR).any():
            raise ValueError(f"observation {int(nearest.argmax())} of the data is that of no state of the game")
        counts = np.zeros(self.exact.reward.shape[::2])
        np.add.at(counts, (node.numpy(), actions.numpy()), 1)
        return counts

    def policy(self, table: Array) -> Policy:
        """A policy of either seat from its table (S, actions): takes observations, mask and generator."""
        cumulative = _cumulative(table)

        def act(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
            node = self._nearest(observation[:, 0])[1]
            return _draw(cumulative[node], generator)[:, None]

        return act


def _cumulative(probabilities: Array) -> Tensor:
    """Cumulative probabilities along the last axis that end in exactly 1."""
    total = np.cumsum(probabilities, axis=-1)
    return torch.tensor(total / total[..., -1:])


def _draw(cumulative: Tensor, generator: torch.Generator) -> Tensor:
    """One index a row."""
    uniform = torch.rand(len(cumulative), 1, generator=generator, dtype=torch.float64)
    return (cumulative <= uniform).sum(-1)
