"""Curriculum temperature: a learnable temperature that is trained against the student, harder as training goes on."""

import math
from typing import Any

import torch
from torch import Tensor


class _Reverse(torch.autograd.Function):
    """Identity whose gradient is multiplied by a negative factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse_gradient(value: Tensor, strength: float) -> Tensor:
    """Return the value; its gradient is the incoming one times minus the strength.

    Args:
        value: Any tensor.
        strength: At least 0; 0 stops the gradient.

    Example:
        >>> import torch
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> (3 * reverse_gradient(x, 0.5)).backward()
        >>> x.grad
        tensor(-1.5000)

    Reference:
        Ganin and Lempitsky (2015), arXiv 1409.7495, section 3.
    """
    reversed_value: Tensor = _Reverse.apply(value, strength)
    return reversed_value


def curriculum_strength(progress: float) -> float:
    r"""Strength of the reversal after a share of the ramp: :math:`(1 - \cos(\pi \min(p, 1))) / 2`.

    Args:
        progress: Share of the ramp that has passed, at least 0.

    Returns:
        From 0 at the start to 1 at the end of the ramp and after.

    Example:
        >>> curriculum_strength(0.0), curriculum_strength(0.5), curriculum_strength(7.0)
        (0.0, 0.5, 1.0)

    Reference:
        Li et al. (2023), "Curriculum temperature for knowledge distillation", arXiv 2211.16231, equation 8.
    """
    if progress < 0:
        raise ValueError(f"the progress is {progress}, but it must be at least 0")
    return round((1 - math.cos(math.pi * min(progress, 1.0))) / 2, 12)


def bounded_temperature(parameter: Tensor, *, least: float = 1.0, span: float = 20.0) -> Tensor:
    r"""Temperature from a free parameter: :math:`least + span \, \sigma(parameter)`.

    Args:
        parameter: Any real tensor.
        least: Smallest temperature, above 0.
        span: Width of the range, above 0.

    Example:
        >>> import torch
        >>> bounded_temperature(torch.zeros(()))
        tensor(11.)

    Reference:
        Li et al. (2023), arXiv 2211.16231, equation 9.
    """
    return least + span * parameter.sigmoid()
