"""The football adapter against a stand-in for the engine, and the sentence where the engine is absent."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from rl.envs.check_parallel import check_parallel_env
from rl.envs.football import football_env


class Engine:
    """Has the interface of the engine, none of its football."""

    def __init__(self, players):
        self.players, self._config = players, {"game_engine_random_seed": 0}

    @property
    def unwrapped(self):
        return self

    def reset(self):
        self.rng, self.time = np.random.default_rng(self._config["game_engine_random_seed"]), 0
        return self.rng.normal(size=(self.players, 115))

    def step(self, actions):
        assert len(actions) == self.players
        self.time += 1
        reward = float(sum(actions) > 30)
        return self.rng.normal(size=(self.players, 115)), np.array([reward] * 3 + [-reward]), self.time == 6, {}


def test_both_teams_are_agents(monkeypatch):
    made = {}

    def create_environment(**arguments):
        made.update(arguments)
        return Engine(4)

    module = types.ModuleType("gfootball.env")
    module.create_environment = create_environment
    monkeypatch.setitem(sys.modules, "gfootball", types.ModuleType("gfootball"))
    monkeypatch.setitem(sys.modules, "gfootball.env", module)
    lines = check_parallel_env(football_env, ["left_0", "left_1", "left_2"], ["right_0"], horizon=10)
    assert "at most 6 steps" in lines[1]
    assert made["number_of_right_players_agent_controls"] == 1
    env = football_env()
    env.reset(seed=1)
    _, paid, *_ = env.step(dict.fromkeys(env.agents, 18))
    assert paid == {"left_0": 1.0, "left_1": 1.0, "left_2": 1.0, "right_0": -1.0}


@pytest.mark.skipif(importlib.util.find_spec("gfootball") is not None, reason="the engine is installed")
def test_absent_engine():
    with pytest.raises(ImportError, match="needs Google Football, which is not installed"):
        football_env()


def test_a_team_without_players():
    with pytest.raises(ValueError, match="each needs one"):
        football_env(right=0)
