"""Binary knowledge distillation: every class its own yes-or-no question, for students trained with binary losses."""

import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import check_temperature, comparable


def binary_kd(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Sum over classes of the KL between Bernoulli variables, times the squared temperature.

    :math:`T^2 \frac1B \sum_b \sum_c KL(p_t \| \sigma(z_s / T))`, where :math:`p_t = softmax(z_t / T)` is the teacher's
    probability of the class. The teacher's entropy is subtracted, so the least value of a class is 0; the gradient is
    that of a binary cross-entropy with soft targets.

    Args:
        student: Logits, shape (batch, classes), one sigmoid each.
        teacher: Logits, shape (batch, classes), of one softmax.
        temperature: Above 0.

    Returns:
        A scalar of at least 0.

    Raises:
        ValueError: If shapes or the temperature do not fit, or the KL is not defined, see `checks.comparable`.

    Example:
        >>> import torch
        >>> binary_kd(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor(0.)

    Reference:
        Hao et al. (2023), arXiv 2305.15781, the ablation of soft losses.
    """
    check_temperature(temperature)
    student, teacher = comparable(student, teacher, temperature)
    logits, target = student / temperature, F.softmax(teacher / temperature, -1)
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = F.binary_cross_entropy(target, target, reduction="none")
    return temperature**2 * (cross - entropy).sum(-1).mean()
