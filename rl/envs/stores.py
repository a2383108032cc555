"""Several stores behind one warehouse: two fixed costs, four modes, and shipments that share what the warehouse has."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rl.envs.hybrid import HybridSimulator, Noise, State
from rl.envs.inventory import RAW_LIMIT, advance, per_item, position


class Stores(HybridSimulator):
    r"""A warehouse orders from a supplier that never runs out, and ships to stores with Poisson demand.

    The mode says whether the warehouse orders (fixed cost ``order_cost``) and whether a truck leaves for the stores
    (fixed cost ``truck_cost``): 0 neither, 1 order, 2 truck, 3 both. The action is the quantity ordered and what every
    store gets. Stores ask for :math:`w_i`, see ``orders``; if that is more than the warehouse holds, all get the same
    share of it: :math:`w_i \min(1, W / \sum_j w_j)`, a bound that keeps its gradient.

    A period costs, per store, the fixed costs, ``warehouse_holding`` for every unit that stays in the warehouse, and
    ``holding`` and ``shortage`` in the stores as in :class:`~rl.envs.inventory.Inventory`, whose order of events is
    kept. Every place starts with the mean demand of its lead time and one period more.

    Args:
        mean: Mean demand of the n stores in a period, each above 0.
        holding: Cost of a unit left in a store for a period; one per store, or one for all.
        shortage: Cost of a missing unit.
        warehouse_holding: Cost of a unit in the warehouse for a period.
        order_cost: Fixed cost of an order of the warehouse.
        truck_cost: Fixed cost of a truck.
        warehouse_lead_time: Periods from the supplier to the warehouse, at least 1.
        store_lead_time: Periods from the warehouse to the stores, at least 1.
        horizon: Periods of an episode.
        unmet: What happens to demand that is not met: ``backlog`` waits, ``lost`` leaves.
        orders: What a network's raw outputs mean, as in :class:`~rl.envs.inventory.Inventory`: ``quantity``,
            :math:`\mu\, softplus(r + 1)`, or ``up_to``, a level :math:`\mu (L + 3 + r)` of the position. A store's
            position is its stock and what is under way to it. The warehouse's is all goods everywhere, against the mean
            demand of all stores and both lead times together.
        dtype: Floating type of the simulation.

    Raises:
        ValueError: If a mean is not above 0, a cost is negative, a lead time below 1, or lengths differ.
    """

    n_modes = 4
    discount = 0.99
    report_from = 16
    buffer = 20
    endless = True

    def __init__(
        self,
        mean: Sequence[float],
        holding: float | Sequence[float] = 1.0,
        shortage: float | Sequence[float] = 9.0,
        *,
        warehouse_holding: float = 0.5,
        order_cost: float = 100.0,
        truck_cost: float = 50.0,
        warehouse_lead_time: int = 3,
        store_lead_time: int = 2,
        horizon: int = 100,
        unmet: Literal["backlog", "lost"] = "backlog",
        orders: Literal["quantity", "up_to"] = "quantity",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        self.mean = torch.as_tensor(mean, dtype=dtype)
        stores = len(self.mean)
        self.holding = per_item(holding, stores, "holding", dtype)
        self.shortage = per_item(shortage, stores, "shortage", dtype)
        if not (self.mean > 0).all():
            raise ValueError(f"the mean demands are {self.mean.tolist()}, but each must be above 0")
        if min(warehouse_holding, order_cost, truck_cost) < 0 or min(warehouse_lead_time, store_lead_time) < 1:
            raise ValueError(
                f"the warehouse's holding cost is {warehouse_holding}, the fixed costs {order_cost} and {truck_cost}, "
                f"and the lead times {warehouse_lead_time} and {store_lead_time}, but no cost may be negative, and a "
                "lead time must be at least 1"
            )
        self.warehouse_holding, self.order_cost, self.truck_cost = warehouse_holding, order_cost, truck_cost
        self.warehouse_lead_time, self.store_lead_time = warehouse_lead_time, store_lead_time
        self.horizon, self.unmet, self.levels, self.action_dim = horizon, unmet, orders == "up_to", stores + 1
        self.observation_dim = stores * store_lead_time + warehouse_lead_time
        self.buffer, self.report_from = min(self.buffer, horizon // 5), min(self.report_from, horizon // 5)
        self.orders = torch.tensor([False, True, False, True])
        self.trucks = torch.tensor([False, False, True, True])

    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """Demand (batch, horizon, stores)."""
        rate = self.mean.to(generator.device).expand(batch, self.horizon, -1)
        return {"demand": torch.poisson(rate, generator=generator).to(self.device)}

    def reset(self, noise: Noise) -> State:
        """Stock of the stores (batch, n) and the warehouse (batch, 1), and nothing under way to either."""
        batch, _, stores = noise["demand"].shape
        return {
            "stock": (self.mean * (self.store_lead_time + 1)).expand(batch, -1),
            "under_way": self.mean.new_zeros(batch, self.store_lead_time - 1, stores),
            "warehouse": (self.mean.sum() * (self.warehouse_lead_time + 1)).expand(batch, 1),
            "ordered": self.mean.new_zeros(batch, self.warehouse_lead_time - 1, 1),
        }

    def observe(self, state: State, t: int) -> Tensor:
        """All stocks and everything under way, in mean demands: of the store, or of all stores together."""
        stores = torch.cat([state["stock"].unsqueeze(1), state["under_way"]], dim=1) / self.mean
        warehouse = torch.cat([state["warehouse"].unsqueeze(1), state["ordered"]], dim=1) / self.mean.sum()
        return torch.cat([stores.flatten(1), warehouse.flatten(1)], dim=1)

    def seen_state(self, observation: Tensor) -> State:
        """All of the state: an observation is the state in mean demands."""
        split = len(self.mean) * self.store_lead_time
        stores = observation[:, :split].reshape(observation.shape[0], self.store_lead_time, -1) * self.mean
        goods = observation[:, split:].unsqueeze(2) * self.mean.sum()
        return {"stock": stores[:, 0], "under_way": stores[:, 1:], "warehouse": goods[:, 0], "ordered": goods[:, 1:]}

    def action_map(self, raw: Tensor, state: State) -> Tensor:
        """A quantity at or above 0, and shipments that together are at most what the warehouse holds."""
        raw = RAW_LIMIT * torch.tanh(raw / RAW_LIMIT)
        quantity, wanted = raw[..., :1], raw[..., 1:]
        if self.levels:
            stores, total = position(state), self.mean.sum()
            everything = stores.sum(dim=1) + state["warehouse"].squeeze(1) + state["ordered"].sum(dim=(1, 2))
            lead_times = self.warehouse_lead_time + self.store_lead_time
            quantity = quantity + lead_times + 2 - (everything / total)[:, None, None]
            wanted = wanted + self.store_lead_time + 2 - (stores / self.mean).unsqueeze(1)
        quantity, wanted = self.mean.sum() * softplus(quantity + 1), self.mean * softplus(wanted + 1)
        share = (state["warehouse"].unsqueeze(1) / wanted.sum(dim=2, keepdim=True)).clamp(max=1)
        return torch.cat([quantity, wanted * share], dim=2)

    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """Order and ship, meet demand, receive what is due."""
        ordering, driving = self.orders[mode].unsqueeze(1), self.trucks[mode].unsqueeze(1)
        ordered, shipped = torch.where(ordering, action[:, :1], 0.0), torch.where(driving, action[:, 1:], 0.0)
        left = state["stock"] - noise["demand"][:, t]
        kept = state["warehouse"] - shipped.sum(dim=1, keepdim=True)
        carrying = (self.holding * left.clamp(min=0) + self.shortage * (-left).clamp(min=0)).sum(dim=1, keepdim=True)
        fixed = self.order_cost * ordering + self.truck_cost * driving
        cost = (carrying + self.warehouse_holding * kept + fixed).squeeze(1) / len(self.mean)
        to_stores, under_way = advance(state["under_way"], shipped)
        to_warehouse, on_order = advance(state["ordered"], ordered)
        stock = left.clamp(min=0) if self.unmet == "lost" else left
        following = {
            "stock": stock + to_stores,
            "under_way": under_way,
            "warehouse": kept + to_warehouse,
            "ordered": on_order,
        }
        return following, cost


def several_stores(
    stores: int = 10, orders: Literal["quantity", "up_to"] = "up_to", dtype: torch.dtype = torch.float32
) -> Stores:
    """Stores with mean demands of 6 to 14; an order of the warehouse costs twice a truck, and a unit there little.

    Args:
        stores: How many.
        orders: What a network's raw outputs mean.
        dtype: Floating type of the simulation.
    """
    number = torch.arange(stores, dtype=torch.float64)
    mean = 6 + 8 * (number * 0.37 % 1)
    holding, shortage = 0.7 + 0.6 * (number * 0.61 % 1), 6.3 + 5.4 * (number * 0.83 % 1)
    return Stores(
        mean.tolist(),
        holding.tolist(),
        shortage.tolist(),
        warehouse_holding=0.3,
        order_cost=20.0 * stores,
        truck_cost=10.0 * stores,
        orders=orders,
        dtype=dtype,
    )
