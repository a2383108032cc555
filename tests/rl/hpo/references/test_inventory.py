"""Inventory references against published optima, value iteration, simulation and each other."""

import numpy as np
import pytest
import torch

from rl.envs.hybrid import play, reported_cost
from rl.envs.inventory import joint_replenishment, single_item
from rl.hpo.references.inventory import (
    Item,
    evaluate_ss,
    joint_lower_bound,
    optimal_ss,
    periodic_policy,
    quantity_policy,
    value_iteration,
)
from rl.hpo.references.policies import decide_inventory, items_of

# Veinott and Wagner's family as published with the search: h = 1, b = 9, K = 64, no lead time.
CLASSICAL = {
    10: (6, 40, 35.0216),
    15: (10, 49, 42.6978),
    20: (14, 62, 49.1730),
    21: (15, 65, 50.4060),
    22: (16, 68, 51.6323),
    23: (17, 52, 52.7567),
    24: (18, 54, 53.5179),
    25: (19, 56, 54.2622),
    51: (43, 110, 71.6109),
    55: (47, 118, 74.1487),
    61: (52, 131, 77.9287),
    63: (54, 73, 78.2868),
    64: (55, 74, 78.4023),
    75: (67, 86, 79.5538),
}
LEAD_TIME_2 = {30: (28, 52, 27.150), 40: (28, 55, 30.425), 50: (27, 58, 33.358), 60: (27, 61, 36.052)} | {
    64: (26, 62, 37.0644),
    70: (26, 63, 38.514),
    80: (26, 65, 40.830),
}


@pytest.mark.parametrize("mean", CLASSICAL)
def test_the_search_finds_the_classical_optima(mean):
    reorder, up_to, cost = CLASSICAL[mean]
    assert optimal_ss(Item(mean, 1, 9, 64))[:3] == (reorder, up_to, pytest.approx(cost, abs=5e-5))


@pytest.mark.parametrize("fixed_cost", LEAD_TIME_2)
def test_the_search_finds_the_optima_with_lead_time(fixed_cost):
    reorder, up_to, cost = LEAD_TIME_2[fixed_cost]
    assert optimal_ss(Item(10, 1, 9, fixed_cost, 2))[:3] == (reorder, up_to, pytest.approx(cost, abs=6e-4))


@pytest.mark.parametrize(
    "item", [Item(10, 1, 9, 64, 2), Item(7.3, 0.8, 6.4, 20, 1), Item(3, 1, 20, 5), Item(12, 1.3, 11, 200, 2)]
)
def test_value_iteration_without_any_structure_agrees(item):
    search, iterated = optimal_ss(item), value_iteration(item)
    assert iterated.cost == pytest.approx(search.cost, abs=1e-6)
    assert evaluate_ss(item, iterated.reorder, iterated.up_to).cost == pytest.approx(search.cost, abs=1e-6)


def test_no_neighbour_is_better_and_a_free_order_is_a_base_stock():
    item = Item(8.5, 1.1, 8, 40, 1)
    best = optimal_ss(item)
    for reorder in range(best.reorder - 6, best.reorder + 7):
        for up_to in range(max(reorder + 1, best.up_to - 10), best.up_to + 10):
            assert evaluate_ss(item, reorder, up_to).cost >= best.cost - 1e-12
    free = optimal_ss(Item(8.5, 1.1, 8, 0.0, 1))
    assert free.up_to - free.reorder == 1
    assert free.cost == pytest.approx(float(item.period_cost(np.arange(60)).min()))


def test_slope_of_the_optimum_in_the_fixed_cost_is_the_frequency_of_orders():
    below, here, above = (optimal_ss(Item(10, 1, 9, cost, 2)) for cost in (63.99, 64, 64.01))
    assert (above.cost - below.cost) / 0.02 == pytest.approx(here.frequency, abs=1e-6)


def test_the_optimal_policy_costs_in_the_simulator_what_theory_says():
    simulator = single_item()
    noise = simulator.sample_noise(4000, torch.Generator().manual_seed(0))
    policy = optimal_ss(items_of(simulator)[0])
    decide, orders = decide_inventory(policy, simulator), []

    def counted(state, t):
        mode, action = decide(state, t)
        orders.append(mode.float().mean().item())
        return mode, action

    costs = play(simulator, counted, noise)
    assert reported_cost(simulator, costs).mean().item() == pytest.approx(37.079, abs=0.08)  # 100 periods, 16 dropped
    assert np.mean(orders[50:]) == pytest.approx(policy.frequency, abs=0.005)


# Lower bound, and cost of (R, S) and (Q, S), per item and period. The first bound is the item's own optimum.
JOINT = {1: (34.901, 36.995, 34.931), 3: (35.545, 37.406, 37.087), 5: (36.807, 38.653, 38.533)}
JOINT_SLOW = {10: (36.714, 38.553, 38.481), 20: (36.894, 38.684, 38.565)}


@pytest.mark.parametrize("items", [*JOINT, *(pytest.param(count, marks=pytest.mark.slow) for count in JOINT_SLOW)])
def test_bounds_and_heuristics_of_joint_replenishment(items):
    bound, periodic, quantity = (JOINT | JOINT_SLOW)[items]
    simulator = joint_replenishment(items)
    rows, fixed_cost = items_of(simulator), simulator.fixed_cost
    assert joint_lower_bound(rows, fixed_cost) == pytest.approx(bound, abs=2e-3)
    policy = periodic_policy(rows, fixed_cost)
    assert policy.review == 4
    assert policy.cost == pytest.approx(periodic, abs=2e-3)
    assert quantity_policy(rows, fixed_cost, ratios=(3.5, 4.0), episodes=200).cost == pytest.approx(quantity, abs=0.03)


def test_a_better_split_only_raises_the_bound():
    rows = items_of(joint_replenishment(3))
    uniform = np.mean([optimal_ss(row).cost for row in rows])
    best = joint_lower_bound(rows, 192.0)
    assert best >= uniform
    rng = np.random.default_rng(0)
    for share in rng.dirichlet(np.ones(3), size=20) * 192:
        split = [Item(row.mean, row.holding, row.shortage, cost, 2) for row, cost in zip(rows, share, strict=True)]
        assert np.mean([optimal_ss(item).cost for item in split]) <= best + 1e-4


def test_heuristics_cost_in_the_simulator_what_they_say():
    simulator = joint_replenishment(5, horizon=400)
    rows = items_of(simulator)
    noise = simulator.sample_noise(200, torch.Generator().manual_seed(1))
    for policy in (
        periodic_policy(rows, simulator.fixed_cost),
        quantity_policy(rows, simulator.fixed_cost, (3.5,), 200),
    ):
        costs = play(simulator, decide_inventory(policy, simulator), noise)[:, 100:]
        assert costs.mean().item() == pytest.approx(policy.cost, rel=5e-3)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="the level must be the higher one"):
        evaluate_ss(Item(10, 1, 9, 64), 5, 5)
    with pytest.raises(ValueError, match="reviews is empty"):
        periodic_policy([Item(10, 1, 9, 64)], 64, reviews=())
    with pytest.raises(ValueError, match="ratios is empty"):
        quantity_policy([Item(10, 1, 9, 64)], 64, ratios=())
