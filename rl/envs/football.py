"""An optional adapter to Google Football as a parallel environment; the engine is not a dependency of this package."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import gymnasium
import numpy as np
from numpy.typing import NDArray

N_ACTIONS = 19
WIDTH = 115


def football_env(
    scenario: str = "academy_3_vs_1_with_keeper", left: int = 3, right: int = 1, rewards: str = "scoring"
) -> FootballEnv:
    """Google Football with players of both teams under control, for :class:`rl.envs.parallel.ParallelGame`.

    In a recipe: ``environment: rl.envs.football.football_env``, ``ours: [left_0, left_1, left_2]``, ``target:
    [right_0]``. The engine, ``gfootball`` 2.10.2, is a source distribution that is built with CMake, SDL and Boost, and
    wants ``gym`` 0.25 and ``numpy`` below 2, so give it an environment of its own; ``docs/csp.md`` has the commands.

    Args:
        scenario: Of the engine, as ``academy_3_vs_1_with_keeper`` or ``5_vs_5``.
        left: Controlled players of the left team, at least 1.
        right: Controlled players of the right team, at least 1.
        rewards: ``scoring``, or ``scoring,checkpoints``.

    Returns:
        The environment, whose agents are ``left_0``, ..., ``right_0``, ...

    Raises:
        ImportError: If the engine is not installed.
        ValueError: If a team has no controlled player.
    """
    if left < 1 or right < 1:
        raise ValueError(f"{left} players of the left and {right} of the right team are controlled, but each needs one")
    try:
        create = import_module("gfootball.env").create_environment
    except ImportError as error:
        raise ImportError(
            "this game needs Google Football, which is not installed and must be built from source; see docs/csp.md, "
            "or use another game, as rl.envs.pursuit.PredatorPrey"
        ) from error
    engine = create(
        env_name=scenario,
        representation="simple115v2",
        rewards=rewards,
        number_of_left_players_agent_controls=left,
        number_of_right_players_agent_controls=right,
    )
    return FootballEnv(engine, left, right)


class FootballEnv:
    """Controlled players of both teams as agents of a parallel environment.

    Args:
        engine: With the interface of ``gym`` before 0.26: ``reset()`` gives observations (players, 115),
        ``step(actions)``
            those, rewards (players,), whether the match is over, and details.
        left: Controlled players of the left team; they come first.
        right: Controlled players of the right team.
    """

    def __init__(self, engine: gymnasium.Env[object, object], left: int, right: int) -> None:
        self.engine = engine
        self.possible_agents = [f"left_{i}" for i in range(left)] + [f"right_{i}" for i in range(right)]
        self.agents: list[str] = []
        self.metadata = {"name": "football"}
        self._look = gymnasium.spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32)
        self._move = gymnasium.spaces.Discrete(N_ACTIONS)

    def observation_space(self, agent: str) -> gymnasium.Space[object]:
        """Of one agent."""
        return self._look

    def action_space(self, agent: str) -> gymnasium.Space[object]:
        """Of one agent."""
        return self._move

    def reset(
        self, seed: int | None = None, options: Mapping[str, object] | None = None
    ) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
        """Begin a match, with the engine seeded if a seed is given."""
        if seed is not None:
            self.engine.unwrapped._config["game_engine_random_seed"] = seed
        self.agents = list(self.possible_agents)
        return self._by_agent(self.engine.reset()), {name: {} for name in self.agents}

    def step(
        self, actions: Mapping[str, int | NDArray[np.int64]]
    ) -> tuple[dict[str, object], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, object]]]:
        """Carry out one action of every agent."""
        seen, rewards, done, _ = self.engine.step([int(actions[name]) for name in self.possible_agents])
        everyone = self.possible_agents
        self.agents = [] if done else list(everyone)
        paid = {name: float(reward) for name, reward in zip(everyone, np.ravel(rewards), strict=True)}
        return (
            self._by_agent(seen),
            paid,
            dict.fromkeys(everyone, bool(done)),
            dict.fromkeys(everyone, False),
            {name: {} for name in everyone},
        )

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()

    def _by_agent(self, seen: object) -> dict[str, object]:
        """Observations by agent."""
        return dict(zip(self.possible_agents, np.asarray(seen, dtype=np.float32).reshape(-1, WIDTH), strict=True))
