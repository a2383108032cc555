"""Episodes that are in the data twice: heard where files were joined, silent where a game is small."""

import numpy as np
import pytest
import torch

from rl.csp import CSPModule, certify, record_target
from rl.csp.copies import copied_episodes, data_warnings
from rl.csp.dataset import TargetData
from rl.envs import FileGame
from tests.rl.csp.test_stationarity import recorded

RPS = FileGame(payoff=[[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
ROCK = RPS.policy(np.array([[0.8, 0.1, 0.1], [1, 0, 0]]))


def games(episodes: int, seed: int = 0) -> TargetData:
    return record_target(RPS, ROCK, ROCK, episodes, torch.Generator().manual_seed(seed))


def joined(*parts: TargetData) -> TargetData:
    """The rows of several files, with episodes numbered on."""
    first = np.cumsum([0, *(part.episode.max() + 1 for part in parts[:-1])])
    columns = zip(*(part._replace(episode=part.episode + n) for part, n in zip(parts, first, strict=True)), strict=True)
    return TargetData(*(None if column[0] is None else np.concatenate(column) for column in columns))


def test_files_that_were_joined_to_themselves_or_overlap_are_heard() -> None:
    data, more = games(100), games(60, seed=1)
    assert copied_episodes(joined(data, data).pairs()) == 100
    assert copied_episodes(joined(data, data, data).pairs()) == 200
    assert copied_episodes(joined(data, more, data).pairs()) == 100
    told = str(certify(lambda seen, mask, generator: torch.ones(seen.shape[:2]).long(), joined(data, data), RPS))
    assert "Warning: the last 100 episodes repeat the first 100 in the same order" in told
    assert data_warnings(joined(data, more).pairs()) == []


def test_a_small_game_is_rarely_accused() -> None:
    assert sum(copied_episodes(games(40, seed).pairs()) > 0 for seed in range(200)) <= 6
    always = record_target(RPS, ROCK, RPS.policy(np.eye(3)[[0, 0]]), 50, torch.Generator().manual_seed(0))
    assert copied_episodes(always.pairs()) == 0
    assert copied_episodes(games(1).pairs()) == 0


@pytest.mark.parametrize("real", [True, False])
def test_real_numbers_are_compared_too(real: bool) -> None:
    pairs = recorded(0, 0.0, continuous=True, real=real)
    assert copied_episodes(pairs) == 0
    twice = [torch.cat([part, part]) for part in (pairs.observations, pairs.actions)]
    numbers = torch.cat([pairs.episodes, pairs.episodes + 60])
    assert copied_episodes(pairs._replace(observations=twice[0], actions=twice[1], episodes=numbers)) == 60


def test_data_that_a_program_made_in_double_precision_are_trained_on() -> None:
    data = games(20)
    wide = data._replace(observation=data.observation.astype(np.float64), action=data.action.astype(np.int32))
    pairs = data.pairs()._replace(
        observations=torch.from_numpy(wide.observation), actions=torch.from_numpy(wide.action)
    )
    for given in (wide, pairs):
        module = CSPModule(RPS, given, hidden=[4])
        module.warm_up()
        assert torch.equal(module.pairs.observations, data.pairs().observations)
        assert module.pairs.actions.dtype == torch.int64
    with pytest.raises(ValueError, match="discrete actions"):
        CSPModule(RPS, pairs._replace(actions=pairs.actions + 0.5))
    with pytest.raises(ValueError, match="the data hold NaN"):
        CSPModule(RPS, pairs._replace(observations=pairs.observations * torch.nan))


@pytest.mark.parametrize("episodes", [1, 10])
def test_a_module_has_all_the_data_once(episodes: int) -> None:
    module = CSPModule(RPS, games(episodes))
    assert len(module.pairs.actions) == episodes
