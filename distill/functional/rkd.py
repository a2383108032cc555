"""Relational knowledge distillation: match the distances and angles between the samples of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import check_features


def rkd(student: Tensor, teacher: Tensor, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    r"""Weighted Huber losses between normalised pairwise distances and between the angles of all triplets.

    :math:`w_d\, h(d_{ij} / \bar d) + w_a\, h(\cos\angle ijk)`; distances are divided by their mean over distinct pairs,
    angles are taken at the middle sample. The widths of the two networks may differ. Memory grows with the cube of the
    batch.

    Args:
        student: Pooled features, shape (batch, student width).
        teacher: Pooled features, shape (batch, teacher width); they get no gradient.
        distance: Weight of the distance term.
        angle: Weight of the angle term.

    Returns:
        A scalar of at least 0.

    Raises:
        ValueError: If the shapes do not fit or the batch has fewer than 3 rows.

    Example:
        >>> import torch
        >>> corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> rkd(2 * corners + 1, corners) < 1e-10  # scale and place do not count
        tensor(True)

    Reference:
        Park et al. (2019), "Relational knowledge distillation", arXiv 1904.05068, equations 4 to 8.
    """
    check_features(student, teacher, rows=3)
    student, teacher = _in_range(student), _in_range(teacher.detach())
    return distance * F.smooth_l1_loss(_distances(student), _distances(teacher)) + angle * F.smooth_l1_loss(
        _angles(student), _angles(teacher)
    )


def _in_range(features: Tensor) -> Tensor:
    """Features over their largest, which no distance or angle tells from the features, so that no square overflows."""
    largest = features.detach().abs().max()
    return features / torch.where(largest > 0, largest, torch.ones_like(largest))


def _distances(features: Tensor) -> Tensor:
    """All distances over their mean between distinct samples, (batch, batch); coinciding samples get no gradient."""
    squared = (features[:, None] - features[None]).square().sum(-1)
    apart = squared > 0
    distances = torch.where(apart, squared, torch.ones_like(squared)).sqrt() * apart
    return distances * apart.sum() / distances.sum().clamp(min=torch.finfo(features.dtype).tiny)


def _angles(features: Tensor) -> Tensor:
    """Cosines at the middle sample, (batch, batch, batch)."""
    edges = F.normalize(features[None] - features[:, None], dim=-1)
    return edges @ edges.transpose(1, 2)
