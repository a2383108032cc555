"""The test for change over time: silent where the target stays the same, heard where it learns."""

import numpy as np
import pytest
import torch

from rl.csp.pairs import Pairs
from rl.csp.stationarity import change_over_time


def recorded(seed, drift, *, episodes=60, steps=8, real=False, continuous=False, ours_drift=0.0):
    """A target that takes action 1 with 0.5 plus a slope in the state, and more of it over the episodes."""
    rng = np.random.default_rng(seed)
    episode = np.repeat(np.arange(episodes), steps)
    time = episode / episodes - 0.5
    seen = rng.normal(size=(len(episode), 3)) + ours_drift * time[:, None]
    if not continuous:
        seen = (seen > 0).astype(float)
    p = (0.5 + 0.1 * np.tanh(seen[:, 0]) + drift * time).clip(0, 1)
    action = torch.from_numpy(np.where(rng.random(len(p)) < p, 1, 0))
    if real:
        action = torch.from_numpy((2 * p - 1 + rng.normal(0, 0.3, len(p)))[:, None].astype(np.float32))
    numbers = torch.from_numpy(episode)
    return Pairs(torch.from_numpy(seen.astype(np.float32)), action, None, numbers, numbers)


@pytest.mark.parametrize("how", [{}, {"real": True, "continuous": True}, {"episodes": 1, "steps": 480}])
def test_a_target_that_stays_the_same_is_rarely_accused(how):
    p_values = [change_over_time(recorded(seed, 0.0, **how), permutations=99).p_value for seed in range(40)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.125
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.17)


def test_our_own_change_is_not_the_targets():
    p_values = [change_over_time(recorded(seed, 0.0, ours_drift=2.0), permutations=99).p_value for seed in range(40)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.125


@pytest.mark.parametrize("how", [{}, {"continuous": True}, {"real": True, "continuous": True}])
def test_a_target_that_changes_over_the_episodes_is_found(how):
    found = [change_over_time(recorded(seed, 0.6, **how), permutations=99).p_value for seed in range(10)]
    assert max(found) <= 0.05


def test_a_bot_that_learns_within_one_long_match_is_found():
    rng = np.random.default_rng(0)
    rounds = 600
    p = np.linspace(0.2, 0.8, rounds)
    action = torch.from_numpy((rng.random(rounds) < p).astype(np.int64))
    zeros = torch.zeros(rounds, dtype=torch.int64)
    assert change_over_time(Pairs(torch.ones(rounds, 1), action, None, zeros, zeros)).p_value <= 0.01


def test_too_little_says_nothing_and_nothing_is_refused():
    few = recorded(0, 0.5, episodes=1, steps=3)
    assert change_over_time(few).p_value == 1.0
    with pytest.raises(ValueError, match="there are no pairs to test"):
        change_over_time(few.rows(torch.zeros(0, dtype=torch.int64)))
