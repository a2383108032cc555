"""Vanilla knowledge distillation: the Kullback-Leibler divergence between softened class distributions."""

import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import check_temperature, comparable


def kd(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Forward KL between softened distributions, times the squared temperature.

    :math:`T^2 \frac1B \sum_b \sum_c p_t \log(p_t / p_s)` with :math:`p = softmax(z / T)`: a sum over classes, a mean
    over the batch. The factor :math:`T^2` keeps the gradient's scale about the same at every temperature.

    Args:
        student: Logits, shape (batch, classes).
        teacher: Logits, shape (batch, classes); no gradient is needed, none is stopped.
        temperature: Above 0; 1 in the stronger recipe, 4 in the older one.

    Returns:
        A scalar of at least 0, exactly 0 where the two distributions agree.

    Raises:
        ValueError: If shapes or the temperature do not fit, or the KL is not defined, see `checks.comparable`.

    Example:
        >>> import torch
        >>> kd(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(0.3278)

    Reference:
        Hinton, Vinyals and Dean (2015), "Distilling the knowledge in a neural network", arXiv 1503.02531, section 2;
        Hao et al. (2023), "Revisit the power of vanilla knowledge distillation", arXiv 2305.15781.
    """
    check_temperature(temperature)
    student, teacher = comparable(student, teacher, temperature)
    log_student = F.log_softmax(student / temperature, -1)
    log_teacher = F.log_softmax(teacher / temperature, -1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
