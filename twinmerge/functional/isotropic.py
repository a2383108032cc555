"""Isotropic merging: the merged task matrix with a flat spectrum, from common or also from task-specific directions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from twinmerge.functional.blocks import State, Step, Tensors
from twinmerge.functional.eigen import eigenvectors, inverse_power
from twinmerge.functional.matrices import (
    Parts,
    along,
    decorrelated,
    gram_along,
    is_wide,
    mean_step,
    short_side,
    step_along,
    summed,
)
from twinmerge.functional.state import each, merge_blocks

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
        squares, root = inverse_power(gram_along(tensors, summed), 0.5, _NOISE**2)
        root = root.mul_(scale * squares.sqrt().sum() / short_side(tensors))
        return step_along(tensors, lambda parts: summed(parts) @ root)

    return merge_blocks(pretrained, experts, each(rule))


def iso_cts(
    pretrained: State, experts: Sequence[State], *, scale: float = 1.0, common: float = 0.8
) -> dict[str, Tensor]:
    r"""As :func:`iso_c`, with the least common directions replaced by directions of single tasks.

    The first k left and right singular vectors of the sum stay; what every task vector has outside of their space
    gives its first (r - k) / T, and all of them together are made orthonormal. Square matrices of the shorter side are
    held, and of a wide matrix the result. Directions without any change stay without, as in :func:`iso_c`.

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
        side = short_side(tensors)
        own = (side - int(common * side)) // tensors.experts
        shared = _leading(gram_along(tensors, summed), side - own * tensors.experts)
        turned = shared.vectors / shared.values
        tasks = [_own(tensors, index, own, shared.vectors, turned) for index in range(tensors.experts)]
        short = torch.cat([shared.vectors, *(task.found.vectors for task in tasks)], 1)
        size = scale * sum(float(found.values.sum()) for found in (shared, *(task.found for task in tasks))) / side
        del shared

        def directions(parts: Parts) -> Tensor:
            made = [part @ (task.found.vectors / task.found.values) for part, task in zip(parts, tasks, strict=True)]
            together = summed(parts) @ turned
            for mine, task in zip(made, tasks, strict=True):
                if task.less is not None:
                    mine.sub_(together @ task.less)
            return torch.cat([together, *made], 1)

        last = decorrelated(gram_along(tensors, directions), size, short)
        del short
        return step_along(tensors, lambda parts: directions(parts) @ last)

    return merge_blocks(pretrained, experts, each(rule))


class _Leading(NamedTuple):
    """Leading singular directions of a matrix: on its short side (k, d), and their values (d,)."""

    vectors: Tensor
    values: Tensor


class _Own(NamedTuple):
    """Directions of one task, and what of the common ones they contain on the long side, (common, d)."""

    found: _Leading
    less: Tensor | None


def _leading(gram: Tensor, count: int, size: float | None = None) -> _Leading:
    """The leading directions by the Gram matrix of the short side, whose content is lost; without those of no change.

    What is that is measured by the squared size of the whole change, of which the matrix may be a small rest.
    """
    size = float(gram.trace()) if size is None else size
    squares, vectors = eigenvectors(gram, count)
    del gram
    real = squares > _NOISE**2 * size
    return _Leading(vectors[:, real], squares[real].sqrt())


def _own(tensors: Tensors, index: int, count: int, shared: Tensor, turned: Tensor) -> _Own:
    """The leading directions of what a task's matrix has outside of the space of the common left directions.

    Args:
        tensors: One tensor of all models.
        index: Which task.
        count: How many.
        shared: The common directions on the short side, (k, common).
        turned: What gives those on the long side when the summed matrix is multiplied by it.
    """
    if is_wide(tensors):  # the left side is the short one, so that both sides of the Gram matrix are cut
        gram = gram_along(tensors.only(index), lambda parts: parts[0])
        size = float(gram.trace())
        for _ in range(2):
            gram.addmm_(shared, shared.T @ gram, alpha=-1)
            gram = gram.T.contiguous()
        return _Own(_leading(gram, count, size), None)
    side, kept = shared.shape
    gram, cross = shared.new_zeros(side, side), shared.new_zeros(kept, side)
    for parts in along(tensors):
        mine = parts[index].clone()
        gram.addmm_(mine.T, mine)
        cross.addmm_((summed(parts) @ turned).T, mine)
    size = float(gram.trace())
    found = _leading(gram.addmm_(cross.T, cross, alpha=-1), count, size)
    return _Own(found, cross @ (found.vectors / found.values))
