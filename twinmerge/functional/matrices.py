"""What methods on task matrices share: passes over the long side, Gram matrices of the short one, and the plain mean.

A matrix is worked on along its long side, row block by row block where it is high and slab by slab where it is wide, so
that what is held is a few square matrices of its short side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, Step, Tensors
from twinmerge.functional.eigen import inverse_power

Parts = list[Tensor]  # blocks of every expert's task matrix, shape (long rows, short side)
DEPENDENT = 1e-10  # squared share below which directions of several tasks are one direction


def as_matrix(block: Tensor) -> Tensor:
    """Rows by everything behind the first dimension."""
    return block.reshape(block.shape[0], -1)


def total(block: Block) -> Tensor:
    """The sum of the task vectors."""
    return summed(block.vectors)


def summed(vectors: Sequence[Tensor]) -> Tensor:
    """Their sum, in the place of the first."""
    merged = vectors[0]
    for vector in vectors[1:]:
        merged.add_(vector)
    return merged


def mean_step(scale: float) -> Step:
    """Base plus the scaled mean of the task vectors."""
    return lambda block: block.base + (scale / len(block.experts)) * total(block)


def is_wide(tensors: Tensors) -> bool:
    """Whether the columns are the long side."""
    return tensors.columns > tensors.shape[0]


def short_side(tensors: Tensors) -> int:
    """The smaller one of rows and columns."""
    return min(tensors.shape[0], tensors.columns)


def along(tensors: Tensors) -> Iterator[Parts]:
    """Blocks of all task matrices along the long side, transposed where that is the columns; in float64."""
    if is_wide(tensors):
        yield from ([vector.T.double() for vector in slab.vectors] for slab in tensors.slabs())
    else:
        yield from ([as_matrix(vector).double() for vector in block.vectors] for block in tensors)


def gram_along(tensors: Tensors, part: Callable[[Parts], Tensor]) -> Tensor:
    r"""The Gram matrix :math:`P^T P` of a matrix P whose rows run along the long side, in float64.

    Args:
        tensors: One tensor of all models.
        part: Rows of P from blocks of all task matrices.

    Returns:
        Shape (columns of P, columns of P).
    """
    found: Tensor | None = None
    for parts in along(tensors):
        rows = part(parts)
        found = rows.new_zeros(rows.shape[1], rows.shape[1]) if found is None else found
        found.addmm_(rows.T, rows)
    return torch.zeros(0, 0, dtype=torch.float64) if found is None else found


def step_along(tensors: Tensors, change: Callable[[Parts], Tensor]) -> Step:
    """The base plus a change that is found along the long side; of a wide matrix the change is held as a whole.

    Args:
        tensors: One tensor of all models.
        change: Of one block of all task matrices, in its shape.
    """
    if not is_wide(tensors):

        def step(block: Block) -> Tensor:
            merged = change([as_matrix(vector).double() for vector in block.vectors])
            return block.base + merged.to(block.base.dtype).view(block.base.shape)

        return step
    made: Tensor | None = None
    for slab in tensors.slabs():
        if made is None:
            made = slab.base.new_empty(tensors.shape[0], tensors.columns)
        made[:, slab.start : slab.start + slab.base.shape[1]] = change([vector.T.double() for vector in slab.vectors]).T
    flat = torch.zeros(0) if made is None else made.view(-1)

    def piece(block: Block) -> Tensor:
        return block.base + flat[block.start : block.start + block.base.numel()].view(block.base.shape)

    return piece


def decorrelated(gram: Tensor, values: Tensor | float, short: Tensor) -> Tensor:
    r"""What makes the merged matrix of long directions P: :math:`(P^TP)^{-1/2}\,\Sigma\,(S^TS)^{-1/2}S^T`.

    P and S become the nearest matrices with orthonormal columns; directions that several tasks share are one.

    Args:
        gram: :math:`P^TP`, shape (d, d); its content is lost.
        values: Singular values, shape (d,), or one for all.
        short: S, the directions on the short side, shape (k, d).

    Returns:
        Shape (d, k).
    """
    root = inverse_power(gram, 0.5, DEPENDENT)[1].mul_(values)
    del gram
    right = inverse_power(short.T @ short, 0.5, DEPENDENT)[1] @ short.T
    return root @ right


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
        found = found or [row.new_zeros(row.shape[1], row.shape[1]) for row in rows]
        for gram, row in zip(found, rows, strict=True):
            gram.addmm_(row.T, row)
    return found
