"""KnOTS: LoRA fine-tunes aligned by one SVD of all of them, and merged in the common directions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.eigen import eigenvectors
from twinmerge.functional.election import elected
from twinmerge.functional.matrices import as_matrix, grams, mean_step, summed
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.thresholds import Largest, kth_largest

_NOISE = 1e-6  # singular values below this share of the largest are rounding of the products
_SPARE = 8  # random directions beyond a rank that is known


def knots(
    pretrained: State, experts: Sequence[State], *, scale: float = 1.0, density: float = 0.2, elect: bool = True
) -> dict[str, Tensor]:
    r"""Base plus :math:`\lambda U\, \mathrm{merge}(\Sigma V_1^T, \dots, \Sigma V_T^T)` for every matrix.

    The SVD of all task matrices side by side, :math:`[\tau_1 \dots \tau_T] = U\Sigma[V_1^T \dots V_T^T]`, writes
    each in the same few directions U, in which TIES (KnOTS-TIES) or the mean merges them. Of LoRA fine-tunes these are
    as many as their ranks together; where these are known, as of adapters in files, no square matrix is held. Tensors
    that are no matrices get the mean of their task vectors.

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
    """Rows of U for a block, and the matrices in the directions U."""
    rows, columns, count = tensors.shape[0], tensors.columns, tensors.experts
    if tensors.rank is not None and tensors.rank + _SPARE < min(rows, count * columns):
        left = _sketched(tensors, tensors.rank)
    elif rows > count * columns:  # the Gram matrix of all columns is the smaller one
        values, vectors = eigenvectors(grams(tensors, _side_by_side)[0])
        sigma = values.clamp(min=0).sqrt()
        used = sigma > _NOISE * sigma[-1]
        right, sizes = vectors[:, used], sigma[used]
        aligned = [part.T * sizes[:, None] for part in torch.split(right, columns)]
        inner = (right / sizes).to(tensors.dtype)
        return lambda block: _side_by_side(block)[0] @ inner.to(block.base), [a.to(tensors.dtype) for a in aligned]
    else:
        gram = torch.zeros(rows, rows, dtype=torch.float64)
        for slab in tensors.slabs():
            gram = gram.to(slab.base.device)
            for vector in slab.vectors:
                gram.addmm_(vector.double(), vector.double().T)
        values, vectors = eigenvectors(gram)
        left = vectors[:, values > _NOISE**2 * values[-1]].to(tensors.dtype)
        del gram, vectors

    def rows_of(block: Block) -> Tensor:
        first = block.start // columns
        return left[first : first + block.base.shape[0]].to(block.base)

    return rows_of, [part.to(tensors.dtype) for part in _in_directions(tensors, rows_of)]


def _in_directions(tensors: Tensors, rows_of: Callable[[Block], Tensor]) -> list[Tensor]:
    """Every task matrix in the directions whose rows of a block are given."""
    parts: list[Tensor] = []
    for block in tensors:
        left = rows_of(block)
        parts = parts or [left.new_zeros(left.shape[1], tensors.columns) for _ in block.experts]
        for part, vector in zip(parts, block.vectors, strict=True):
            part.addmm_(left.T, as_matrix(vector).to(left))
    return parts


def _sketched(tensors: Tensors, rank: int) -> Tensor:
    """The directions U of matrices whose rank together is known: products with random numbers span their columns."""
    width, columns = rank + _SPARE, tensors.columns
    draw = torch.Generator().manual_seed(0)
    random = [torch.randn(columns, width, generator=draw, dtype=torch.float64) for _ in range(tensors.experts)]
    spanned = [
        summed([as_matrix(v).double() @ r.to(v.device) for v, r in zip(block.vectors, random, strict=True)])
        for block in tensors
    ]
    del random
    basis = torch.linalg.qr(torch.cat(spanned))[0]
    del spanned
    inside = _in_directions(tensors, lambda block: basis[block.start // columns :][: block.base.shape[0]])
    values, vectors = eigenvectors(summed([part @ part.T for part in inside]))
    used = values > _NOISE**2 * values[-1]
    found: Tensor = basis @ vectors[:, used][:, -rank:]
    return found.to(tensors.dtype)


def _side_by_side(block: Block) -> list[Tensor]:
    return [torch.cat([as_matrix(vector) for vector in block.vectors], 1)]


def _merged(aligned: Sequence[Tensor], density: float) -> Tensor:
    """TIES of matrices in common directions, each trimmed by itself."""
    count = max(1, int(density * aligned[0].numel()))
    wide = aligned[0].dtype == torch.float64
    found = kth_largest(lambda: [[part.abs() for part in aligned]], [[count]] * len(aligned), wide=wide)
    trimmed = [part * Largest(row[0], count).of(part.abs()) for part, row in zip(aligned, found, strict=True)]
    return elected(trimmed, [1.0] * len(trimmed))
