"""Triggers of trucks and orders reach the optimum of one store, and stay above the bound of several."""

import torch

from rl.envs.hybrid import play, reported_cost
from rl.envs.stores import Stores, several_stores
from rl.hpo.known_optima import best_known
from rl.hpo.references.inventory import Item, optimal_ss
from rl.hpo.references.stores import decide_stores, lower_bound, tuned


def test_triggers_are_optimal_for_one_store_whose_warehouse_costs_nothing() -> None:
    simulator = Stores([10.0], 1.0, 9.0, warehouse_holding=0.0, order_cost=0.0, truck_cost=64.0, horizon=400)
    optimum = optimal_ss(Item(10.0, 1.0, 9.0, 64.0, 2)).cost
    assert abs(lower_bound(simulator) - optimum) < 1e-6
    own, noise = (simulator.sample_noise(256, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    policy = tuned(simulator, own)
    cost = reported_cost(simulator, play(simulator, decide_stores(policy, simulator), noise)).mean().item()
    assert abs(cost / optimum - 1) < 0.01


def test_triggers_never_ship_what_the_warehouse_lacks_and_stay_above_the_bound() -> None:
    simulator = several_stores(4)
    noise = simulator.sample_noise(256, torch.Generator().manual_seed(1))
    best = best_known(simulator, noise)
    assert best is not None
    assert best.others["lower bound"] < best.cost < 2 * best.others["lower bound"]
    decide = decide_stores(tuned(simulator, noise), simulator)
    state = simulator.reset(noise)
    for t in range(simulator.horizon):
        mode, action = decide(state, t)
        assert (action[:, 1:].sum(1) <= state["warehouse"][:, 0] + 1e-3).all()
        state, _ = simulator.step(state, mode, action, noise, t)
