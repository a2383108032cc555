"""DIST: match the teacher's relations, within every row of probabilities and within every class over the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import check_temperature, comparable, without_masked


def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    r"""Squared temperature times the weighted inter- and intra-class distances of the softened probabilities.

    :math:`T^2 [\beta (1 - mean_b \rho(p_s[b,:], p_t[b,:])) + \gamma (1 - mean_c \rho(p_s[:,c], p_t[:,c]))]` with
    Pearson's correlation :math:`\rho`: only the shape of a row or column counts, not its scale.

    Args:
        student: Logits, shape (batch, classes).
        teacher: Logits, shape (batch, classes).
        beta: Weight of the inter-class term, over rows.
        gamma: Weight of the intra-class term, over columns; it depends on what else is in the batch.
        temperature: Above 0.

    Returns:
        A scalar, 0 where all rows and columns correlate fully.

    Raises:
        ValueError: If shapes or the temperature do not fit, or logits are NaN or +inf. A class that both networks mask
            (-inf) in every row does not count.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]])
        >>> dist(logits, logits).abs() < 1e-6
        tensor(True)

    Reference:
        Huang et al. (2022), "Knowledge distillation from a stronger teacher", arXiv 2205.10536, equations 6 to 10.
    """
    check_temperature(temperature)
    student, teacher = without_masked(*comparable(student, teacher, temperature, "bounded"))
    student, teacher = F.softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
    return temperature**2 * (
        beta * relation_distance(student, teacher) + gamma * relation_distance(student.T, teacher.T)
    )


def relation_distance(student: Tensor, teacher: Tensor, eps: float = 1e-8) -> Tensor:
    """One minus the mean Pearson correlation of corresponding rows.

    Args:
        student: Shape (rows, entries).
        teacher: The same shape.
        eps: Least product of norms; a row that is constant in either counts as uncorrelated.

    Returns:
        A scalar from 0 to 2.
    """
    student = student - student.mean(-1, keepdim=True)
    teacher = teacher - teacher.mean(-1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(student, dim=-1) * torch.linalg.vector_norm(teacher, dim=-1)
    return 1 - ((student * teacher).sum(-1) / norms.clamp(min=eps)).mean()
