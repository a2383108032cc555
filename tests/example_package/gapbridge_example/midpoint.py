"""A static merge of one's own: a function of the base's parameters, the experts' and keyword-only options."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def midpoint(
    pretrained: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]], *, scale: float = 1.0
) -> dict[str, Tensor]:
    """Base plus the scaled middle between the smallest and the largest difference, entry by entry."""
    merged = {}
    for name, base in pretrained.items():
        differences = torch.stack([expert[name] - base for expert in experts])
        merged[name] = base + scale * (differences.amin(0) + differences.amax(0)) / 2
    return merged
