"""Means and moments over all processes, which each hold as many elements."""

from __future__ import annotations

from torch import Tensor, distributed


def over_processes(value: Tensor) -> Tensor:
    """Mean over processes of a tensor of any shape, which is overwritten."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(value)
        value = value / distributed.get_world_size()
    return value


def mean_of(value: Tensor) -> Tensor:
    """Mean over all elements and processes, detached."""
    return over_processes(value.detach().mean())


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all elements and processes, detached; the latter at least 1e-8."""
    mean = mean_of(values)
    return mean, mean_of((values - mean).square()).sqrt().clamp(min=1e-8)
