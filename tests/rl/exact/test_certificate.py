"""Certificates from counts: radii by hand, coverage over repeated data, and growth with the data."""

import math

import numpy as np
import pytest

from rl.envs import vault_maze
from rl.exact import certify, weissman_radius

GAME, GUARD = vault_maze.maze_game(), vault_maze.true_guard()


def counts(rng, episodes):
    aggressive = rng.binomial(episodes, GUARD[1, 1])
    gate = episodes - aggressive
    table = np.zeros((7, 2))
    for node, visits in ((0, episodes), (3, gate)):
        table[node, 1] = rng.binomial(visits, 0.5)
        table[node, 0] = visits - table[node, 1]
    table[1] = gate, aggressive
    return table


def test_radius_by_hand():
    assert weissman_radius(400, 2, 4, 0.05, any_count=False) == pytest.approx(
        0.5 * math.sqrt(2 * math.log(2 * 4 / 0.05) / 400)
    )
    assert weissman_radius(400, 4, 3, 0.1) == pytest.approx(
        0.5 * math.sqrt(2 * math.log(14 * 3 * 400 * 401 / 0.1) / 400)
    )
    assert weissman_radius(0, 2, 4, 0.05) == weissman_radius(1, 2, 4, 0.05) == 1


def test_few_certificates_are_wrong_and_they_grow_with_the_data():
    rng, means = np.random.default_rng(0), []
    for episodes in (30, 300, 3000):
        found = [certify(GAME, counts(rng, episodes)) for _ in range(40)]
        claimed = np.array([one.solution.value for one in found])
        true = np.array([GAME.value(one.solution.plan, GUARD) for one in found])
        assert (claimed > true + 1e-9).mean() <= 0.05
        means.append(claimed.mean())
    assert means[0] == pytest.approx(0.3, abs=0.02)
    assert means[0] < means[1] < means[2] < 0.7335


def test_states_without_data_are_free_and_states_where_the_target_does_not_matter_are_not_counted():
    certificate = certify(GAME, counts(np.random.default_rng(1), 1000), any_count=False)
    assert certificate.radii[2] == certificate.radii[4] == 1
    assert certificate.radii[0] == pytest.approx(weissman_radius(1000, 2, 4, 0.05, any_count=False))
    assert certificate.confidence == 0.95


def test_refusals():
    with pytest.raises(ValueError, match=r"counts have shape \(3, 2\), but the game has 7 states and 2 actions"):
        certify(GAME, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="probability of failure is 0"):
        certify(GAME, np.ones((7, 2)), failure=0)
