"""The football adapter: on a stand-in that has the engine's habits, on the engine itself, and where it is absent."""

import importlib.util
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.envs.check_parallel import check_parallel_env
from rl.envs.football import football_env
from rl.envs.parallel import ParallelGame

OURS, THEIRS = ["left_0", "left_1", "left_2"], ["right_0"]
ROOT = Path(__file__).parents[3]  # the engine's environment plays with this checkout
ENVIRONMENT = Path(os.environ.get("FOOTBALL_ENVIRONMENT", "~/.cache/gapbridge/football")).expanduser()


class Config(dict):
    """Of the engine: players of every scenario, and what decides a match."""

    def ScenarioConfig(self):  # noqa: N802 - the engine's name
        if self["level"] != "academy_3_vs_1_with_keeper":
            sys.exit(1)
        return types.SimpleNamespace(controllable_left_players=4, controllable_right_players=2)


class Engine:
    """Has the interface and the habits of the engine, none of its football.

    As there, a match depends on a seed, on the order of the teams, which follows from the first seed and then stays,
    and on whether an even or an odd number of matches came before. The first seed is drawn when the engine is made.
    """

    def __init__(self, left, right, checkpoints):
        self.sizes, self.checkpoints = (left, right), checkpoints
        self._config = Config(episode_number=0)
        self._begin(int(np.random.default_rng().integers(2**31)))

    @property
    def unwrapped(self):
        return self

    def _begin(self, drawn):
        config = self._config
        seed = config.get("game_engine_random_seed", drawn)
        config.setdefault("reverse_team_processing", bool(seed % 2))
        self.rng = np.random.default_rng([seed, config["reverse_team_processing"], config["episode_number"] % 2])
        self.time, self.reached = 0, False

    def reset(self):
        self._config["episode_number"] += 1
        self._begin(int(np.random.default_rng().integers(2**31)))
        return self._looks()

    def step(self, actions):
        left, right = self.sizes
        assert len(actions) == left + right
        self.time += 1
        score = np.sign(sum(actions[:left]) - left * sum(actions[left:])) if self.time == 6 else 0
        paid = np.array([score] * left + [-score] * right, dtype=np.float32)
        if (
            self.checkpoints and not self.reached and actions[0] == 5
        ):  # to the first of the left team, and to nobody else
            paid[0], self.reached = paid[0] + 0.1, True
        return self._looks(), paid, self.time == 6, {}

    def _looks(self):
        looks = np.full((sum(self.sizes), 115), -1.0)
        looks[:, 0:2], looks[:, 44:46], looks[:, 88:91] = (-0.9, 0), (0.5, 0.2), (0, 0, 0)
        looks[:, 97:] = 0
        looks[:, 97] = 1
        looks[:, 22:24] = self.rng.normal(size=2)
        return looks


@pytest.fixture
def made(monkeypatch):
    """The arguments that the engine was last made with."""
    made = {}

    def create_environment(**arguments):
        warnings.warn("it is recommended to set `new_step_api=True`", DeprecationWarning, stacklevel=1)  # of gym
        made.clear()
        made.update(arguments)
        sizes = (arguments[f"number_of_{side}_players_agent_controls"] for side in ("left", "right"))
        return Engine(*sizes, "checkpoints" in arguments["rewards"])

    parts = {"": {"create_environment": create_environment}, ".config": {"Config": Config}}
    parts[".scenario_builder"] = {"all_scenarios": lambda: ["academy_3_vs_1_with_keeper", "5_vs_5"]}
    monkeypatch.setitem(sys.modules, "gfootball", types.ModuleType("gfootball"))
    for name, content in parts.items():
        module = types.ModuleType(f"gfootball.env{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_both_teams_are_agents(made):
    lines = check_parallel_env(football_env, OURS, THEIRS, horizon=10)
    assert "at most 6 steps" in lines[1]
    assert made["number_of_right_players_agent_controls"] == 1
    assert made["representation"] == "simple115v2"


def match(env, **reset):
    """What is seen in a match, and what it pays, when the left team runs and the right one idles."""
    seen, paid = [env.reset(**reset)[0]], []
    while env.agents:
        looks, rewards, *_ = env.step({name: 5 * name.startswith("left") for name in env.agents})
        seen.append(looks)
        paid.append(rewards)
    return [look["right_0"].tolist() for look in seen], paid


def test_a_seed_decides_the_match_and_without_one_it_is_another(made):
    old, new = football_env(), football_env()
    for _ in range(3):
        match(old)
    for seed in range(8):  # of either order of the teams, and after even and odd numbers of matches
        assert match(old, seed=seed)[0] == match(new, seed=seed)[0]
        match(new)
    following = [match(env)[0] for env in (old, old, old)]
    assert following[0] != following[1] != following[2]
    new.reset(seed=7)
    assert [match(new)[0] for _ in range(3)] == following


def test_what_the_sides_are_paid_sums_to_zero(made):
    for rewards, run in (("scoring", 0.0), ("scoring,checkpoints", 0.1 / 3 / 2)):
        _, paid = match(football_env(rewards=rewards), seed=0)
        assert paid[0] == pytest.approx(dict.fromkeys(OURS, run) | {"right_0": -run})
        assert paid[-1] == dict.fromkeys(OURS, 1.0) | {"right_0": -1.0}


def test_the_pitch_is_drawn(made):
    game = ParallelGame(football_env, OURS, THEIRS, horizon=6)
    frame = game.frame(game.reset(2, torch.Generator().manual_seed(0)), 1)
    assert frame.shape == (96, 216, 3)
    assert frame[48, 18 + 3].tolist() == [50, 90, 200]  # left's keeper at (-0.9, 0)
    assert frame[68, 158 + 3].tolist() == [200, 60, 50]  # right's player at (0.5, 0.2)
    assert frame[48, 108].tolist() == [0, 0, 0]  # the ball
    assert (frame == (50, 90, 200)).all(2).sum() < 60  # nobody else: absent players are none


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"right": 0}, "each needs one"),
        ({"right": 3}, "3 players of the right team are to be controlled, but in academy_3_vs_1_with_keeper it has 2"),
        ({"left": 5}, "5 players of the left team are to be controlled, but in academy_3_vs_1_with_keeper it has 4"),
        ({"scenario": "academy_3vs1"}, "no scenario 'academy_3vs1'; the engine has 5_vs_5, academy_3_vs_1_with_keeper"),
        ({"rewards": "checkpoints"}, "rewards are 'checkpoints', but the engine has 'scoring' and"),
    ],
)
def test_what_the_engine_does_not_have_is_refused(made, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        football_env(**arguments)


@pytest.mark.skipif(importlib.util.find_spec("gfootball") is not None, reason="the engine is installed")
def test_absent_engine():
    with pytest.raises(ImportError, match="needs Google Football, which is not installed"):
        football_env()


ON_THE_ENGINE = """
import numpy as np, torch
from rl.envs import check_game
from rl.envs.check_parallel import check_parallel_env
from rl.envs.football import football_env
from rl.envs.parallel import ParallelGame

LEFT, RIGHT = ["left_0", "left_1", "left_2"], ["right_0"]


def match(env, seed=None, steps=40):
    chance = np.random.default_rng(0)
    seen, paid = [np.stack(list(env.reset(seed=seed)[0].values()))], []
    while env.agents and len(paid) < steps:
        looks, rewards, *_ = env.step({name: chance.integers(19) for name in env.agents})
        seen.append(np.stack(list(looks.values())))
        paid.append(list(rewards.values()))
    assert seen[0].dtype == np.float32 and seen[0].shape == (len(env.possible_agents), 115)
    return np.array(seen)


check_parallel_env(football_env, LEFT, RIGHT, horizon=500)
for scenario, left in (("academy_3_vs_1_with_keeper", 3), ("5_vs_5", 1)):
    copies = [football_env(scenario, left) for _ in range(3)]
    match(copies[0])
    for seed in range(4):
        first, *others = [match(env, seed) for env in copies]
        assert all(np.array_equal(first, other) for other in others)
        assert not np.array_equal(first, match(copies[0]))

env = football_env("academy_run_to_score", 1, 1, "scoring,checkpoints")
env.reset(seed=0)
earned = 0.0
while env.agents:  # the only attacker runs to the goal
    _, paid, *_ = env.step({"left_0": 5, "right_0": 0})
    assert paid["left_0"] == -paid["right_0"]
    earned += paid["left_0"]
assert earned > 0, earned
assert env.render().shape == (96, 216, 3)

game = ParallelGame(football_env, LEFT, RIGHT, horizon=20, at_once=5)
assert len(check_game(game)) == 3
for bad in ({"scenario": "no_such"}, {"left": 9}):
    try:
        football_env(**bad)
    except ValueError:
        continue
    raise AssertionError(bad)
print("played")
"""


@pytest.mark.slow  # plays on the engine where FOOTBALL_ENVIRONMENT names an environment that has it
@pytest.mark.skipif(not ENVIRONMENT.is_dir(), reason="no engine: bash benchmarks/football_cpu/make.sh FOLDER")
def test_the_engine_itself():
    command = [ENVIRONMENT / "bin" / "python", "-W", "ignore", "-c", ON_THE_ENGINE]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("played\n")
