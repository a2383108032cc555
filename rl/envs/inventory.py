"""Inventory of several items that share one fixed ordering cost: joint replenishment in hybrid form."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from rl.envs.hybrid import HybridSimulator, Noise, State

RAW_LIMIT = 10.0  # of a network's outputs, in mean demands


class Inventory(HybridSimulator):
    r"""Periodic review, Poisson demand, and one fixed cost whenever anything is ordered.

    In period t: see the stock :math:`I` and the orders under way; order nothing (mode 0) or quantities
    :math:`q \ge 0` at the fixed cost ``K`` (mode 1); then demand :math:`D` comes, and the period costs, per item,

    .. math:: \frac{1}{p} \Big( K 1\{x = 1\} + \sum_i h_i (I_i - D_i)^+ + b_i (D_i - I_i)^+ \Big).

    An order of period t can serve demand from period ``t + lead_time`` on. Unmet demand waits at ``b`` a period
    (``backlog``) or is lost at ``b`` once (``lost``). Episodes start empty. The jump at q = 0 is the mode's.

    Args:
        mean: Mean demand of the p items in a period, each above 0.
        holding: Cost h of a unit left over, for a period; one per item, or one for all.
        shortage: Cost b of a unit that is missing.
        fixed_cost: Cost K of an order, whatever is in it.
        lead_time: Whole periods, at least 0.
        horizon: Periods of an episode.
        unmet: What happens to demand that is not met.
        orders: What a network's raw outputs mean: ``quantity``, :math:`q = \mu\, softplus(r + 1)`, or ``up_to``, a
            level :math:`\mu (L + 3 + r)` of the position (stock and orders under way), towards which
            :math:`q = \mu\, softplus((level - position) / \mu)` orders. Raw outputs are bounded first, smoothly, by
            10 mean demands: a network that extrapolates could otherwise order the more, the more there is.
        dtype: Floating type of the simulation.

    Raises:
        ValueError: If a mean is not above 0, a cost or the lead time is negative, or lengths differ.

    Example:
        >>> simulator = Inventory([10.0], 1.0, 9.0, fixed_cost=64.0, lead_time=2)
        >>> state = simulator.reset({"demand": torch.full((1, 100, 1), 8.0)})
        >>> state, cost = simulator.step(
        ...     state, torch.tensor([1]), torch.tensor([[20.0]]), {"demand": torch.full((1, 100, 1), 8.0)}, 0
        ... )
        >>> cost.item(), state["stock"].item(), state["under_way"].tolist()
        (136.0, -8.0, [[[20.0]]])
    """

    n_modes = 2
    discount = 0.99
    report_from = 16
    buffer = 20
    endless = True

    def __init__(
        self,
        mean: Sequence[float],
        holding: float | Sequence[float],
        shortage: float | Sequence[float],
        *,
        fixed_cost: float,
        lead_time: int = 0,
        horizon: int = 100,
        unmet: Literal["backlog", "lost"] = "backlog",
        orders: Literal["quantity", "up_to"] = "quantity",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        self.mean = torch.as_tensor(mean, dtype=dtype)
        items = len(self.mean)
        self.holding, self.shortage = (
            per_item(holding, items, "holding", dtype),
            per_item(shortage, items, "shortage", dtype),
        )
        if not (self.mean > 0).all():
            raise ValueError(f"the mean demands are {self.mean.tolist()}, but each must be above 0")
        if fixed_cost < 0 or lead_time < 0:
            raise ValueError(
                f"the fixed cost is {fixed_cost} and the lead time {lead_time}, but neither may be negative"
            )
        self.fixed_cost, self.lead_time, self.unmet, self.orders = fixed_cost, lead_time, unmet, orders
        self.horizon, self.action_dim = horizon, items
        self.observation_dim = items * max(lead_time, 1)
        self.buffer, self.report_from = min(self.buffer, horizon // 5), min(self.report_from, horizon // 5)

    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """Demand (batch, horizon, items)."""
        rate = self.mean.to(generator.device).expand(batch, self.horizon, -1)
        return {"demand": torch.poisson(rate, generator=generator).to(self.device)}

    def reset(self, noise: Noise) -> State:
        """No stock (batch, items) and no orders under way (batch, lead time - 1, items)."""
        empty = torch.zeros_like(noise["demand"][:, 0])
        return {"stock": empty, "under_way": empty.unsqueeze(1).expand(-1, max(self.lead_time - 1, 0), -1)}

    def observe(self, state: State, t: int) -> Tensor:
        """Stock and orders under way, in mean demands."""
        return (torch.cat([state["stock"].unsqueeze(1), state["under_way"]], dim=1) / self.mean).flatten(1)

    def seen_state(self, observation: Tensor) -> State:
        """All of the state: an observation is the state in mean demands."""
        whole = observation.reshape(observation.shape[0], max(self.lead_time, 1), -1) * self.mean
        return {"stock": whole[:, 0], "under_way": whole[:, 1:]}

    def action_map(self, raw: Tensor, state: State) -> Tensor:
        """Quantities at or above 0 for mode 1; nothing for mode 0."""
        raw = RAW_LIMIT * torch.tanh(raw / RAW_LIMIT)
        if self.orders == "up_to":
            raw = raw + self.lead_time + 2 - (position(state) / self.mean).unsqueeze(1)
        quantity = self.mean * softplus(raw[:, 1] + 1)
        return torch.stack([torch.zeros_like(quantity), quantity], dim=1)

    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """Order, meet demand, receive what is due."""
        ordering = mode == 1
        placed = torch.where(ordering.unsqueeze(1), action, 0.0)
        on_hand = state["stock"] + placed if self.lead_time == 0 else state["stock"]
        left = on_hand - noise["demand"][:, t]
        carrying = self.holding * left.clamp(min=0) + self.shortage * (-left).clamp(min=0)
        cost = (carrying.sum(dim=1) + self.fixed_cost * ordering) / self.action_dim
        stock = left.clamp(min=0) if self.unmet == "lost" else left
        if self.lead_time == 0:
            return {"stock": stock, "under_way": state["under_way"]}, cost
        arriving, under_way = advance(state["under_way"], placed)
        return {"stock": stock + arriving, "under_way": under_way}, cost


def position(state: State) -> Tensor:
    """Stock and all orders under way, (batch, items)."""
    return state["stock"] + state["under_way"].sum(dim=1)


def advance(under_way: Tensor, placed: Tensor) -> tuple[Tensor, Tensor]:
    """What arrives after this period (batch, items), and the queue (batch, lead time - 1, items) with the new order."""
    queue = torch.cat([under_way, placed.unsqueeze(1)], dim=1)
    return queue[:, 0], queue[:, 1:]


def per_item(values: float | Sequence[float], items: int, name: str, dtype: torch.dtype) -> Tensor:
    """A cost for every item, from one for all or one for each; refuses negative ones and other lengths."""
    costs = torch.as_tensor(values, dtype=dtype)
    if costs.ndim > 1 or (costs.ndim == 1 and len(costs) != items) or (costs < 0).any():
        raise ValueError(f"{name} is {values}, but it must be one cost at or above 0, or {items}: one for each item")
    return costs.expand(items).clone()


def single_item(fixed_cost: float = 64.0, dtype: torch.dtype = torch.float32) -> Inventory:
    """One item: Poisson demand of mean 10, h = 1, b = 9, lead time 2; at K = 64 the best average cost is 37.064."""
    return Inventory([10.0], 1.0, 9.0, fixed_cost=fixed_cost, lead_time=2, dtype=dtype)


def joint_replenishment(
    items: int,
    orders: Literal["quantity", "up_to"] = "quantity",
    horizon: int = 100,
    dtype: torch.dtype = torch.float32,
) -> Inventory:
    r"""The joint-replenishment family of Hybrid Policy Optimization, drawn with its seeds.

    :math:`\mu_i \sim U[6, 14]` rounded to 3 digits, :math:`h_i \sim U[0.7, 1.3]`, :math:`b_i \sim U[6.3, 11.7]`, lead
    time 2, and K = 64 an item.

    Args:
        items: Number of items, at least 1.
        orders: See :class:`Inventory`.
        horizon: Periods of an episode.
        dtype: Floating type of the simulation.

    Returns:
        The simulator; its cost is per item and period.

    Reference:
        Alvo, Russo and Kanoria (2026), "Policy Optimization in Hybrid Discrete-Continuous Action Spaces via Mixed
        Gradients", arXiv 2605.14297.
    """
    mean = _uniform(33, 6, 14, items).round(3)
    holding, shortage = _uniform(73, 0.7, 1.3, items), _uniform(28, 6.3, 11.7, items)
    return Inventory(
        mean.tolist(),
        holding.tolist(),
        shortage.tolist(),
        fixed_cost=64.0 * items,
        lead_time=2,
        orders=orders,
        horizon=horizon,
        dtype=dtype,
    )


def _uniform(seed: int, low: float, high: float, items: int) -> np.ndarray:
    """Draws of numpy's legacy generator, which is what the published instances were drawn with."""
    return np.random.RandomState(seed).uniform(low, high, items)
