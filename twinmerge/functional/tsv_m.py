"""TSV-Merge: keep the leading singular directions of every task, make them orthogonal to each other, add them up."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import State, Step, Tensors
from twinmerge.functional.eigen import eigenvectors
from twinmerge.functional.matrices import Parts, decorrelated, gram_along, mean_step, short_side, step_along
from twinmerge.functional.state import each, merge_blocks

_SMALLEST = 1e-6  # singular values below this share of the largest are rounding of the Gram matrix they come from


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

    def rule(tensors: Tensors) -> Step:
        if len(tensors.shape) != 2:
            return mean_step(scale)
        kept = max(1, short_side(tensors) // tensors.experts)
        tasks = [_leading(tensors.only(index), kept) for index in range(tensors.experts)]
        turned = [vectors / values for vectors, values in tasks]
        short, values = torch.cat([vectors for vectors, _ in tasks], 1), torch.cat([values for _, values in tasks])
        del tasks

        def directions(parts: Parts) -> Tensor:
            return torch.cat([part @ matrix for part, matrix in zip(parts, turned, strict=True)], 1)

        last = decorrelated(gram_along(tensors, directions), scale * values, short)
        return step_along(tensors, lambda parts: directions(parts) @ last)

    return merge_blocks(pretrained, experts, each(rule))


def _leading(tensors: Tensors, kept: int) -> tuple[Tensor, Tensor]:
    """Leading singular vectors of one task on the short side (k, d), and their values (d,); zero ones are left out."""
    squares, vectors = eigenvectors(gram_along(tensors, lambda parts: parts[0]), kept)
    values = squares.clamp_(min=0).sqrt()
    real = values > _SMALLEST * values[-1]
    return vectors[:, real], values[real]
