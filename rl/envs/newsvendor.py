"""The newsvendor with a fixed ordering cost: one decision, uniform demand, and its optimum in closed form."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rl.envs.hybrid import HybridSimulator, Noise, State


class Newsvendor(HybridSimulator):
    r"""Order nothing (mode 0), or a quantity at a fixed cost (mode 1), before demand uniform on [0, 1] comes.

    .. math:: c = K 1\{x = 1\} + h (y - D)^+ + b (D - y)^+, \qquad y = stock + q 1\{x = 1\}

    The first stock is uniform on [0, 1] too. With :math:`S = b / (b + h)` the expected cost after ordering is
    :math:`G(y) = G(S) + \frac{b + h}{2} (y - S)^2`, so it is best to order up to ``S`` below
    :math:`s = S - \sqrt{2 K / (b + h)}` and nothing above.

    Args:
        fixed_cost: K, at least 0.
        holding: h, above 0.
        shortage: b, above 0.
        dtype: Floating type of the simulation.

    Raises:
        ValueError: If a cost is out of range.

    Example:
        >>> [round(value, 4) for value in Newsvendor().optimum()]
        [0.5838, 0.9, 0.7963]
    """

    n_modes = 2
    action_dim = 1
    observation_dim = 1
    horizon = 1
    report = "total"

    def __init__(
        self, fixed_cost: float = 0.5, holding: float = 1.0, shortage: float = 9.0, dtype: torch.dtype = torch.float32
    ) -> None:
        if fixed_cost < 0 or holding <= 0 or shortage <= 0:
            raise ValueError(
                f"the costs are K = {fixed_cost}, h = {holding} and b = {shortage}, but K must not be negative, and h "
                "and b must be above 0"
            )
        self.fixed_cost, self.holding, self.shortage, self.dtype = fixed_cost, holding, shortage, dtype

    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """The first stock (batch,) and the demand (batch, 1)."""
        uniform = torch.rand(batch, 2, generator=generator, dtype=self.dtype, device=generator.device).to(self.device)
        return {"stock": uniform[:, 0], "demand": uniform[:, 1:]}

    def reset(self, noise: Noise) -> State:
        """``stock`` (batch,)."""
        return {"stock": noise["stock"]}

    def observe(self, state: State, t: int) -> Tensor:
        """The stock."""
        return state["stock"].unsqueeze(1)

    def action_map(self, raw: Tensor, state: State) -> Tensor:
        """A quantity at or above 0."""
        return softplus(raw)

    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """Order, and meet the demand."""
        ordering = mode == 1
        left = state["stock"] + torch.where(ordering, action[:, 0], 0.0) - noise["demand"][:, t]
        cost = self.fixed_cost * ordering + self.holding * left.clamp(min=0) + self.shortage * (-left).clamp(min=0)
        return {"stock": left}, cost

    def optimum(self) -> tuple[float, float, float]:
        """The reorder point s, the level S, and the expected cost of the best policy."""
        curvature = self.shortage + self.holding
        level = self.shortage / curvature
        reorder = max(level - math.sqrt(2 * self.fixed_cost / curvature), 0.0)
        unordered = curvature / 6 * ((1 - level) ** 3 + (level - reorder) ** 3)
        least = self.holding * self.shortage / (2 * curvature)
        return reorder, level, least + self.fixed_cost * reorder + unordered
