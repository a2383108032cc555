"""What the report of a csp run plays."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recipes.csp.games import Scenario
from recipes.csp.report import _coverage, _exact
from rl.csp import CSPModule, record_target
from rl.envs import FileGame


@pytest.mark.parametrize(("asked", "played"), [(20, 20), (4096, 512)])
def test_coverage_plays_no_more_episodes_than_a_test(monkeypatch, asked, played):
    class Enough(Exception):  # noqa: N818 - no error
        pass

    def stop(game, policies, episodes, generator):
        assert episodes == played
        raise Enough

    monkeypatch.setattr("rl.csp.rollout.play", stop)
    recipe = SimpleNamespace(seed=0, attack=SimpleNamespace(test_episodes=asked))
    problem, scenario = SimpleNamespace(game=None, models=[None]), SimpleNamespace(true_target=lambda: None)
    with pytest.raises(Enough):
        _coverage(recipe, problem, {"csp": None}, scenario)


def test_one_episode_alone_is_counted_once():
    game = FileGame(payoff=[[0, 1], [1, 0]])
    even = game.policy(np.full((2, 2), 0.5))
    for episodes in (1, 7):
        problem = CSPModule(game, record_target(game, even, even, episodes, torch.Generator()))
        assert _exact(Scenario(game, game), problem).counts.sum() == episodes
