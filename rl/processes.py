"""Means and moments over all processes, which each hold as many elements."""

from __future__ import annotations

from torch import Tensor, distributed


def processes() -> int:
    """How many train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def over_processes(value: Tensor) -> Tensor:
    """Mean over processes of a tensor of any shape; the tensor itself where there is one process."""
    if (count := processes()) == 1:
        return value
    value = value.detach().clone()
    distributed.all_reduce(value)
    return value / count


def mean_of(value: Tensor) -> Tensor:
    """Mean over all elements and processes, detached."""
    return over_processes(value.detach().mean())


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all elements and processes, detached; the latter at least 1e-8."""
    mean = mean_of(values)
    return mean, mean_of((values - mean).square()).sqrt().clamp(min=1e-8)
