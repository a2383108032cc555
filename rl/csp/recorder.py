"""A recorder for environments of PettingZoo: whatever plays, what the target sees and does becomes data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.csp.dataset import TargetData, save_data
from rl.envs.native_actions import action_size, game_action
from rl.envs.petting_zoo import flat, in_turn, is_masked, look_space, width_of

Given = Any  # of another library, whose parts are checked where they are read


class Recorder:
    """An environment, parallel or with turns, that writes down what the target's agents see and do.

    It is used in place of the environment, in any loop: people, scripts, and agents of any library may play. The data
    are those of `rl.envs.ParallelGame` with the same agents as ``target``.

    Args:
        environment: An environment of PettingZoo.
        target: Names of the target's agents, in the order in which `ParallelGame` has them.

    Raises:
        ValueError: If there is no such agent, or the spaces of the agents differ or cannot be numbered.

    Example:
        >>> from rl.envs import GameAsParallelEnv, VaultMaze
        >>> env = Recorder(GameAsParallelEnv(VaultMaze()), ["guard_0"])
        >>> seen, _ = env.reset(seed=0)
        >>> while env.agents:
        ...     seen, *_ = env.step({"agent_0": 0, "guard_0": 0})
        >>> env.data().action.tolist(), env.data().last.tolist()
        ([0, 0, 0], [False, False, True])
    """

    def __init__(self, environment: Given, target: Sequence[str]) -> None:
        known = list(getattr(environment, "possible_agents", []))
        if not known or isinstance(target, str) or not target or not set(target) <= set(known):
            raise ValueError(
                f"the target is {target!r}, but it must be a list of agents of a PettingZoo environment, here of "
                f"{', '.join(known) or 'none'}"
            )
        self._environment, self._target = environment, list(target)
        first = self._target[0]
        self._space = environment.action_space(first)
        n_actions, _ = action_size(self._space, first)
        for name in self._target:
            if environment.action_space(name) != self._space or width_of(environment, name) != width_of(
                environment, first
            ):
                raise ValueError(f"{name} and {first} are both in the target, but their spaces differ")
        self._looks, self._masked = look_space(environment, first), is_masked(environment, first)
        self._discrete = n_actions > 0
        self._turns = hasattr(environment, "agent_iter")
        self._episode = -1
        self._seen: Mapping[str, Given] = {}
        self._rows: list[tuple[NDArray[np.float32], Given, int, int, int, Given]] = []
        self._steps: dict[str, int] = {}
        self._cut = False  # whether an episode was left before its end

    def __getattr__(self, name: str) -> Given:
        if name.startswith("_"):
            raise AttributeError(f"Recorder has no {name}")
        return getattr(self._environment, name)

    def reset(self, *args: Given, **kwargs: Given) -> Given:
        """Begin an episode."""
        self._cut |= self._open()
        answer = self._environment.reset(*args, **kwargs)
        self._episode += 1
        self._steps = dict.fromkeys(self._target, 0)
        self._seen = {} if self._turns else answer[0]
        return answer

    def step(self, action: Given) -> Given:
        """Note what the target's agents see and do, and go on."""
        if self._episode < 0:
            raise ValueError("step came before reset, so no episode has begun; reset the environment first")
        if self._turns:
            name = self._environment.agent_selection
            if name in self._target and action is not None:
                self._note(name, self._environment.observe(name), action)
            return self._environment.step(action)
        for name in self._target:
            if name in action and name in self._seen and in_turn(self._environment, name):
                self._note(name, self._seen[name], action[name])
        answer = self._environment.step(action)
        self._seen = answer[0]
        return answer

    def data(self) -> TargetData:
        """What was recorded so far, as training and :func:`rl.csp.save_data` take it.

        Where an episode was left before its end there is no column ``last``.

        Raises:
            ValueError: If nothing was.
        """
        if not self._rows:
            raise ValueError(f"nothing was recorded of {', '.join(self._target)}; play at least one episode")
        looks, actions, episodes, players, steps, masks = zip(*self._rows, strict=True)
        tracks = np.stack([episodes, players], axis=1)
        last = np.zeros(len(looks), dtype=bool)
        for track in np.unique(tracks, axis=0):
            last[np.flatnonzero((tracks == track).all(1))[-1]] = True
        return TargetData(
            np.stack(looks),
            np.asarray(actions, dtype=np.int64) if self._discrete else np.asarray(actions, dtype=np.float32),
            np.asarray(episodes, dtype=np.int64),
            np.asarray(steps, dtype=np.int64),
            np.asarray(players, dtype=np.int64),
            None if self._cut or self._open() else last,
            np.stack(masks) if self._masked else None,
            np.ones(len(looks), dtype=bool),
            np.asarray([self._target[player] for player in players]),
        )

    def save(self, path: str | Path) -> None:
        """Write what was recorded so far to a file.

        Args:
            path: As of :func:`rl.csp.save_data`.

        Raises:
            ValueError: If nothing was recorded, or the file's ending is another one.
        """
        save_data(path, self.data())

    def _open(self) -> bool:
        """Whether the present episode has begun and not ended."""
        return self._episode >= 0 and any(self._steps.values()) and bool(self._environment.agents)

    def _note(self, name: str, look: Given, action: Given) -> None:
        """One row."""
        mask = None
        if self._masked:
            look, mask = look["observation"], np.asarray(look["action_mask"], dtype=bool)
        player = self._target.index(name)
        row = (
            flat(self._looks, look),
            game_action(self._space, action),
            self._episode,
            player,
            self._steps[name],
            mask,
        )
        self._rows.append(row)
        self._steps[name] += 1
