"""WUDI-Merging: the task matrix that interferes least with what the inputs of every task's layer can be."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.eigen import eigenvectors
from twinmerge.functional.matrices import as_matrix, grams, mean_step
from twinmerge.functional.state import each, merge_blocks

_NOISE = 1e-10  # eigenvalues below this share of the largest are rounding


def wudi(pretrained: State, experts: Sequence[State], *, scale: float = 1.0) -> dict[str, Tensor]:
    r"""Base plus the minimiser of :math:`\sum_t \|(\tau - \tau_t)\tau_t^T\|^2 / \|\tau_t\|^2` for every matrix.

    The rows of a linear layer's task vector span what its inputs were in fine-tuning. The paper descends from the sum
    of the task vectors; the point where that ends has a closed form, with :math:`G_t = \tau_t^T\tau_t / \|\tau_t\|^2`:
    :math:`\tau = \tau_0 + (\sum_t \tau_t G_t - \tau_0 \sum_t G_t)(\sum_t G_t)^+` from :math:`\tau_0 = \sum_t \tau_t`.
    Tensors that are no matrices get the mean of their task vectors.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        scale: Coefficient of the merged task vector.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If there is no expert, names or shapes differ, or a weight is NaN or infinite.

    Reference:
        Cheng et al. (2025), "Whoever started the interference should end it: guiding data-free model merging via task
        vectors", arXiv 2503.08099, equation 10.
    """

    def rule(tensors: Tensors) -> Step:
        if len(tensors.shape) < 2:
            return mean_step(scale)
        squares = [0.0] * tensors.experts
        for block in tensors:
            for index, vector in enumerate(block.vectors):
                squares[index] += float(vector.double().square().sum())
        sizes = [max(square, 1e-300) for square in squares]

        def together(block: Block) -> list[Tensor]:
            return [torch.cat([as_matrix(v.double()).div_(s**0.5) for v, s in zip(block.vectors, sizes, strict=True)])]

        values, vectors = eigenvectors(grams(tensors, together)[0])
        used = values > _NOISE * values[-1]
        # tau = sum_t tau_t (1 - G G^+ + G_t G^+), one matrix for each task, and 1 - G G^+ is what has no eigenvalue
        rest = vectors[:, ~used] @ vectors[:, ~used].T
        inverse = vectors.mul_(torch.where(used, values.clamp(min=1e-300).rsqrt(), 0.0)) @ vectors.T
        del vectors
        factors: list[Tensor] = []
        for index, size in enumerate(sizes):
            gram = grams(tensors.only(index), lambda block: block.vectors)[0].div_(size)
            factors.append(torch.addmm(rest, gram, inverse).mul_(scale).to(tensors.dtype))
            del gram
        del rest, inverse

        def step(block: Block) -> Tensor:
            merged = as_matrix(block.base).clone()
            for vector, factor in zip(block.vectors, factors, strict=True):
                merged.addmm_(as_matrix(vector), factor.to(merged))
            return merged.view(block.base.shape)

        return step

    return merge_blocks(pretrained, experts, each(rule))
