"""The best known policy of a simulator of ours, its bound and its rivals, on the very episodes that are reported."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor

from rl.envs.hybrid import Decide, HybridSimulator, Noise, play, reported_cost
from rl.envs.inventory import Inventory
from rl.envs.lot_sizing import LotSizing
from rl.envs.stores import Stores
from rl.envs.switched_lqr import SwitchedLQR
from rl.hpo.references import lot_sizing, stores
from rl.hpo.references.inventory import (
    PeriodicPolicy,
    QuantityPolicy,
    joint_lower_bound,
    optimal_ss,
    periodic_policy,
    quantity_policy,
)
from rl.hpo.references.policies import decide_inventory, items_of
from rl.hpo.references.switched_lqr import decide_stages, lower_bound, solve_exact, solve_pruned

EXACT_DIMENSION = 5  # beyond, too many quadratics matter for a pairwise search


class BestKnown(NamedTuple):
    """What to compare a policy's cost with.

    Attributes:
        name: The policy: ``optimum`` where it is one.
        cost: Its reported cost on the episodes.
        others: Other policies and bounds by name; a ``lower bound`` is of the expected cost, not of these episodes.
    """

    name: str
    cost: float
    others: dict[str, float]


def best_known(simulator: HybridSimulator, noise: Noise) -> BestKnown | None:
    """Play the best known policy of a simulator.

    Args:
        simulator: Any; only some have one.
        noise: The episodes, as ``simulator.sample_noise`` gives them.

    Returns:
        The policy's cost with others beside it, or None for a simulator that nothing is known of.
    """
    if isinstance(simulator, Inventory) and simulator.unmet == "backlog":
        return _inventory(simulator, noise)
    if isinstance(simulator, LotSizing):
        return _lot_sizing(simulator, noise)
    if isinstance(simulator, Stores) and simulator.unmet == "backlog":
        return _stores(simulator, noise)
    if type(simulator) is SwitchedLQR:
        return _switched_lqr(simulator, noise)
    return None


def _cost(simulator: HybridSimulator, decide: Decide, noise: Noise) -> float:
    with torch.no_grad():
        return float(reported_cost(simulator, play(simulator, decide, noise)).double().mean())


def _inventory(simulator: Inventory, noise: Noise) -> BestKnown:
    items, total = items_of(simulator), simulator.fixed_cost
    if len(items) == 1:
        best = optimal_ss(items[0])
        return BestKnown(
            "optimum", _cost(simulator, decide_inventory(best, simulator), noise), {"average cost": best.cost}
        )
    rivals: dict[str, PeriodicPolicy | QuantityPolicy] = {
        "(R, S)": periodic_policy(items, total),
        "(Q, S)": quantity_policy(items, total),
    }
    costs = {name: _cost(simulator, decide_inventory(rival, simulator), noise) for name, rival in rivals.items()}
    name = min(costs, key=costs.__getitem__)
    return BestKnown(name, costs[name], {"lower bound": joint_lower_bound(items, total), **costs})


def _lot_sizing(simulator: LotSizing, noise: Noise) -> BestKnown:
    own = simulator.sample_noise(512, torch.Generator().manual_seed(0))
    costs = {
        name: _cost(
            simulator, lot_sizing.decide_lots(lot_sizing.tuned(simulator, own, urgent=urgent), simulator), noise
        )
        for name, urgent in (("(s, S), shared", False), ("(s, S), urgent first", True))
    }
    name = min(costs, key=costs.__getitem__)
    return BestKnown(name, costs[name], {"lower bound": lot_sizing.lower_bound(simulator), **costs})


def _stores(simulator: Stores, noise: Noise) -> BestKnown:
    own = simulator.sample_noise(512, torch.Generator().manual_seed(0))
    best = stores.tuned(simulator, own)
    cost = _cost(simulator, stores.decide_stores(best, simulator), noise)
    return BestKnown("tuned triggers", cost, {"lower bound": stores.lower_bound(simulator)})


def _switched_lqr(simulator: SwitchedLQR, noise: Noise) -> BestKnown:
    exact = simulator.observation_dim <= EXACT_DIMENSION and simulator.n_modes <= 2
    # The pruned policy is fitted to states of its own: it must not be tuned on those it is reported on.
    fitted: Tensor = simulator.sample_noise(512, torch.Generator().manual_seed(0))["initial"]
    stages = solve_exact(simulator) if exact else solve_pruned(simulator, fitted)
    cost = _cost(simulator, decide_stages(simulator, stages), noise)
    others = {}
    with contextlib.suppress(ValueError):  # it exists for some plants only
        others["lower bound"] = float(lower_bound(simulator, noise["initial"]).mean())
    return BestKnown("optimum" if exact else "pruned Riccati", cost, others)
