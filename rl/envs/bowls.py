"""Quadratic bowls: the mode picks a bowl, the action a point in it; a pathwise gradient never changes the bowl."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rl.envs.hybrid import HybridSimulator, Noise, State


class Bowls(HybridSimulator):
    r"""One decision with cost :math:`m_x + |b - c_x|^2`; the optimum is :math:`\min_x m_x`, at :math:`b = c_x`.

    A pathwise gradient finds the bottom of every bowl, and never a reason to change the bowl.

    Args:
        minima: m, the depth of every bowl.
        centres: c, where its bottom is, one row a bowl.
        dtype: Floating type of the simulation.

    Example:
        >>> simulator = Bowls([1.0, 0.5], [[2.0], [-1.0]])
        >>> simulator.step({"none": torch.zeros(1, 1)}, torch.tensor([1]), torch.tensor([[0.0]]), {}, 0)[1].item()
        1.5
    """

    observation_dim = 1
    horizon = 1
    report = "total"

    def __init__(
        self, minima: Sequence[float], centres: Sequence[Sequence[float]], dtype: torch.dtype = torch.float32
    ) -> None:
        self.dtype = dtype
        self.minima, self.centres = torch.as_tensor(minima, dtype=dtype), torch.as_tensor(centres, dtype=dtype)
        self.n_modes, self.action_dim = self.centres.shape

    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """No noise: zeros (batch, 1)."""
        return {"none": torch.zeros(batch, 1, dtype=self.dtype, device=self.device)}

    def reset(self, noise: Noise) -> State:
        """A state that says nothing, (batch, 1)."""
        return dict(noise)

    def observe(self, state: State, t: int) -> Tensor:
        """Always 0."""
        return state["none"]

    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """The height of the bowl at the point."""
        return state, self.minima[mode] + (action - self.centres[mode]).square().sum(dim=1)
