"""A simulator whose observation holds the last few observations, for problems where one does not tell the state."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from gapbridge.arguments import Count, check_arguments
from rl.envs.hybrid import HybridSimulator, Noise, State

_KEY = "remembered observations"


class Remembering(HybridSimulator):
    """The same problem, seen with a memory: the last ``steps`` observations one after the other, the newest last.

    A recurrent network is then an ordinary one: it reads ``observation.unflatten(-1, (steps, O))`` along the second
    last dimension. What lies before the episode is 0. Costs, actions and masks are those of the simulator inside.

    Args:
        simulator: Any simulator.
        steps: Observations that are seen, at least 1.

    Raises:
        TypeError: For an argument of another type.
        ValueError: For a number of steps below 1.

    Example:
        >>> from rl.envs.newsvendor import Newsvendor
        >>> seen = Remembering(Newsvendor(), steps=3)
        >>> seen.observation_dim, seen.observe(seen.reset(seen.sample_noise(2, torch.Generator())), 0).shape
        (3, torch.Size([2, 3]))
    """

    def __init__(self, simulator: HybridSimulator, steps: Count) -> None:
        check_arguments(Remembering.__init__, locals())
        self.inner, self.steps = simulator, steps
        self.observation_dim = steps * simulator.observation_dim
        self.action_dim, self.horizon, self.heads = simulator.action_dim, simulator.horizon, simulator.heads
        if not simulator.heads:
            self.n_modes = simulator.n_modes
        self.discount, self.report, self.report_from = simulator.discount, simulator.report, simulator.report_from
        self.buffer, self.endless = simulator.buffer, simulator.endless
        self.differentiable = simulator.differentiable
        self.device, self.dtype = simulator.device, simulator.dtype

    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """As the simulator inside."""
        return self.inner.sample_noise(batch, generator)

    def reset(self, noise: Noise) -> State:
        """The first state, with nothing to remember."""
        state = self.inner.reset(noise)
        now = self.inner.observe(state, 0)
        return {**state, _KEY: now.new_zeros(len(now), self.steps - 1, self.inner.observation_dim)}

    def observe(self, state: State, t: int) -> Tensor:
        """What is remembered and what is seen now: (batch, steps * O)."""
        return self._window(state, t).flatten(1)

    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """A step of the simulator inside; the oldest observation is forgotten."""
        window = self._window(state, t)
        after, cost = self.inner.step(_inside(state), mode, action, noise, t)
        return {**after, _KEY: window[:, 1:]}, cost

    def action_map(self, raw: Tensor, state: State) -> Tensor:
        """As the simulator inside."""
        return self.inner.action_map(raw, _inside(state))

    def mode_mask(self, state: State, t: int) -> Tensor | None:
        """As the simulator inside."""
        return self.inner.mode_mask(_inside(state), t)

    def seen_state(self, observation: Tensor) -> State:
        """From the newest of the observations."""
        return self.inner.seen_state(observation[:, -self.inner.observation_dim :])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """A copy around a copy of the simulator inside."""
        moved = super().to(device, dtype)
        moved.inner = self.inner.to(device, dtype)
        return moved

    def _window(self, state: State, t: int) -> Tensor:
        return torch.cat([state[_KEY], self.inner.observe(_inside(state), t)[:, None]], 1)


def _inside(state: State) -> State:
    return {name: value for name, value in state.items() if name != _KEY}
