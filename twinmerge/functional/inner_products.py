"""Inner products of tensors that are read block by block, and sums of them by coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, Tensors

Around = Literal["base", "origin"]


def points(block: Block, around: Around) -> list[Tensor]:
    """The experts of a block, as they stand or seen from the base."""
    return block.vectors if around == "base" else list(block.experts)


def gram(tensors: Tensors, around: Around) -> Tensor:
    """All inner products of the experts' tensors, shape (T, T), in float64."""
    total = torch.zeros(tensors.experts, tensors.experts, dtype=torch.float64)
    for block in tensors:
        flat = torch.stack([point.reshape(-1) for point in points(block, around)]).double()
        total += (flat @ flat.T).cpu()
    return total


def combination(block: Block, coefficients: Sequence[float], around: Around) -> Tensor:
    """The sum of a block's experts by coefficients; seen from the base, with the base added."""
    merged = block.base.clone() if around == "base" else torch.zeros_like(block.base)
    for point, coefficient in zip(points(block, around), coefficients, strict=True):
        merged.add_(point, alpha=float(coefficient))
    return merged
