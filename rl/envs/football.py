"""An optional adapter to Google Football as a parallel environment; the engine is not a dependency of this package."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rl.envs.drawing import blank, disc, rectangle

N_ACTIONS = 19
WIDTH = 115
REWARDS = ("scoring", "scoring,checkpoints")
SIDES = ("left", "right")
COLOURS = ((50, 90, 200), (200, 60, 50))


def football_env(
    scenario: str = "academy_3_vs_1_with_keeper", left: int = 3, right: int = 1, rewards: str = "scoring"
) -> FootballEnv:
    """Google Football with players of both teams under control, for :class:`rl.envs.parallel.ParallelGame`.

    In a recipe: ``environment: rl.envs.football.football_env``, ``ours: [left_0, left_1, left_2]``, ``target:
    [right_0]``. The engine, ``gfootball`` 2.10.2, is a source distribution that is built with CMake, SDL and Boost, and
    wants ``gym`` 0.25 and ``numpy`` below 2, so give it an environment of its own; ``docs/csp.md`` has the commands.

    Args:
        scenario: Of the engine, as ``academy_3_vs_1_with_keeper`` or ``5_vs_5``.
        left: Controlled players of the left team, at least 1 and at most as many as the scenario lets be controlled.
        right: Controlled players of the right team, likewise.
        rewards: ``scoring``: 1 for a goal to those who scored, −1 to the others. ``scoring,checkpoints``: besides what
            the engine pays a player for bringing the ball nearer to the other goal.

    Returns:
        The environment, whose agents are ``left_0``, ..., ``right_0``, ...

    Raises:
        ImportError: If the engine is not installed.
        ValueError: If there is no such scenario or reward, or a team has not that many players to control.
    """
    if left < 1 or right < 1:
        raise ValueError(f"{left} players of the left and {right} of the right team are controlled, but each needs one")
    if rewards not in REWARDS:
        raise ValueError(f"rewards are {rewards!r}, but the engine has {' and '.join(map(repr, REWARDS))}")
    try:
        create = import_module("gfootball.env").create_environment
    except ImportError as error:
        raise ImportError(
            "this game needs Google Football, which is not installed and must be built from source; see docs/csp.md, "
            "or use another game, as rl.envs.pursuit.PredatorPrey"
        ) from error
    _check_scenario(scenario, left, right)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of gym, about the steps that the engine makes
        engine = create(
            env_name=scenario,
            representation="simple115v2",
            rewards=rewards,
            number_of_left_players_agent_controls=left,
            number_of_right_players_agent_controls=right,
        )
    return FootballEnv(engine, left, right)


def _check_scenario(scenario: str, left: int, right: int) -> None:
    """Refuse what the engine would answer by ending the process, or by a failed assertion while it plays."""
    known = import_module("gfootball.env.scenario_builder").all_scenarios()
    if scenario not in known:
        raise ValueError(f"there is no scenario {scenario!r}; the engine has {', '.join(sorted(known))}")
    teams = import_module("gfootball.env.config").Config({"level": scenario}).ScenarioConfig()
    there = (teams.controllable_left_players, teams.controllable_right_players)
    for side, asked, most in zip(SIDES, (left, right), there, strict=True):
        if asked > most:
            raise ValueError(
                f"{asked} players of the {side} team are to be controlled, but in {scenario} it has {most} that can be"
            )


class FootballEnv:
    """Controlled players of both teams as agents of a parallel environment.

    The game is zero-sum: the left team is paid half of what the engine pays its mean controlled player more than the
    right one's, which is the goal itself where goals alone are paid, and the right team the negative of that. A seed
    decides the whole match, also on which side of the engine's order of moves a team stands; without one, the chance
    of the last seed goes on.

    Args:
        engine: With the interface of ``gym`` before 0.26: ``reset()`` gives observations (players, 115), and
            ``step(actions)`` those, rewards (players,), whether the match is over, and details.
        left: Controlled players of the left team; they come first.
        right: Controlled players of the right team.
    """

    def __init__(self, engine: gymnasium.Env[object, object], left: int, right: int) -> None:
        self.engine, self._left = engine, left
        self.possible_agents = [f"{side}_{i}" for side, n in zip(SIDES, (left, right), strict=True) for i in range(n)]
        self.agents: list[str] = []
        self.metadata = {"name": "football", "render_modes": ["rgb_array"]}
        self._chance: np.random.Generator | None = None
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
        """Begin a match; without a seed it is another one than the last."""
        if seed is not None or self._chance is None:
            self._chance = np.random.default_rng(seed)
        # The engine derives the last two once, from its first seed and from how many matches it has played.
        match, order, first = self._chance.integers(2**31), self._chance.integers(2), self._chance.integers(2)
        self.engine.unwrapped._config.update(
            {
                "game_engine_random_seed": int(match),
                "reverse_team_processing": bool(order),
                "episode_number": int(first),
            }
        )
        self.agents = list(self.possible_agents)
        return self._by_agent(self.engine.reset()), {name: {} for name in self.agents}

    def step(
        self, actions: Mapping[str, int | NDArray[np.int64]]
    ) -> tuple[dict[str, object], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, object]]]:
        """Carry out one action of every agent."""
        seen, rewards, done, _ = self.engine.step([int(actions[name]) for name in self.possible_agents])
        everyone, by_player = self.possible_agents, np.asarray(rewards, dtype=np.float64)
        self.agents = [] if done else list(everyone)
        lead = float(by_player[: self._left].mean() - by_player[self._left :].mean()) / 2
        return (
            self._by_agent(seen),
            {name: lead if number < self._left else -lead for number, name in enumerate(everyone)},
            dict.fromkeys(everyone, bool(done)),
            dict.fromkeys(everyone, False),
            {name: {} for name in everyone},
        )

    def render(self) -> NDArray[np.uint8]:
        """The pitch from above, (96, 216, 3): left blue, right red, ball black, a dot on who is controlled."""
        image = blank(96, 216)
        rectangle(image, (6, 8), (90, 208), (190, 225, 190))
        for goal in (4, 208):
            rectangle(image, (44, goal), (52, goal + 4), (120, 120, 120))
        looks = self._seen
        teams = (looks[0, :22], looks[0, 44:66])  # as left_0 sees them, whose own team is first
        controlled = (looks[: self._left, 97:108], looks[self._left :, 97:108])
        for places, active, colour in zip(teams, controlled, COLOURS, strict=True):
            for number, (x, y) in enumerate(places.reshape(11, 2)):
                if (x, y) == (-1, -1):  # of a team of fewer
                    continue
                disc(image, (48 + 100 * y, 108 + 100 * x), 4, colour)
                if active[:, number].any():
                    disc(image, (48 + 100 * y, 108 + 100 * x), 1.5, (255, 255, 255))
        disc(image, (48 + 100 * looks[0, 89], 108 + 100 * looks[0, 88]), 2, (0, 0, 0))
        return image

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()

    def _by_agent(self, seen: object) -> dict[str, object]:
        """Observations by agent."""
        self._seen = np.asarray(seen, dtype=np.float32).reshape(-1, WIDTH)
        return dict(zip(self.possible_agents, self._seen, strict=True))
