"""The file of the target's data, what it saw and did step by step: reading, writing, recording and checking it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gapbridge.arguments import Count, check_arguments
from rl.csp.contract import check_actions
from rl.csp.pairs import Pairs
from rl.csp.reading import read_columns
from rl.envs.markov_game import BatchedGame

Policy = Callable[[Tensor, Tensor | None, torch.Generator], Tensor]
REQUIRED = ("observation", "action", "episode", "t")
FLAGS = ("last", "action_mask", "active")
OPTIONAL = ("player", *FLAGS, "seat")


class TargetData(NamedTuple):
    """N steps of the target, as they stand in a file.

    An ``.npz`` file holds one array, and a ``.parquet`` or ``.csv`` file one column, under each name; observations and
    real actions of a Parquet file are lists, or spread over ``observation_0``, ``observation_1``, ... as in a CSV file.
    Rewards and our own actions are not needed.

    Attributes:
        observation: What the target saw, float32 (N, O).
        action: What it did, int64 (N,), or float32 (N, D) with entries in [-1, 1].
        episode: Which episode, int64 (N,).
        t: Step in the episode, or among the player's own steps, int64 (N,), counted from 0 without gaps.
        player: Which player of the target's seat, int64 (N,); all 0 if the file has none.
        last: True at an episode's last step, boolean (N,), or None. With it, an episode that was cut off is found.
        action_mask: Legal actions, boolean (N, A), or None.
        active: Whether the player was there and decided, boolean (N,), or None where it always was. Rows where it had
            left or waited for its turn may be given, so that t has no gaps, and are not used.
        seat: Name of the seat that each row is of, or of the agent that plays it, text (N,), or None. With it, rows of
            another seat, and players in another order, are found.
    """

    observation: NDArray[np.float32]
    action: NDArray[np.int64] | NDArray[np.float32]
    episode: NDArray[np.int64]
    t: NDArray[np.int64]
    player: NDArray[np.int64]
    last: NDArray[np.bool_] | None = None
    action_mask: NDArray[np.bool_] | None = None
    active: NDArray[np.bool_] | None = None
    seat: NDArray[np.str_] | None = None

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which rows say something of the target, boolean (N,): those at which its player decided."""
        return np.ones(len(self.t), dtype=bool) if self.active is None else self.active

    def pairs(self) -> Pairs:
        """The data as training takes them, sorted by episode, player and step, without rows that are not active."""
        order = np.lexsort((self.t, self.player, self.episode))
        order = order[self.used[order]]
        columns = np.stack([self.episode, self.player], axis=1)[order]
        _, episode = np.unique(columns[:, 0], return_inverse=True)
        _, track = np.unique(columns, axis=0, return_inverse=True)
        mask = None if self.action_mask is None else torch.from_numpy(self.action_mask[order])
        return Pairs(
            torch.from_numpy(np.asarray(self.observation, dtype=np.float32)[order]),
            torch.from_numpy(_actions(self.action)[order]),
            mask,
            torch.from_numpy(episode.astype(np.int64)),
            torch.from_numpy(track.reshape(-1).astype(np.int64)),
        )


def load_data(path: str | Path) -> TargetData:
    """Read a file of the target's data and check what can be checked without its game.

    Args:
        path: An ``.npz``, ``.parquet`` or ``.csv`` file; see :class:`TargetData`.

    Returns:
        The data.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has another format, is empty, lacks a column, has columns of different lengths or wrong
            shapes, holds NaN, or has episodes with gaps or without an end.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no data file {path}; give an .npz, .parquet or .csv file of the target's steps"
        )
    columns = read_columns(path)
    if missing := [name for name in REQUIRED if name not in columns]:
        raise ValueError(
            f"{path} has no {' and no '.join(missing)}; required are {', '.join(REQUIRED)}, "
            f"optional are {', '.join(OPTIONAL)}"
        )
    known = [*REQUIRED, *OPTIONAL]
    for name in columns.keys() - set(known):
        if (near := difflib.get_close_matches(name, known, n=1, cutoff=0.8)) and near[0] not in columns:
            raise ValueError(f"{path} has a column {name}; did you mean {near[0]}? Rename it, or leave it out")
    try:
        data = TargetData(
            np.asarray(columns["observation"], dtype=np.float32),
            _actions(columns["action"]),
            _whole(columns["episode"], "episode"),
            _whole(columns["t"], "t"),
            _whole(columns.get("player", np.zeros(len(columns["episode"]), dtype=np.int64)), "player"),
            seat=np.asarray(columns["seat"], dtype=str) if "seat" in columns else None,
            **{name: _flags(columns[name], name) for name in FLAGS if name in columns},
        )
        _check_columns(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return data


def save_data(path: str | Path, data: TargetData) -> None:
    """Write the data to an ``.npz``, ``.parquet`` or ``.csv`` file.

    Args:
        path: Its ending decides the format.
        data: What to write.

    Raises:
        ValueError: If the ending is another one.
    """
    path = Path(path)
    columns = {name: column for name, column in data._asdict().items() if column is not None}
    if path.suffix == ".npz":
        np.savez_compressed(path, **columns)
    elif path.suffix == ".parquet":
        import pandas as pd

        lists = {name: column if column.ndim == 1 else list(column) for name, column in columns.items()}
        pd.DataFrame(lists).to_parquet(path)
    elif path.suffix == ".csv":
        import pandas as pd

        spread = {
            name if column.ndim == 1 else f"{name}_{number}": column if column.ndim == 1 else column[:, number]
            for name, column in columns.items()
            for number in range(1 if column.ndim == 1 else column.shape[1])
        }
        pd.DataFrame(spread).to_csv(path, index=False)
    else:
        raise ValueError(f"data cannot be written to {path}; the name must end in .npz, .parquet or .csv")


def check_dataset(data: TargetData, game: BatchedGame) -> list[str]:
    """Refuse data that cannot be of the target of this game.

    Args:
        data: As :func:`load_data` returns it.
        game: The game; the target is its second seat.

    Returns:
        What the data hold, one sentence each.

    Raises:
        ValueError: For the first breach, in one sentence: shapes, rows of another seat, actions outside the space,
            illegal actions, players that the seat does not have, observations that it cannot make, rows of players that
            are gone and not marked as such.
    """
    _check_columns(data)
    _check_seat(data, game)
    seat = game.seats[1]
    if (width := data.observation.shape[1]) != game.observation_dim[seat]:
        raise ValueError(
            f"observations of the data have length {width}, but {seat} sees {game.observation_dim[seat]} numbers"
        )
    if (wrong := np.flatnonzero((data.player < 0) | (data.player >= game.players[seat]))).size:
        raise ValueError(
            f"the data have player {data.player[wrong[0]]} of {seat}, which has players 0 to {game.players[seat] - 1}"
        )
    rows = np.flatnonzero(data.used)
    _check_actions(data, rows, seat, game.n_actions[seat], game.action_dim[seat])
    _check_observations(data, rows, game)
    _, lengths = np.unique(data.episode * game.players[seat] + data.player, return_counts=True)
    if lengths.max() > game.horizon:
        raise ValueError(
            f"an episode of the data has {lengths.max()} steps, but the game ends after {game.horizon}; give every "
            "episode its own number"
        )
    return [
        f"{len(rows)} steps of {seat} in {len(np.unique(data.episode[rows]))} episodes",
        f"{len(np.unique(data.observation[rows], axis=0))} different observations of length {width}",
        "every action is in the action space" + ("" if data.action_mask is None else " and legal"),
    ]


def record_target(
    game: BatchedGame, ours: Policy, target: Policy, episodes: Count, generator: torch.Generator
) -> TargetData:
    """Play episodes and write down what the target sees and does.

    Args:
        game: The game.
        ours: Takes observations (batch, players, O), masks or None, and the generator; gives actions (batch, players)
            or (batch, players, D).
        target: Likewise, for the target.
        episodes: Number of episodes.
        generator: The only source of chance.

    Returns:
        The data, one row a step and player of the target.

    Raises:
        ValueError: If there is no episode, or a policy gives other actions than its seat has.
    """
    check_arguments(record_target, {"ours": ours, "target": target, "episodes": episodes})
    state, seat = game.reset(episodes, generator), game.seats[1]
    rows: dict[str, list[Tensor]] = {name: [] for name in TargetData._fields}
    for t in range(game.horizon):
        live = ~state["done"]
        if not live.any():
            break
        observations, masks, active = game.observe(state), game.action_mask(state) or {}, game.active(state) or {}
        actions = {
            name: _acted(game, name, policy, observations[name], masks.get(name), generator)
            for name, policy in zip(game.seats, (ours, target), strict=True)
        }
        state, _, done = game.step(state, actions, generator)
        players = game.players[seat]
        row = torch.arange(episodes).repeat_interleave(players).reshape(episodes, players)
        step = {
            "observation": observations[seat],
            "action": actions[seat],
            "episode": row,
            "t": torch.full_like(row, t),
            "player": torch.arange(players).expand(episodes, players),
            "last": done[:, None].expand(episodes, players),
        }
        if seat in masks:
            step["action_mask"] = masks[seat]
        if seat in active:
            step["active"] = active[seat]
        for name, tensor in step.items():
            rows[name].append(tensor[live].flatten(0, 1))
    columns = {name: torch.cat(parts).numpy() for name, parts in rows.items() if parts}
    return TargetData(**columns, seat=np.full(len(columns["t"]), seat))


def _acted(
    game: BatchedGame, seat: str, policy: Policy, seen: Tensor, legal: Tensor | None, generator: torch.Generator
) -> Tensor:
    actions = policy(seen, legal, generator)
    check_actions(actions, f"the policy of {seat}", seen, game, seat)
    return actions


def _actions(column: object) -> NDArray[np.int64] | NDArray[np.float32]:
    """int64 numbers of actions or float32 vectors."""
    array = np.asarray(column)
    if array.ndim == 1:
        return _whole(array, "action")
    if array.dtype.kind not in "iufb":
        raise ValueError(f"action has the type {array.dtype}, but it must hold numbers")
    return array.astype(np.float32)


def _whole(column: object, name: str) -> NDArray[np.int64]:
    """int64 (N,), from whole numbers of any type."""
    array = np.asarray(column)
    if array.ndim != 1 or array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and (array % 1 != 0).any()):
        raise ValueError(
            f"{name} has shape {array.shape} and type {array.dtype}, but it must hold one whole number a step"
        )
    return array.astype(np.int64)


def _flags(column: object, name: str) -> NDArray[np.bool_]:
    """Booleans, from booleans or the numbers 0 and 1; whatever else would be true without a word."""
    array = np.asarray(column)
    known = np.isin(array, (0, 1)) if array.dtype.kind in "biuf" else np.zeros(array.shape, dtype=bool)
    if not known.all():
        raise ValueError(
            f"{name} holds {array[~known].tolist()[0]!r}, but it must hold true or false, or 1 or 0, in every row"
        )
    return array.astype(np.bool_)


def _check_columns(data: TargetData) -> None:
    """What holds whatever the game is."""
    n = len(data.t)
    if n == 0:
        raise ValueError("the data hold no step; record the target for at least one episode")
    for name, column in data._asdict().items():
        if column is None:
            continue
        if len(column) != n:
            raise ValueError(f"{name} has {len(column)} rows, but t has {n}; every step needs one row in each column")
        wanted = {"observation": (2,), "action_mask": (2,), "action": (1, 2)}.get(name, (1,))
        if column.ndim not in wanted:
            raise ValueError(f"{name} has shape {column.shape}, but it must have {' or '.join(map(str, wanted))} axes")
        if name != "seat" and not np.isfinite(column).all():
            bad = int(np.flatnonzero(~np.isfinite(column).reshape(n, -1).all(1))[0])
            raise ValueError(f"{name} is NaN or infinite in row {bad}; drop such episodes or repair them")
    order = np.lexsort((data.t, data.player, data.episode))
    episode, player, t = data.episode[order], data.player[order], data.t[order]
    first = np.ones(n, dtype=bool)
    first[1:] = (np.diff(episode) != 0) | (np.diff(player) != 0)
    expected = np.where(first, 0, np.concatenate([[0], t[:-1] + 1]))
    if (wrong := np.flatnonzero(t != expected)).size:
        raise ValueError(
            f"episode {episode[wrong[0]]} has the step t = {t[wrong[0]]} where {expected[wrong[0]]} is due; steps "
            "of an episode are counted from 0 without gaps, and every episode needs its own number"
        )
    if data.last is not None:
        ends = np.append(first[1:], True)
        if (wrong := np.flatnonzero(data.last[order] != ends)).size:
            flaw = "goes on after its last step" if data.last[order][wrong[0]] else "has no end"
            raise ValueError(f"episode {episode[wrong[0]]} {flaw}; last must be true at the last step and nowhere else")


def _check_seat(data: TargetData, game: BatchedGame) -> None:
    """Rows of the target alone, each of the player that it is numbered as."""
    if data.seat is None:
        return
    seat = game.seats[1]
    for player, agent in enumerate(game.agent_names(seat)):
        if (wrong := np.flatnonzero((data.player == player) & ~np.isin(data.seat, (seat, agent)))).size:
            raise ValueError(
                f"row {wrong[0]} of the data is of the seat '{data.seat[wrong[0]]}', but the target is '{seat}', and "
                f"its player {player} '{agent}'; keep its rows alone, with players in the game's order, or leave the "
                "column seat out where only the names differ"
            )


def _check_observations(data: TargetData, rows: NDArray[np.int64], game: BatchedGame) -> None:
    """Observations that the seat can make, and none of a player that has left or waits."""
    seat, seen = game.seats[1], data.observation[rows]
    if not rows.size:
        raise ValueError("no row of the data is active; record the target where it decides")
    state = game.reset(1, torch.Generator().manual_seed(0))
    if data.action_mask is not None and seat not in (game.action_mask(state) or {}):
        raise ValueError(
            f"the data have action_mask, but the game tells {seat} no legal actions, so that it may play them all; "
            "leave the column out, or give the game masks"
        )
    if data.active is None and game.active(state) is not None and (gone := np.flatnonzero(~seen.any(1))).size:
        raise ValueError(
            f"the observation in row {gone[0]} is all zeros, as of a player that has left or waits for its turn, and "
            "the data have no column active that says which rows those are; add it, or leave such rows out"
        )
    if (wrong := game.impossible(seat, torch.from_numpy(seen)).nonzero()).numel():
        row = rows[int(wrong[0, 0])]
        raise ValueError(
            f"the observation in row {row} is {np.array2string(data.observation[row], threshold=8, precision=4)}, "
            f"which {seat} cannot see in this game; give the rows of {seat} alone, as the game shows them"
        )


def _check_actions(data: TargetData, rows: NDArray[np.int64], seat: str, n_actions: int, action_dim: int) -> None:
    """Actions of these rows inside the space of the seat."""
    action = data.action[rows]
    if n_actions:
        if data.action.ndim != 1:
            raise ValueError(
                f"actions of the data have shape {data.action.shape}, but {seat} chooses one of {n_actions} actions, "
                "so every step needs one whole number"
            )
        if (wrong := rows[(action < 0) | (action >= n_actions)]).size:
            raise ValueError(
                f"action {data.action[wrong[0]]} in row {wrong[0]} is outside the action space of {seat}, which has "
                f"the actions 0 to {n_actions - 1}"
            )
        mask = data.action_mask
        if mask is not None and mask.shape[1] != n_actions:
            raise ValueError(f"action_mask has {mask.shape[1]} columns, but {seat} has {n_actions} actions")
        if mask is not None and (wrong := rows[~mask[rows, action]]).size:
            raise ValueError(f"action {data.action[wrong[0]]} in row {wrong[0]} is not legal by its own action_mask")
    else:
        if data.action.shape[1:] != (action_dim,):
            raise ValueError(
                f"actions of the data have shape {data.action.shape}, but {seat} needs vectors of {action_dim} numbers"
            )
        if (wrong := rows[(np.abs(action) > 1).any(1)]).size:
            raise ValueError(
                f"the action in row {wrong[0]} has an entry outside [-1, 1]; scale the data's actions to it"
            )
