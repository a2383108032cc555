"""Simulators as training needs them: made from an import path, on the right device, with their active outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from rl.envs.hybrid import HybridSimulator
from rl.errors import SimulatorError
from rl.loading import find, made_by, make, refuse_strangers


def load_simulator(path: str, arguments: Mapping[str, object] | None = None) -> HybridSimulator:
    """Make a simulator from the import path of its class, or of a function that returns one.

    Args:
        path: As in ``rl.envs.inventory.single_item``.
        arguments: Of the class or function.

    Raises:
        ValueError: When there is no such thing, it makes no `HybridSimulator`, or an untrusted checkpoint names it.
    """
    refuse_strangers("simulator", path, arguments)
    found = find("simulator", path)
    made = made_by(found)
    if made is None or not issubclass(made, HybridSimulator):
        raise ValueError(
            f"simulator {path!r} is neither a subclass of rl.envs.HybridSimulator nor annotated to return one."
        )
    return cast(HybridSimulator, make("simulator", path, cast("Callable[..., object]", found), arguments))


def place(simulator: HybridSimulator, device: torch.device, dtype: torch.dtype) -> HybridSimulator:
    """The simulator on a device, in float32, or float64 with networks of float64: never in half precision."""
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    if (simulator.device, simulator.dtype) == (device, dtype):
        return simulator
    return simulator.to(device, dtype)


def active_parts(simulator: HybridSimulator) -> Tensor:
    """Which raw outputs of which mode the action depends on at all, as 0 and 1, (J, m), with heads (1, m).

    A score function of the others is pure noise: of the order quantity of the mode that orders nothing, for example.
    """
    if simulator.horizon < 1:
        raise SimulatorError(f"the horizon is {simulator.horizon}; an episode needs at least 1 decision.")
    generator = torch.Generator().manual_seed(0)
    shape = (4, simulator.alternatives, simulator.action_dim)
    raw = torch.randn(shape, generator=generator).to(simulator.device, simulator.dtype).requires_grad_()
    weights = torch.randn(shape, generator=generator).to(raw)
    with torch.enable_grad():
        actions = simulator.action_map(raw, simulator.reset(simulator.sample_noise(4, generator)))
        if not actions.requires_grad:
            return torch.zeros(shape[1:])
        (slope,) = torch.autograd.grad((actions * weights).sum(), raw)
    return slope.ne(0).any(0).float()
