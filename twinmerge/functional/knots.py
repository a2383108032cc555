"""KnOTS: LoRA fine-tunes aligned by one SVD of all of them, and merged in the common directions."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.election import elected
from twinmerge.functional.matrices import as_matrix, gram_of_rows, grams, mean_step
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.thresholds import Largest, kth_largest

_NOISE = 1e-6  # singular values below this share of the largest are rounding of the products


def knots(
    pretrained: State, experts: Sequence[State], *, scale: float = 1.0, density: float = 0.2, elect: bool = True
) -> dict[str, Tensor]:
    r"""Base plus :math:`\lambda U\, \mathrm{merge}(\Sigma V_1^T, \dots, \Sigma V_T^T)` for every matrix.

    The SVD of all task matrices side by side, :math:`[\tau_1 \dots \tau_T] = U\Sigma[V_1^T \dots V_T^T]`, writes
    each in the same few directions U, in which TIES (KnOTS-TIES) or the mean merges them. Of LoRA fine-tunes these are
    as many as their ranks together. Tensors that are no matrices get the mean of their task vectors.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        scale: Coefficient :math:`\lambda`.
        density: Share of each aligned matrix that the trimming of TIES keeps, in (0, 1].
        elect: Merge as TIES does; else by the mean.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If the density is out of range, there is no expert, names or shapes differ, or a weight is NaN or
            infinite.

    Reference:
        Stoica et al. (2024), "Model merging with SVD to tie the knots", arXiv 2410.19735, section 4.
    """
    if not 0 < density <= 1:
        raise ValueError(f"the density is {density}, but it must be above 0 and at most 1, as in 0.2")

    def rule(tensors: Tensors) -> Step:
        if len(tensors.shape) < 2:
            return mean_step(scale)
        left, aligned = _aligned(tensors)
        merged = _merged(aligned, density) if elect else torch.stack(aligned).mean(0)
        return lambda block: block.base + scale * (left(block) @ merged.to(block.base)).view(block.base.shape)

    return merge_blocks(pretrained, experts, each(rule))


def _aligned(tensors: Tensors) -> tuple[Callable[[Block], Tensor], list[Tensor]]:
    """Rows of U for a block, and the matrices in the directions U, by the smaller one of the two Gram matrices."""
    rows, columns, count = tensors.shape[0], tensors.columns, tensors.experts
    if rows > count * columns:
        values, vectors = torch.linalg.eigh(grams(tensors, _side_by_side)[0])
        sigma = values.clamp(min=0).sqrt()
        used = sigma > _NOISE * sigma[-1]
        right, sizes = vectors[:, used], sigma[used]
        aligned = [part.T * sizes[:, None] for part in right.split(columns)]
        inner = (right / sizes).to(tensors.dtype)
        return lambda block: _side_by_side(block)[0] @ inner.to(block.base), [a.to(tensors.dtype) for a in aligned]
    gram = sum(
        (gram_of_rows(tensors, partial(_vector, index)) for index in range(1, count)),
        gram_of_rows(tensors, partial(_vector, 0)),
    )
    values, vectors = torch.linalg.eigh(gram)
    sigma = values.clamp(min=0).sqrt()
    left: Tensor = vectors[:, sigma > _NOISE * sigma[-1]].to(tensors.dtype)

    def rows_of(block: Block) -> Tensor:
        first = block.start // columns
        return left[first : first + block.base.shape[0]].to(block.base)

    parts = [torch.zeros(left.shape[1], columns, dtype=tensors.dtype) for _ in range(count)]
    for block in tensors:
        for part, vector in zip(parts, block.vectors, strict=True):
            part.addmm_(rows_of(block).T.cpu(), as_matrix(vector).cpu())
    return rows_of, parts


def _side_by_side(block: Block) -> list[Tensor]:
    return [torch.cat([as_matrix(vector) for vector in block.vectors], 1)]


def _vector(index: int, block: Block) -> Tensor:
    return block.experts[index] - block.base


def _merged(aligned: Sequence[Tensor], density: float) -> Tensor:
    """TIES of matrices in common directions, each trimmed by itself."""
    count = max(1, int(density * aligned[0].numel()))
    wide = aligned[0].dtype == torch.float64
    found = kth_largest(lambda: [[part.abs() for part in aligned]], [[count]] * len(aligned), wide=wide)
    trimmed = [part * Largest(row[0], count).of(part.abs()) for part, row in zip(aligned, found, strict=True)]
    return elected(trimmed, [1.0] * len(trimmed))
