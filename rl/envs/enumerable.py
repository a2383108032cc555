"""A problem so small that every episode can be listed: three steps, three modes, noise of two values."""

import itertools

import torch
from torch import Tensor

from rl.envs.hybrid import HybridSimulator, Noise, State


class Enumerable(HybridSimulator):
    r"""Nonlinear dynamics of two states and two inputs, in which an expected gradient is an exact, finite sum.

    .. math::
        s' = A_x s + B_x b + 0.2 \sin s + \xi_z, \qquad
        c = \tfrac12 |s|^2 + 0.15 |b|^2 + k_x + 0.3\, x \cos s_1

    with noise z of two values, and :math:`2 g |s_3|^2` added to the last cost: discounting it once more makes
    :math:`g^3 \cdot 2 |s_3|^2`.

    Args:
        generator: Source of the matrices, drawn in float64.
        dtype: Floating type of the simulation.

    Example:
        >>> noise, modes, probability = Enumerable(torch.Generator().manual_seed(3)).every_episode()
        >>> modes.shape, noise["z"].shape, round(probability[:8].sum().item(), 6)
        (torch.Size([216, 3]), torch.Size([216, 3]), 1.0)
    """

    n_modes = 3
    action_dim = 2
    observation_dim = 2
    horizon = 3
    discount = 0.95
    report = "total"

    def __init__(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> None:
        def draw(*shape: int, scale: float) -> Tensor:
            return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.dtype = dtype
        self.A = (0.9 * torch.eye(2, dtype=torch.float64) + draw(3, 2, 2, scale=0.25)).to(dtype)
        self.B = draw(3, 2, 2, scale=0.7).to(dtype)
        self.shift = draw(2, 2, scale=0.6).to(dtype)
        self.fixed = torch.tensor([0.0, 0.6, 1.1], dtype=dtype)
        self.tilt = torch.tensor([0.0, 0.3, 0.6], dtype=dtype)
        self.probability = torch.tensor([0.4, 0.6], dtype=dtype)
        self.start = torch.tensor([1.2, -0.7], dtype=dtype)

    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """Which of the two values comes, int64 (batch, 3)."""
        weights = self.probability.to(generator.device).expand(batch, -1)
        return {"z": torch.multinomial(weights, self.horizon, replacement=True, generator=generator).to(self.device)}

    def every_episode(self) -> tuple[Noise, Tensor, Tensor]:
        """All 216 pairs of modes and noise.

        Returns:
            The noise, the modes (216, 3), and the probability of the noise (216,), which sums to 1 over the noise of
            any one word of modes.
        """
        words = torch.tensor(list(itertools.product(range(self.n_modes), repeat=self.horizon)), device=self.device)
        values = torch.tensor(list(itertools.product(range(2), repeat=self.horizon)), device=self.device)
        z = values.repeat(len(words), 1)
        return {"z": z}, words.repeat_interleave(len(values), 0), self.probability[z].prod(dim=1)

    def reset(self, noise: Noise) -> State:
        """``s`` (batch, 2), the same in every episode."""
        return {"s": self.start.expand(len(noise["z"]), -1)}

    def observe(self, state: State, t: int) -> Tensor:
        """The state itself."""
        return state["s"]

    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """One step; the last one also pays for where it ends."""
        s = state["s"]
        following = (
            torch.einsum("bij,bj->bi", self.A[mode], s)
            + torch.einsum("bij,bj->bi", self.B[mode], action)
            + 0.2 * s.sin()
            + self.shift[noise["z"][:, t]]
        )
        cost = 0.5 * s.square().sum(1) + 0.15 * action.square().sum(1) + self.fixed[mode]
        cost = cost + self.tilt[mode] * s[:, 0].cos()
        if t == self.horizon - 1:
            cost = cost + self.discount * 2 * following.square().sum(1)
        return {"s": following}, cost
