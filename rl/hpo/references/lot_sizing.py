"""Heuristics of capacitated lot sizing with two tuned numbers each, and the bound that leaves the capacity out."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from rl.envs.hybrid import Decide, Noise, State, play, reported_cost
from rl.envs.lot_sizing import LotSizing
from rl.hpo.references.inventory import SS, Item, optimal_ss

EARLIER = (0.0, 0.15, 0.3, 0.45, 0.6, 0.9)  # mean demands by which the reorder points are raised
LARGER = (-0.3, 0.0, 0.3, 0.6)  # and the levels


class Shifted(NamedTuple):
    """The (s, S) policies of the items alone, all of them raised by as many mean demands.

    Attributes:
        policies: One for each item.
        earlier: By how many mean demands the reorder points are raised.
        larger: And the levels.
        urgent: Whether items wait whose stock lasts longest, where all that is due needs more than the capacity; else
            all get a share.
    """

    policies: tuple[SS, ...]
    earlier: float
    larger: float
    urgent: bool


def alone(simulator: LotSizing) -> tuple[SS, ...]:
    """The optimal policy of every item on a machine of its own without a capacity."""
    columns = (simulator.mean, simulator.holding, simulator.shortage, simulator.setup_cost)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return tuple(optimal_ss(Item(*row)) for row in rows)


def lower_bound(simulator: LotSizing) -> float:
    """Average cost per item and period without the capacity, which no policy can be below in the long run."""
    found = alone(simulator)
    return sum(policy.cost for policy in found) / len(found)


def decide_lots(policy: Shifted, simulator: LotSizing) -> Decide:
    """Decisions of such a policy, for :func:`rl.envs.hybrid.play`."""
    mean = simulator.mean
    points, levels = (torch.tensor(row).to(mean) for row in zip(*(p[:2] for p in policy.policies), strict=True))
    points, levels = points + policy.earlier * mean, levels + policy.larger * mean

    def decide(state: State, t: int) -> tuple[Tensor, Tensor]:
        stock = state["stock"]
        due, wanted = stock <= points, (levels - stock).clamp(min=0)
        if policy.urgent:
            order = ((stock - points) / mean).argsort(1)
            need = torch.where(due, wanted + simulator.setup_time, 0.0).gather(1, order)
            before = need.cumsum(1) - need
            fits = (before + simulator.setup_time[order] < simulator.capacity).gather(1, order.argsort(1))
            due = due & fits
        return due.long(), wanted

    return decide


def tuned(simulator: LotSizing, noise: Noise, *, urgent: bool) -> Shifted:
    """The best of a grid of shifts, on episodes of its own.

    Args:
        simulator: The simulator.
        noise: Episodes to tune on; not those of a comparison.
        urgent: See `Shifted`.
    """
    policies = alone(simulator)
    tried = [Shifted(policies, *shifts, urgent) for shifts in itertools.product(EARLIER, LARGER)]

    def cost(policy: Shifted) -> float:
        return float(reported_cost(simulator, play(simulator, decide_lots(policy, simulator), noise)).mean())

    return min(tried, key=cost)
