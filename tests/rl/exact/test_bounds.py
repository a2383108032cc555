"""Bounds of the performance gap on random games, and the instance that attains one of them."""

import numpy as np
import pytest

from rl.exact import MarkovGame
from rl.exact.bounds import (
    advantage_bound,
    coupling_bound,
    horizon_bound,
    occupancy_bound,
    pinsker_bound,
    simulation_bound,
    target_action_values,
    total_variation,
    value_difference,
)
from tests.rl.exact.games import random_game


def pair(rng, states, theirs):
    target = rng.dirichlet(np.full(theirs, rng.choice([0.3, 1.0, 5.0])), states)
    share = rng.choice([0.01, 0.1, 0.5, 1.0])
    return target, (1 - share) * target + share * rng.dirichlet(np.full(theirs, 0.5), states)


def test_no_bound_is_violated_in_a_thousand_random_games():
    rng, closest = np.random.default_rng(0), 0.0
    for _ in range(1000):
        states, ours, theirs = (int(rng.integers(*limits)) for limits in ((2, 9), (1, 5), (2, 6)))
        discount = float(rng.choice([0.5, 0.8, 0.9, 0.95, 0.99]))
        game = random_game(rng, states, ours, theirs, discount)
        plan = rng.dirichlet(np.ones(ours), states)
        target, proxy = pair(rng, states, theirs)
        gaps = game.values(plan, proxy) - game.values(plan, target)
        anywhere, from_start = np.abs(gaps).max(), abs(game.start @ gaps)
        distance, span, occupancy = total_variation(proxy, target), np.ptp(game.reward), game.occupancy(plan, proxy)
        slack = 1e-10 / (1 - discount)
        assert anywhere <= coupling_bound(span, distance.max(), discount) + slack
        assert (
            coupling_bound(span, distance.max(), discount) <= simulation_bound(span, distance.max(), discount) + slack
        )
        assert anywhere <= pinsker_bound(span, target, proxy, discount) + slack
        sharp = advantage_bound(occupancy, distance, target_action_values(game, plan, target), discount)
        assert from_start <= sharp + slack
        assert sharp <= occupancy_bound(span, occupancy, distance, discount) + slack
        assert value_difference(game, plan, proxy, target) == pytest.approx(game.start @ gaps, abs=1e-9)
        closest = max(closest, from_start / sharp)
    assert closest > 0.9


@pytest.mark.parametrize(
    ("discount", "distance", "gap"), [(0.9, 0.1, 5.2631578947), (0.99, 0.05, 84.03361345), (0.5, 0.5, 4 / 3)]
)
def test_the_coupling_bound_is_attained(discount, distance, gap):
    transition = np.zeros((2, 1, 2, 2))
    transition[0, 0, 0, 0] = transition[0, 0, 1, 1] = transition[1, 0, :, 1] = 1
    reward = np.zeros((2, 1, 2))
    reward[0, 0, 0] = 1
    game, plan = MarkovGame(transition, reward, discount, np.array([1.0, 0.0])), np.ones((2, 1))
    difference = game.value(plan, np.array([[1.0, 0], [1, 0]])) - game.value(
        plan, np.array([[1 - distance, distance], [1, 0]])
    )
    assert difference == pytest.approx(coupling_bound(1.0, distance, discount), abs=1e-8)
    assert difference == pytest.approx(gap, abs=1e-8)


def test_finite_horizon():
    rng = np.random.default_rng(1)
    for _ in range(200):
        states, ours, theirs, horizon = (int(rng.integers(*limits)) for limits in ((2, 8), (1, 4), (2, 5), (1, 12)))
        game = random_game(rng, states, ours, theirs)
        plan = rng.dirichlet(np.ones(ours), states)
        values = []
        policies = pair(rng, states, theirs)
        for policy in policies:
            value = np.zeros(states)
            for _ in range(horizon):
                value = np.einsum("sa,sb,sab->s", plan, policy, game.reward + game.transition @ value)
            values.append(value)
        bound = horizon_bound(np.ptp(game.reward), total_variation(*policies).max(), horizon)
        assert np.abs(values[0] - values[1]).max() <= bound + 1e-12
