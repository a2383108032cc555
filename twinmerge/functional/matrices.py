"""What methods on task matrices share: Gram matrices over row blocks, and the plain mean for what is no matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, Step, Tensors


def as_matrix(block: Tensor) -> Tensor:
    """Rows by everything behind the first dimension."""
    return block.reshape(block.shape[0], -1)


def total(block: Block) -> Tensor:
    """The sum of the task vectors."""
    vectors = block.vectors
    merged = vectors[0]
    for vector in vectors[1:]:
        merged.add_(vector)
    return merged


def mean_step(scale: float) -> Step:
    """Base plus the scaled mean of the task vectors."""
    return lambda block: block.base + (scale / len(block.experts)) * total(block)


def grams(tensors: Tensors, parts: Callable[[Block], Sequence[Tensor]]) -> list[Tensor]:
    r"""Gram matrices :math:`D^T D` of matrices that are read in row blocks, in float64.

    Args:
        tensors: One tensor of all models.
        parts: Rows of each matrix from a block.

    Returns:
        One matrix each, shape (columns, columns).
    """
    found: list[Tensor] = []
    for block in tensors:
        rows = [as_matrix(part).double() for part in parts(block)]
        found = found or [torch.zeros(row.shape[1], row.shape[1], dtype=torch.float64) for row in rows]
        for gram, row in zip(found, rows, strict=True):
            gram.add_((row.T @ row).cpu())
    return found


def gram_of_rows(tensors: Tensors, part: Callable[[Block], Tensor]) -> Tensor:
    r"""The Gram matrix :math:`D D^T` of a wide matrix, in float64; the matrix itself is held meanwhile."""
    whole = torch.cat([as_matrix(part(block)).cpu() for block in tensors])
    gram = torch.zeros(whole.shape[0], whole.shape[0], dtype=torch.float64)
    width = max(1, 2**22 // whole.shape[0])
    for start in range(0, whole.shape[1], width):
        columns = whole[:, start : start + width].double()
        gram.addmm_(columns, columns.T)
    return gram
