"""ReviewKD's hierarchical context loss: compare feature maps at several grids."""

import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import check_finite


def hierarchical_context(student: Tensor, teacher: Tensor, *, grids: tuple[int, ...] = (4, 2, 1)) -> Tensor:
    r"""Mean squared errors of two feature maps, whole and pooled to ever coarser grids, halving the weight each time.

    :math:`\sum_l 2^{-l} \| P_l(F_s) - P_l(F_t) \|^2_{mean} / \sum_l 2^{-l}`, where :math:`P_0` is the map itself and
    the others are average pooling to a grid; grids that are not coarser than the map are left out.

    Args:
        student: Feature maps, shape (batch, channels, height, width), after fusion and mapping to the teacher's shape.
        teacher: Feature maps of the same shape.
        grids: Sides of the pooled grids, from fine to coarse.

    Returns:
        A scalar of at least 0.

    Raises:
        ValueError: If the shapes differ or are no feature maps, or a number is not finite.

    Example:
        >>> import torch
        >>> hierarchical_context(torch.ones(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))
        tensor(1.)

    Reference:
        Chen et al. (2021), "Distilling knowledge via knowledge review", arXiv 2104.09044, section 3.3.
    """
    if student.ndim != 4 or student.shape != teacher.shape:
        raise ValueError(
            f"feature maps have shapes {tuple(student.shape)} and {tuple(teacher.shape)}, but both must be (batch, "
            "channels, height, width)"
        )
    check_finite(student, teacher, "feature maps")
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for grid in grids:
        if grid >= student.shape[-2]:
            continue
        weight /= 2
        loss = loss + weight * F.mse_loss(F.adaptive_avg_pool2d(student, grid), F.adaptive_avg_pool2d(teacher, grid))
        total += weight
    return loss / total
