"""The protocol of a batched two-seat Markov game: we take one seat, the target of adaptation the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

State = dict[str, Tensor]
Actions = Mapping[str, Tensor]


class BatchedGame(ABC):
    r"""Many episodes of a two-seat Markov game at once, in torch.

    A seat is a side of the game, held by one player or by a team of ``players`` that act at the same time, each on its
    own observation. The first seat is ours, the second is the target's, of whom only data are known. The reward is
    **ours**; an adversary earns its negative, whatever the game pays the target.

    A game keeps nothing between calls: the state holds everything, and all chance comes from the generator, so the same
    generator state and the same actions give the same episode, bit by bit. An episode that is done stays in the batch:
    its state does not change, its reward is 0 and it stays done. After ``horizon`` steps every episode is done.

    A subclass sets the attributes and defines the three abstract methods :meth:`reset`, :meth:`observe` and
    :meth:`step`; :meth:`action_mask`, :meth:`active`, :meth:`impossible` and :meth:`frame` may be overridden.

    Attributes:
        seats: Names of our seat and of the target's.
        players: Players of every seat, at least 1.
        observation_dim: Length of a player's observation, by seat.
        n_actions: Number of discrete actions, by seat; 0 where actions are real vectors.
        action_dim: Length of a real action vector, each entry in [-1, 1], by seat; 0 where actions are discrete.
        horizon: After how many steps the last episode is done.
        discount: In (0, 1].
        device: Where states and rewards live.
        at_once: The largest batch that :meth:`reset` takes, or None for any; more episodes are played one batch after
            the other.
    """

    seats: tuple[str, str]
    players: Mapping[str, int]
    observation_dim: Mapping[str, int]
    n_actions: Mapping[str, int]
    action_dim: Mapping[str, int]
    horizon: int
    discount: float = 0.99
    device: torch.device = torch.device("cpu")
    at_once: int | None = None

    @abstractmethod
    def reset(self, batch: int, generator: torch.Generator) -> State:
        """The first state of ``batch`` episodes: tensors (batch, ...) by name.

        Args:
            batch: Number of episodes.
            generator: The only source of chance.

        Returns:
            Tensors by name; ``done``, a boolean (batch,), is one of them.
        """

    @abstractmethod
    def observe(self, state: State) -> dict[str, Tensor]:
        """What every player sees: float32 (batch, players, observation_dim) by seat."""

    @abstractmethod
    def step(self, state: State, actions: Actions, generator: torch.Generator) -> tuple[State, Tensor, Tensor]:
        """Carry one joint action out.

        Args:
            state: As :meth:`reset` or :meth:`step` returned it; it is not written to.
            actions: By seat, int64 (batch, players) or float32 (batch, players, action_dim) in [-1, 1].
            generator: The only source of chance.

        Returns:
            The next state, our reward float32 (batch,), and whether the episode is done, boolean (batch,).
        """

    def action_mask(self, state: State) -> dict[str, Tensor] | None:
        """Boolean (batch, players, n_actions) by seat, true where an action is legal; None if all always are.

        The row of an episode that is done has at least one legal action, too.
        """
        return None

    def active(self, state: State) -> dict[str, Tensor] | None:
        """Boolean (batch, players) by seat, true where a player is there and decides; None if all always do.

        False for one that has left its episode or waits for its turn. What such a player sees, and the action that is
        drawn for it all the same, enter no data, no coverage, no loss and no memory.
        """
        return None

    def impossible(self, seat: str, observations: Tensor) -> Tensor:
        """Boolean (N,), true for observations (N, observation_dim) that no player of the seat can make.

        Data that hold such rows are refused. A game that cannot tell calls none impossible.
        """
        return torch.zeros(len(observations), dtype=torch.bool)

    def agent_names(self, seat: str) -> list[str]:
        """Names of the players of a seat, in order."""
        return [f"{seat}_{player}" for player in range(self.players[seat])]

    def frame(self, state: State, row: int) -> NDArray[np.uint8]:
        """A picture of one episode, (height, width, 3), for replays.

        Raises:
            NotImplementedError: If the game draws nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} draws no frames, so it has no replay")
