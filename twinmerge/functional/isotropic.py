"""Isotropic merging: the merged task matrix with a flat spectrum, from common or also from task-specific directions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.matrices import as_matrix, gram_of_rows, grams, mean_step, total
from twinmerge.functional.state import each, merge_blocks, slices_of

_NOISE = 1e-7  # singular values below this share of the largest are rounding: float64 squares them in a Gram matrix


def iso_c(pretrained: State, experts: Sequence[State], *, scale: float = 1.0) -> dict[str, Tensor]:
    r"""Base plus :math:`\lambda\bar\sigma U V^T`, with :math:`\sum_t \tau_t = U\Sigma V^T` for every matrix.

    All singular values of the summed task matrix become their mean. :math:`UV^T = D (D^T D)^{-1/2}` needs no more of a
    matrix D than its Gram matrix and its rows, one block at a time. Directions without any change stay without.
    Tensors that are no matrices get the mean of their task vectors.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        scale: Coefficient :math:`\lambda`.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If there is no expert, names or shapes differ, or a weight is NaN or infinite.

    Reference:
        Marczak et al. (2025), "No task left behind: isotropic model merging with common and task-specific subspaces",
        arXiv 2502.04959, section 4.1.
    """

    def rule(tensors: Tensors) -> Step:
        if len(tensors.shape) < 2:
            return mean_step(scale)
        wide = tensors.columns > tensors.shape[0]
        gram = gram_of_rows(tensors, total) if wide else grams(tensors, lambda block: [total(block)])[0]
        values, vectors = torch.linalg.eigh(gram)
        sigma = values.clamp(min=0).sqrt()
        used = sigma > _NOISE * sigma[-1]
        mean = sigma.sum() / min(tensors.shape[0], tensors.columns)
        inner: Tensor = (vectors[:, used] / sigma[used]) @ vectors[:, used].T * mean * scale
        if wide:  # U V^T = (D D^T)^(-1/2) D: rows of the result are sums of all rows of D
            return _rows_of_all(tensors, inner)

        def step(block: Block) -> Tensor:
            flat = as_matrix(total(block))
            return block.base + (flat @ inner.to(flat)).view(block.base.shape)

        return step

    return merge_blocks(pretrained, experts, each(rule))


def _rows_of_all(tensors: Tensors, inner: Tensor) -> Step:
    made = torch.zeros(tensors.shape[0], tensors.columns, dtype=tensors.dtype)
    for block in tensors:
        flat, first = as_matrix(total(block)), block.start // tensors.columns
        made.addmm_(inner[:, first : first + flat.shape[0]].to(made), flat.to(made.device))
    part = slices_of(made)
    return lambda block: block.base + part(block).to(block.base.device)


def iso_cts(
    pretrained: State, experts: Sequence[State], *, scale: float = 1.0, common: float = 0.8
) -> dict[str, Tensor]:
    r"""As :func:`iso_c`, with the least common directions replaced by directions of single tasks.

    The first k left and right singular vectors of the sum stay; what every task vector has outside of their space
    gives its first (r - k) / T, and all of them together are made orthonormal. A whole matrix is held at a time.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        scale: Coefficient :math:`\lambda`.
        common: Share of the directions that are common, k / r, in [0, 1].

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If the share is out of range, there is no expert, names or shapes differ, or a weight is NaN or
            infinite.

    Reference:
        Marczak et al. (2025), arXiv 2502.04959, section 4.2 and algorithm 1.
    """
    if not 0 <= common <= 1:
        raise ValueError(f"the common share is {common}, but it must be at least 0 and at most 1, as in 0.8")

    def rule(tensors: Tensors) -> Step:
        if len(tensors.shape) < 2:
            return mean_step(scale)
        whole = tensors.whole()
        vectors = [as_matrix(vector) for vector in whole.vectors]
        left, spectrum, right = torch.linalg.svd(sum(vectors[1:], vectors[0]), full_matrices=False)
        each_task = (len(spectrum) - int(common * len(spectrum))) // len(vectors)
        kept = len(spectrum) - each_task * len(vectors)
        lefts, values, rights = [left[:, :kept]], [spectrum[:kept]], [right[:kept]]
        for vector in vectors:
            rest = vector - lefts[0] @ (lefts[0].T @ vector)
            U, S, Vh = torch.linalg.svd(rest, full_matrices=False)
            lefts.append(U[:, :each_task])
            values.append(S[:each_task])
            rights.append(Vh[:each_task])
        mean = torch.cat(values).mean()
        U, V = _orthonormal(torch.cat(lefts, 1)), _orthonormal(torch.cat(rights).T)
        return slices_of(whole.base + (scale * mean * (U @ V.T)).view(whole.base.shape))

    return merge_blocks(pretrained, experts, each(rule))


def _orthonormal(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns."""
    U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
    nearest: Tensor = U @ Vh
    return nearest
