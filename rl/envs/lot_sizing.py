"""Capacitated lot sizing: several items on one machine, each with a set-up of its own to decide on in every period."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rl.envs.hybrid import HybridSimulator, Noise, State
from rl.envs.inventory import RAW_LIMIT, per_item


class LotSizing(HybridSimulator):
    r"""Periodic review, Poisson demand, a set-up cost and a set-up time for each item, and a capacity that they share.

    Every item is a head of two modes: set up (1) or not (0). In period t the items that are set up are made, up to a
    level that the policy gives; where set-ups and quantities together need more than the capacity, all of them get the
    same share of what they ask for:

    .. math:: q_i = x_i w_i \min\Big(1, \frac{(C - \sum_j \tau_j x_j)^+}{\sum_j x_j w_j}\Big)

    Then demand comes, and the period costs, per item, :math:`K_i x_i + h_i (I_i + q_i - D_i)^+ + b_i (\ldots)^-`; what
    is short waits. Ten items are ten heads, where one mode among all combinations would be one of 1 024.

    Args:
        mean: Mean demand of the n items in a period, each above 0.
        capacity: C, units of work a period, above the sum of the means.
        holding: Cost of a unit left over, for a period; one per item, or one for all.
        shortage: Cost of a missing unit, for a period.
        setup_cost: K, of a set-up.
        setup_time: Units of work that a set-up takes.
        horizon: Periods of an episode.
        dtype: Floating type of the simulation.

    Raises:
        ValueError: If a mean is not above 0, a cost is negative, the capacity is too small, or lengths differ.

    Example:
        >>> simulator = LotSizing([10.0, 10.0], 25.0, setup_time=5.0)
        >>> noise = {"demand": torch.full((1, 60, 2), 8.0)}
        >>> state = {"stock": torch.tensor([[4.0, 0.0]])}
        >>> state, cost = simulator.step(state, torch.tensor([[1, 0]]), torch.tensor([[24.0, 9.0]]), noise, 0)
        >>> state["stock"].tolist(), cost.item()
        ([[16.0, -8.0]], 74.0)
    """

    discount = 0.99
    report_from = 12
    buffer = 12
    endless = True

    def __init__(
        self,
        mean: Sequence[float],
        capacity: float,
        holding: float | Sequence[float] = 1.0,
        shortage: float | Sequence[float] = 9.0,
        *,
        setup_cost: float | Sequence[float] = 60.0,
        setup_time: float | Sequence[float] = 0.0,
        horizon: int = 60,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        self.mean = torch.as_tensor(mean, dtype=dtype)
        items = len(self.mean)
        costs = {"holding": holding, "shortage": shortage, "setup_cost": setup_cost, "setup_time": setup_time}
        self.holding, self.shortage, self.setup_cost, self.setup_time = (
            per_item(value, items, name, dtype) for name, value in costs.items()
        )
        if not (self.mean > 0).all():
            raise ValueError(f"the mean demands are {self.mean.tolist()}, but each must be above 0")
        if capacity <= float(self.mean.sum()):
            raise ValueError(
                f"the capacity is {capacity} and the mean demands add up to {float(self.mean.sum()):g}, so that demand "
                "would wait for ever; give a larger capacity"
            )
        self.capacity, self.horizon = capacity, horizon
        self.heads, self.action_dim, self.observation_dim = (2,) * items, items, items
        self.buffer, self.report_from = min(self.buffer, horizon // 5), min(self.report_from, horizon // 5)

    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """Demand (batch, horizon, items)."""
        rate = self.mean.to(generator.device).expand(batch, self.horizon, -1)
        return {"demand": torch.poisson(rate, generator=generator).to(self.device)}

    def reset(self, noise: Noise) -> State:
        """Stock (batch, items): the mean demand of one to three periods, so that not all is due at once."""
        items = len(self.mean)
        periods = 1 + torch.arange(items, device=self.device, dtype=self.dtype) % 3
        return {"stock": (self.mean * periods).expand(len(noise["demand"]), items)}

    def observe(self, state: State, t: int) -> Tensor:
        """Stock in mean demands."""
        return state["stock"] / self.mean

    def seen_state(self, observation: Tensor) -> State:
        """The stock."""
        return {"stock": observation * self.mean}

    def action_map(self, raw: Tensor, state: State) -> Tensor:
        """Quantities at or above 0 that raise the stock towards a level of 3 mean demands more than the raw output."""
        level = RAW_LIMIT * torch.tanh(raw / RAW_LIMIT) + 3
        return self.mean * softplus(level - (state["stock"] / self.mean).unsqueeze(1))

    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """Make what the capacity allows, and meet demand."""
        on = mode == 1
        wanted = torch.where(on, action, 0.0)
        free = (self.capacity - torch.where(on, self.setup_time, 0.0).sum(1, keepdim=True)).clamp(min=0)
        share = (free / wanted.sum(1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
        stock = state["stock"] + wanted * share - noise["demand"][:, t]
        cost = self.holding * stock.clamp(min=0) + self.shortage * (-stock).clamp(min=0)
        return {"stock": stock}, (cost + torch.where(on, self.setup_cost, 0.0)).mean(1)


def ten_items(dtype: torch.dtype = torch.float32) -> LotSizing:
    """Ten items with mean demands of 6 to 14; their demand and the set-ups of a good plan fill 7/8 of the capacity."""
    items = torch.arange(10, dtype=torch.float64)
    mean = 6 + 8 * (items * 0.37 % 1)
    holding, shortage = 0.7 + 0.6 * (items * 0.61 % 1), 6.3 + 5.4 * (items * 0.83 % 1)
    return LotSizing(
        mean.tolist(), 130.0, holding.tolist(), shortage.tolist(), setup_cost=60.0, setup_time=5.0, dtype=dtype
    )
