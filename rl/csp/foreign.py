"""Records of other libraries as the target's data: Minari's datasets and RLlib's JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rl.csp.dataset import TargetData
from rl.envs.native_actions import game_action
from rl.envs.petting_zoo import flat

Given = Any  # of another library, whose parts are checked where they are read


def from_minari(dataset: Given, agents: Sequence[str] | None = None) -> TargetData:
    """The steps of the target's agents in a dataset of Minari.

    A dataset of several agents has dictionaries by agent as observations and actions. Observations are flattened and
    actions numbered as `rl.envs.ParallelGame` does it.

    Args:
        dataset: As ``minari.load_dataset`` gives it; what is used are its ``observation_space``, ``action_space`` and
            ``iterate_episodes()``.
        agents: Names of the target's agents; None where the dataset is of one agent, the target.

    Returns:
        The data.

    Raises:
        ValueError: If the dataset has no such agent, no episode, or actions outside their space.
    """
    names: list[str | None] = [None] if agents is None else list(agents)
    spaces = [_space_of(dataset, name) for name in names]
    rows: list[tuple[Given, ...]] = []
    for number, episode in enumerate(dataset.iterate_episodes()):
        for player, (name, (looks, moves)) in enumerate(zip(names, spaces, strict=True)):
            seen, done = (part if name is None else part[name] for part in (episode.observations, episode.actions))
            steps = _length(done)
            for t in range(steps):
                look, mask = _at(seen, t), None
                space = looks
                if isinstance(looks, gymnasium.spaces.Dict) and set(looks.spaces) == {"observation", "action_mask"}:
                    space, mask = looks["observation"], np.asarray(look["action_mask"], dtype=bool)
                    look = look["observation"]
                action = game_action(moves, _at(done, t))
                rows.append((flat(space, look), action, number, t, player, t == steps - 1, mask))
    return _from_rows(rows, "the dataset")


def from_rllib(path: str | Path, policy: str | None = None) -> TargetData:
    """The steps of a policy in a JSON file that RLlib wrote (``config.offline_data(output=...)``).

    A line is a batch of one agent (SampleBatch) or of several (MultiAgentBatch). RLlib keeps real actions normalised to
    [-1, 1], as they are needed here.

    Args:
        path: The file.
        policy: The target's policy, in files of several agents.

    Returns:
        The data; its players are RLlib's ``agent_index`` in ascending order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has another format, packed columns, or no such policy.
    """
    rows: list[tuple[Given, ...]] = []
    episodes: dict[Given, int] = {}
    taken: dict[tuple[int, int], int] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        batch = _batch(path, number, line, policy)
        if batch is None:
            continue
        columns = {name: _plain(path, name, batch[name]) for name in ("obs", "actions", "eps_id") if name in batch}
        if missing := [name for name in ("obs", "actions", "eps_id") if name not in columns]:
            raise ValueError(f"{path}: the batch in line {number} has no column {missing[0]}; write it again")
        indices = _plain(path, "agent_index", batch.get("agent_index", np.zeros(len(columns["actions"]), dtype=int)))
        for look, action, episode, player in zip(*columns.values(), indices, strict=True):
            place = episodes.setdefault(int(episode), len(episodes))
            step = taken[place, int(player)] = taken.get((place, int(player)), -1) + 1
            rows.append((np.asarray(look, dtype=np.float32).reshape(-1), action, place, step, int(player), False, None))
    known = {player: index for index, player in enumerate(sorted({row[4] for row in rows}))}
    rows = [(*row[:4], known[row[4]], *row[5:]) for row in rows]
    return _from_rows(rows, str(path))._replace(last=None)


def _batch(path: str | Path, number: int, line: str, policy: str | None) -> Mapping[str, Given] | None:
    """The target's part of a line, or None where it has none."""
    try:
        batch = json.loads(line)
        kind = batch["type"]
        parts: dict[str, Given] = batch["policy_batches"] if kind == "MultiAgentBatch" else {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: line {number} is no batch of RLlib's JSON output; give a file that its JsonWriter wrote"
        ) from error
    if kind == "MultiAgentBatch":
        if policy is None:
            raise ValueError(f"{path} holds the policies {', '.join(parts)}; say which is the target's with policy=...")
        found: Mapping[str, Given] | None = parts.get(policy)
        return found
    if policy is not None:
        raise ValueError(f"{path} holds batches of one agent, in which no policy has a name; leave policy out")
    single: Mapping[str, Given] = batch
    return single


def _plain(path: str | Path, name: str, column: Given) -> NDArray[Given]:
    if isinstance(column, str):
        raise ValueError(
            f"{path}: the column {name} is packed, and unpacking it would run its code; write it with "
            "output_compress_columns=[]"
        )
    return np.asarray(column)


def _space_of(dataset: Given, name: str | None) -> tuple[Given, Given]:
    """Spaces of observations and actions of an agent."""
    spaces = dataset.observation_space, dataset.action_space
    if name is None:
        return spaces
    known = [list(space.spaces) if isinstance(space, gymnasium.spaces.Dict) else [] for space in spaces]
    if any(name not in names for names in known):
        raise ValueError(
            f"the dataset has no agent {name!r}; its observations are of {', '.join(known[0]) or 'one agent'}"
        )
    return spaces[0][name], spaces[1][name]


def _at(value: Given, t: int) -> Given:
    """One step of arrays in dictionaries and tuples of any depth."""
    if isinstance(value, Mapping):
        return {name: _at(part, t) for name, part in value.items()}
    return tuple(_at(part, t) for part in value) if isinstance(value, tuple) else value[t]


def _length(value: Given) -> int:
    """Steps of arrays in dictionaries and tuples of any depth."""
    while isinstance(value, Mapping | tuple):
        value = next(iter(value.values())) if isinstance(value, Mapping) else value[0]
    return len(value)


def _from_rows(rows: Sequence[tuple[Given, ...]], source: str) -> TargetData:
    if not rows:
        raise ValueError(f"{source} holds no step of the target; record it for at least one episode")
    looks, actions, episodes, steps, players, last, masks = zip(*rows, strict=True)
    moves = np.asarray(actions)
    return TargetData(
        np.stack(looks),
        moves.astype(np.int64) if moves.ndim == 1 else moves.astype(np.float32),
        np.asarray(episodes, dtype=np.int64),
        np.asarray(steps, dtype=np.int64),
        np.asarray(players, dtype=np.int64),
        np.asarray(last, dtype=bool),
        None if masks[0] is None else np.stack(masks),
    )
