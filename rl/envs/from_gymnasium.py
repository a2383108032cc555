"""Environments of Gymnasium as a simulator without gradients, so that model-free baselines train there as anywhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rl.envs.action_spaces import Parameters, split_actions
from rl.envs.hybrid import HybridSimulator, Noise, State, check_modes
from rl.errors import SimulatorError


class GymnasiumSimulator(HybridSimulator):
    """A batch of copies of an environment, stepped one after the other; costs are minus rewards.

    There is no gradient through an environment, so ``differentiable`` is False: train a model-free method here. The
    state lives inside the copies, and only the newest one can be stepped. An episode that ends before the horizon costs
    nothing from then on; ``info["action_mask"]``, where an environment gives it, masks the modes.

    Args:
        make: Makes one copy, or the name under which Gymnasium makes it.
        horizon: Most steps of an episode.
        parameters: What the boxes beside the Discrete are, where that can be meant either way: ``all`` for every mode,
            or each mode's ``own``; see `split_actions`.

    Raises:
        SimulatorError: If the action space cannot be split into a mode and real parameters.

    Example:
        >>> simulator = GymnasiumSimulator("CartPole-v1", horizon=3)
        >>> noise = simulator.sample_noise(2, torch.Generator().manual_seed(0))
        >>> state, cost = simulator.step(simulator.reset(noise), torch.tensor([0, 1]), torch.zeros(2, 0), noise, 0)
        >>> state["observation"].shape, cost.tolist()
        (torch.Size([2, 4]), [-1.0, -1.0])
    """

    differentiable = False
    report = "total"

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[object, object]] | str,
        horizon: int,
        parameters: Parameters | None = None,
    ) -> None:
        self._make: Callable[[], gymnasium.Env[object, object]] = (
            partial(gymnasium.make, make) if isinstance(make, str) else make
        )
        self._copies = [self._make()]
        self._turn, self._masked = 0, False
        declared = getattr(self._copies[0].unwrapped, "parameters", None)
        self._actions = split_actions(self._copies[0].action_space, parameters or declared)
        self._space = self._copies[0].observation_space
        self.heads, self.action_dim, self.horizon = self._actions.heads, self._actions.action_dim, horizon
        if not self.heads:
            self.n_modes = self._actions.n_modes
        self.observation_dim = spaces.flatdim(self._space)

    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """A seed for every episode, int64 (batch,)."""
        seeds = torch.randint(2**31, (batch,), generator=generator, device=generator.device)
        return {"seed": seeds.to(self.device)}

    def reset(self, noise: Noise) -> State:
        """Start every copy from its seed."""
        seeds = noise["seed"].tolist()
        while len(self._copies) < len(seeds):
            self._copies.append(self._make())
        starts = [env.reset(seed=seed) for env, seed in zip(self._copies, seeds, strict=False)]
        self._masked = "action_mask" in starts[0][1]
        return self._state([start[0] for start in starts], [start[1] for start in starts], [False] * len(seeds))

    def observe(self, state: State, t: int) -> Tensor:
        """The observation, flattened as Gymnasium does it."""
        return state["observation"]

    def action_map(self, raw: Tensor, state: State) -> Tensor:
        """Parameters inside the boxes of the action space."""
        return self._actions.feasible(raw)

    def mode_mask(self, state: State, t: int) -> Tensor | None:
        """What ``info["action_mask"]`` says; None if the environment gives none."""
        return state.get("mask")

    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """Step every copy whose episode is not over."""
        if len(mode) != len(state["turn"]) or bool((state["turn"] != self._turn).any()):
            raise SimulatorError(
                f"step {t} starts from an earlier state, but a Gymnasium environment only has its newest one; "
                "branching needs a simulator whose state is in tensors"
            )
        check_modes(mode, self, t)
        seen: list[object] = list(state["observation"])
        infos: list[dict[str, object]] = [{}] * len(mode)
        over = state["over"].tolist()
        costs = [0.0] * len(mode)
        for i, (choice, values) in enumerate(zip(mode.tolist(), action.detach().double().cpu().numpy(), strict=True)):
            if not over[i]:
                result = self._copies[i].step(self._actions.join(choice, values))
                seen[i], costs[i], over[i], infos[i] = result[0], -float(result[1]), result[2] or result[3], result[4]
        return self._state(seen, infos, over), torch.tensor(costs, dtype=self.dtype, device=self.device)

    def _state(self, seen: list[object], infos: list[dict[str, object]], over: list[bool]) -> State:
        self._turn += 1
        rows = [
            item if isinstance(item, Tensor) else torch.as_tensor(np.array(spaces.flatten(self._space, item)))
            for item in seen
        ]
        state = {
            "observation": torch.stack([row.to(self.device, self.dtype) for row in rows]),
            "over": torch.tensor(over, device=self.device),
            "turn": torch.full((len(seen),), self._turn, device=self.device),
        }
        if self._masked:
            full = np.ones(self.law_shape)
            masks = np.array([info.get("action_mask", full) for info in infos])
            state["mask"] = torch.as_tensor(masks.astype(bool), device=self.device)
        return state
