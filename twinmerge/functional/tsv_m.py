"""TSV-Merge: keep the leading singular directions of every task, make them orthogonal to each other, add them up."""

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from twinmerge.functional.state import State, merge_state

_SMALLEST = 1e-6  # singular values below this share of the largest are rounding of the Gram matrix they come from
_DEPENDENT = 1e-10  # squared share below which directions of several tasks are one direction


def tsv_m(pretrained: State, experts: Sequence[State], *, scale: float = 1.0) -> dict[str, Tensor]:
    r"""Base plus the scaled sum of the tasks' decorrelated singular directions, matrix by matrix.

    Of every task's difference :math:`\Delta_t = U_t \Sigma_t V_t^\top` the leading :math:`\min(m, n) / T` directions
    stay. Side by side they are :math:`U = [U_1 | \dots | U_T]`, :math:`\Sigma` block by block, and :math:`V`. The
    nearest orthogonal matrices :math:`U_\perp = U (U^\top U)^{-1/2}` and :math:`V_\perp` take the interference away:
    :math:`\theta = \theta_0 + \lambda U_\perp \Sigma V_\perp^\top`. Tensors of other than two dimensions get the mean
    of their differences.

    Two cases that the paper leaves open: at least one direction a task stays, however many tasks there are; and
    directions that several tasks share count once (the inverse root is a pseudo-inverse), so that equal experts are
    returned as they are, within the directions kept.

    Args:
        pretrained: Base weights :math:`\theta_0` by name.
        experts: At least one state dict of the same names and shapes.
        scale: Coefficient :math:`\lambda`; 0 returns the base.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If there is no expert, names or shapes differ, or a weight is NaN or infinite.

    Example:
        >>> import torch
        >>> experts = [{"w": torch.diag(torch.tensor([2.0, 0.0]))}, {"w": torch.diag(torch.tensor([0.0, 3.0]))}]
        >>> tsv_m({"w": torch.zeros(2, 2)}, experts)["w"].round(decimals=4)
        tensor([[2., 0.],
                [0., 3.]])

    Reference:
        Gargiulo et al. (2024), "Task singular vectors: reducing task interference in model merging", arXiv 2412.00081,
        algorithm 1.
    """

    def combine(_: str, base: Tensor, tensors: Iterator[Tensor]) -> Tensor:
        changes = (tensor - base for tensor in tensors)
        if base.dim() != 2:
            return base + scale * (reduce(torch.add, changes) / len(experts))
        kept = max(1, min(base.shape) // len(experts))
        parts = [_leading(change.double(), kept) for change in changes]
        left, values, right = (torch.cat(part, -1) for part in zip(*parts, strict=True))
        merged = (_orthogonal(left) * values) @ _orthogonal(right).T
        return base + scale * merged.to(base.dtype)

    return merge_state(pretrained, experts, combine)


def _leading(matrix: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular vectors (m, k), values (k,) and vectors (n, k) of a matrix in float64, zero ones left out."""
    wide = matrix.shape[0] <= matrix.shape[1]
    short = matrix if wide else matrix.T
    squares, vectors = torch.linalg.eigh(short @ short.T)
    values, vectors = squares[-kept:].clamp(min=0).sqrt(), vectors[:, -kept:]
    real = values > _SMALLEST * values[-1]
    values, vectors = values[real], vectors[:, real]
    others = short.T @ vectors / values
    return (vectors, values, others) if wide else (others, values, vectors)


def _orthogonal(vectors: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns; columns in one direction share it."""
    squares, turned = torch.linalg.eigh(vectors.T @ vectors)
    real = squares > _DEPENDENT * squares.max() if len(squares) else squares > 0
    root: Tensor = (turned[:, real] * squares[real].rsqrt()) @ turned[:, real].T
    return vectors @ root
