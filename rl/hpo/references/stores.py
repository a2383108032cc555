"""A heuristic of stores behind a warehouse with four tuned numbers, and the bound that leaves the warehouse out."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from rl.envs.hybrid import Decide, Noise, State, play, reported_cost
from rl.envs.stores import Stores
from rl.hpo.references.inventory import Item, joint_lower_bound

STEPS = (1.0, 0.5, 0.25, 0.1)  # of the search, in mean demands


class Triggers(NamedTuple):
    """A truck leaves when enough is missing in the stores, and the warehouse orders when enough is missing in all.

    All four numbers are in mean demands: of a store, or of all stores together.

    Attributes:
        truck: How much must be missing of the stores' levels together for a truck to leave.
        level: What a store's stock and what is under way to it are raised to, beyond the mean demand of its lead time.
        order: How much must be missing of the level of everything for the warehouse to order.
        echelon: What all stock and all that is under way are raised to, beyond the mean demand of both lead times.
    """

    truck: float
    level: float
    order: float
    echelon: float


def lower_bound(simulator: Stores) -> float:
    """Average cost per store and period if the warehouse never lacked anything and cost nothing: trucks and stores."""
    columns = (simulator.mean, simulator.holding, simulator.shortage)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    share, lead_time = simulator.truck_cost / len(simulator.mean), simulator.store_lead_time
    items = [Item(mean, holding, shortage, share, lead_time) for mean, holding, shortage in rows]
    return joint_lower_bound(items, simulator.truck_cost)


def decide_stores(policy: Triggers, simulator: Stores) -> Decide:
    """Decisions of such a policy, for :func:`rl.envs.hybrid.play`; what the warehouse lacks is shared in proportion."""
    mean, total = simulator.mean, simulator.mean.sum()
    store_level = mean * (simulator.store_lead_time + policy.level)
    everything = total * (simulator.store_lead_time + simulator.warehouse_lead_time + policy.echelon)

    def decide(state: State, t: int) -> tuple[Tensor, Tensor]:
        held = state["warehouse"]
        missing = store_level - state["stock"] - state["under_way"].sum(1)
        wanted = missing.clamp(min=0)
        shipped = wanted * (held / wanted.sum(1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
        truck = missing.sum(1) >= policy.truck * total
        position = held.sum(1) + state["ordered"].sum((1, 2)) + (store_level - missing).sum(1)
        order = everything - position >= policy.order * total
        quantity = (everything - position).clamp(min=0).unsqueeze(1)
        return order.long() + 2 * truck.long(), torch.cat([quantity, shipped], 1)

    return decide


def tuned(simulator: Stores, noise: Noise) -> Triggers:
    """The best numbers that a pattern search finds, on episodes of its own.

    Args:
        simulator: The simulator.
        noise: Episodes to tune on; not those of a comparison.
    """

    def cost(policy: Triggers) -> float:
        return float(reported_cost(simulator, play(simulator, decide_stores(policy, simulator), noise)).mean())

    starts = [
        Triggers(truck, truck + 1, order, order + 1) for truck, order in itertools.product((1.0, 2.0), (1.0, 2.5))
    ]
    best = min(starts, key=cost)
    lowest = cost(best)
    for step in STEPS:
        better = True
        while better:
            better = False
            for place, sign in itertools.product(range(4), (step, -step)):
                moved = Triggers(*(number + sign * (i == place) for i, number in enumerate(best)))
                if (found := cost(moved)) < lowest:
                    best, lowest, better = moved, found, True
    return best
