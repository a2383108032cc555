"""A turn-based game of OpenSpiel as a batched game with action masks, its whole tree held in tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.markov_game import Actions, BatchedGame, State
from rl.envs.spiel import LARGEST, information_key, is_open, load_tree_game, require_keys, too_large

if TYPE_CHECKING:
    import pyspiel

_MOST_NUMBERS = 2**28  # of all observations of a tree together: 1 GiB


class SpielGame(BatchedGame):
    """Kuhn, Leduc or another small two-player game with moves in turn, many episodes at once.

    A step is one decision. The player whose turn it is not sees zeros, is not active and has one legal action, the
    first, which does nothing; so nothing is learnt from it. Chance is drawn between decisions. Where everything is
    open (perfect information), a player without an information state observes the board.

    Args:
        name: Of the game, as ``leduc_poker``; the tree is walked once, for games of up to about a million histories.
        ours: Which player we are, 0 or 1.

    Raises:
        ImportError: If OpenSpiel is not installed.
        ValueError: If the game is unknown, of another kind (see :func:`rl.envs.spiel.load_tree_game`), too large or
            without observations, or ``ours`` is another number.
    """

    discount = 1.0

    def __init__(self, name: str, ours: int = 0) -> None:
        if ours not in {0, 1}:
            raise ValueError(f"our player is {ours!r}, but the game has the players 0 and 1")
        game = load_tree_game(name)
        require_keys(game, name)
        size = _look_size(game, name)
        self.seats = (f"player_{ours}", f"player_{1 - ours}")
        self.players = dict.fromkeys(self.seats, 1)
        self.n_actions = dict.fromkeys(self.seats, int(game.num_distinct_actions()))
        self.observation_dim = dict.fromkeys(self.seats, size)
        self.action_dim = dict.fromkeys(self.seats, 0)
        self.name, self._order = name, (ours, 1 - ours)
        tree = _Tree(game, name, ours, size)
        self.horizon = tree.depth
        self._player = torch.tensor(tree.player)
        self._reward = torch.tensor(tree.reward, dtype=torch.float32)
        self._look = torch.from_numpy(np.stack(tree.look))
        self._legal = torch.from_numpy(np.stack(tree.legal))
        self._child = torch.from_numpy(np.stack(tree.child))
        width = max(map(len, tree.outcomes))
        self._outcome = torch.zeros(len(tree.outcomes), width, dtype=torch.int64)
        self._chance = torch.ones(len(tree.outcomes), width, dtype=torch.float64)
        for number, (outcomes, law) in enumerate(zip(tree.outcomes, tree.laws, strict=True)):
            self._outcome[number, : len(outcomes)] = torch.tensor(outcomes)
            self._chance[number, : len(law)] = torch.tensor(np.cumsum(law) / np.sum(law))
        self._start = tree.start
        self._keys = tree.keys

    def reset(self, batch: int, generator: torch.Generator) -> State:
        """``node`` and ``done``, (batch,) each, after the first chance moves."""
        node = self._draw(torch.full((batch,), self._start), torch.zeros(batch, dtype=torch.bool), generator)
        return {"node": node, "done": self._player[node] < 0}

    def observe(self, state: State) -> dict[str, Tensor]:
        """OpenSpiel's information state tensor, or the open board, for the player in turn, zeros for the other."""
        look, player = self._look[state["node"]][:, None], self._player[state["node"]]
        return {
            seat: look * (player == number)[:, None, None] for seat, number in zip(self.seats, self._order, strict=True)
        }

    def action_mask(self, state: State) -> dict[str, Tensor]:
        """Legal actions of the player in turn, the first action alone for the other."""
        legal, player = self._legal[state["node"]][:, None], self._player[state["node"]]
        idle = torch.zeros_like(legal)
        idle[..., 0] = True
        return {
            seat: torch.where((player == number)[:, None, None], legal, idle)
            for seat, number in zip(self.seats, self._order, strict=True)
        }

    def active(self, state: State) -> dict[str, Tensor]:
        """The player in turn."""
        player = self._player[state["node"]][:, None]
        return {seat: player == number for seat, number in zip(self.seats, self._order, strict=True)}

    def impossible(self, seat: str, observations: Tensor) -> Tensor:
        """Observations that are those of no information state of this player."""
        _, known, _ = self.information_states(seat)
        rows, group = torch.unique(torch.cat([known[:, 0], observations.float()]), dim=0, return_inverse=True)
        possible = torch.zeros(len(rows), dtype=torch.bool)
        possible[group[: len(known)]] = True
        return ~possible[group[len(known) :]]

    def step(self, state: State, actions: Actions, generator: torch.Generator) -> tuple[State, Tensor, Tensor]:
        """The action of the player in turn, then chance up to the next decision; the reward comes at the end."""
        node, done = state["node"], state["done"]
        ours, theirs = (actions[seat][:, 0] for seat in self.seats)
        chosen = torch.where(self._player[node] == self._order[0], ours, theirs)
        following = self._draw(torch.where(done, -1, self._child[node, chosen]), done, generator)
        following = torch.where(done, node, following)
        ended = self._player[following] < 0
        return {"node": following, "done": ended}, self._reward[following].masked_fill(done | ~ended, 0), ended

    def information_states(self, seat: str) -> tuple[list[str], Tensor, Tensor]:
        """All information states of a player, to score a policy exactly in :func:`rl.envs.spiel.sequence_form`.

        Args:
            seat: One of ``seats``.

        Returns:
            OpenSpiel's strings, observations (K, 1, O) and legal actions (K, 1, A).
        """
        number = self._order[self.seats.index(seat)]
        found = {key: node for node, key in enumerate(self._keys) if key is not None and self._player[node] == number}
        nodes = list(found.values())
        return list(found), self._look[nodes][:, None], self._legal[nodes][:, None]

    def _draw(self, point: Tensor, done: Tensor, generator: torch.Generator) -> Tensor:
        """Nodes after chance: a point below zero is the chance node -2 - point; -1 is nothing."""
        while (point < -1).any():
            number = (-2 - point).clamp(min=0)
            uniform = torch.rand(len(point), 1, generator=generator, dtype=torch.float64)
            drawn = self._outcome[number, (self._chance[number] <= uniform).sum(1)]
            point = torch.where(point < -1, drawn, point)
        return torch.where(done, 0, point)


def _look_size(game: pyspiel.Game, name: str) -> int:
    """Length of what a player observes.

    Raises:
        ValueError: If OpenSpiel gives it nothing that tells its information sets apart.
    """
    described = game.get_type()
    if described.provides_information_state_tensor:
        return int(game.information_state_tensor_size())
    if described.provides_observation_tensor and is_open(described):
        return int(game.observation_tensor_size())
    raise ValueError(
        f"OpenSpiel gives the players of '{name}' no tensor of all that they know, so a network cannot play it; "
        "choose a game with information state tensors or with open information"
    )


class _Tree:
    """Tables of a game: decision and terminal nodes by number; chance node k is the point -2 - k."""

    def __init__(self, game: pyspiel.Game, name: str, ours: int, size: int) -> None:
        self._name, self._offset = name, (game.utility_sum() or 0.0) / 2
        self._states = bool(game.get_type().provides_information_state_tensor)
        self._most = min(LARGEST, _MOST_NUMBERS // max(size, 1))
        self.player: list[int] = []  # -1 where the game is over
        self.reward: list[float] = []
        self.look: list[NDArray[np.float32]] = []
        self.legal: list[NDArray[np.bool_]] = []
        self.child: list[NDArray[np.int64]] = []
        self.keys: list[str | None] = []
        self.outcomes: list[list[int]] = [[0]]
        self.laws: list[list[float]] = [[1.0]]
        self.depth = 0
        self._ours, self._width = ours, int(game.num_distinct_actions())
        self._size = size
        self.start = self._walk(game.new_initial_state(), 0)

    def _walk(self, state: pyspiel.State, depth: int) -> int:
        """Number of the node, or point of the chance node, of this state."""
        self.depth = max(self.depth, depth)
        if len(self.player) + len(self.outcomes) > self._most:
            raise too_large(self._name, self._most)
        if state.is_chance_node():
            number = len(self.outcomes)
            self.outcomes.append([])
            self.laws.append([])
            for action, probability in state.chance_outcomes():
                self.outcomes[number].append(self._walk(state.child(action), depth))
                self.laws[number].append(probability)
            return -2 - number
        node, over = len(self.player), state.is_terminal()
        player = -1 if over else state.current_player()
        self.player.append(player)
        self.reward.append(state.player_return(self._ours) - self._offset if over else 0.0)
        self.look.append(np.zeros(self._size, dtype=np.float32) if over else self._seen(state, player))
        self.keys.append(None if over else information_key(state, player))
        legal, child = np.zeros(self._width, dtype=bool), np.full(self._width, node, dtype=np.int64)
        self.legal.append(legal)
        self.child.append(child)
        for action in [] if over else state.legal_actions():
            legal[action] = True
            child[action] = self._walk(state.child(action), depth + 1)
        return node

    def _seen(self, state: pyspiel.State, player: int) -> NDArray[np.float32]:
        """What the player in turn observes."""
        seen = state.information_state_tensor(player) if self._states else state.observation_tensor(player)
        return np.asarray(seen, dtype=np.float32)
