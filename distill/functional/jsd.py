"""Generalised Jensen-Shannon divergence of token distributions, from forward to reverse KL, for language models."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import Divergence, check_logits, check_temperature, comparable


def generalised_jsd(
    student: Tensor, teacher: Tensor, *, beta: float = 0.5, temperature: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    r"""Weighted mean over tokens of the generalised Jensen-Shannon divergence, times the squared temperature.

    :math:`\beta KL(p_t \| m) + (1 - \beta) KL(p_s \| m)` with the mixture :math:`m = \beta p_t + (1 - \beta) p_s`. Its
    ends are named by their limits: beta 0 is the forward KL :math:`KL(p_t \| p_s)`, beta 1 the reverse
    :math:`KL(p_s \| p_t)`. Between them the divergence is at most log 2, so its gradient is smaller than at the ends.

    Args:
        student: Logits, shape (tokens, vocabulary).
        teacher: Logits, shape (tokens, vocabulary).
        beta: From 0 to 1.
        temperature: Above 0.
        weight: Weight of every token, shape (tokens,), at least 0; a mask is weights of 0 and 1. None is all 1.

    Returns:
        A scalar of at least 0; 0 with a gradient of 0 where all weights are 0.

    Raises:
        ValueError: If shapes, beta, the temperature or the weights do not fit, or the divergence is infinite or NaN.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 90.0]])
        >>> generalised_jsd(student, teacher, beta=0.0)  # log 2
        tensor(0.6931)

    Reference:
        Agarwal et al. (2024), "On-policy distillation of language models", arXiv 2306.13649, section 2; the ends as
        forward and reverse KL as in Gu et al. (2024), "MiniLLM", arXiv 2306.08543.
    """
    check_logits(student, teacher)
    check_temperature(temperature)
    check_beta(beta)
    if weight is not None:  # what does not count may hold anything
        weight = shares(weight, len(student))
        kept = weight > 0
        student, teacher, weight = student[kept], teacher[kept], weight[kept]
        if not len(student):
            return student.sum()
    divergence: Divergence = "forward" if beta == 0 else "reverse" if beta == 1 else "bounded"
    student, teacher = comparable(student, teacher, temperature, divergence)
    log_student, log_teacher = (F.log_softmax(z / temperature, -1) for z in (student, teacher))
    return temperature**2 * weighted_mean(jsd_rows(log_student, log_teacher, beta), weight)


def check_beta(beta: float) -> None:
    """Refuse a beta outside [0, 1]."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}, but it must be from 0 (forward KL) to 1 (reverse KL)")


def jsd_rows(log_student: Tensor, log_teacher: Tensor, beta: float) -> Tensor:
    """The generalised divergence of every row, as `generalised_jsd` defines it.

    Args:
        log_student: Log-probabilities, shape (rows, classes).
        log_teacher: Log-probabilities, shape (rows, classes).
        beta: From 0 to 1.

    Returns:
        Shape (rows,), at least 0.
    """
    if beta == 0:
        return _kl(log_teacher, log_student)
    if beta == 1:
        return _kl(log_student, log_teacher)
    log_mixture = _log_mixture(log_student, log_teacher, beta)
    return beta * _kl(log_teacher, log_mixture) + (1 - beta) * _kl(log_student, log_mixture)


def jsd_gradient(log_student: Tensor, log_teacher: Tensor, beta: float) -> Tensor:
    r"""Gradient of `jsd_rows` by the student's softened logits, in closed form.

    :math:`p_s - p_t` for the forward KL, and :math:`p_s (g - \sum_c p_s g)` otherwise, with the score
    :math:`g = \log(p_s / p_t)` at beta 1 and :math:`(1 - \beta) \log(p_s / m)` between: the other terms of the
    derivative sum to a constant, which the softmax removes.

    Args:
        log_student: Log-probabilities, shape (rows, classes).
        log_teacher: Log-probabilities, shape (rows, classes).
        beta: From 0 to 1.

    Returns:
        Shape (rows, classes).
    """
    student = log_student.exp()
    if beta == 0:
        return student.sub_(log_teacher.exp())
    scale = 1.0 if beta == 1 else 1 - beta
    score = log_student - (log_teacher if beta == 1 else _log_mixture(log_student, log_teacher, beta))
    mean = (student * score).sum(-1, keepdim=True)
    return student.mul_(score.sub_(mean)).mul_(scale)


def weighted_mean(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of the rows by weight; 0, with a graph, where all weights are 0.

    Args:
        rows: Shape (rows,).
        weight: Shape (rows,), at least 0, or None for equal weights.

    Raises:
        ValueError: If the weights do not fit.
    """
    return rows.mean() if weight is None else (rows * shares(weight.to(rows.dtype), len(rows))).sum()


def shares(weight: Tensor, rows: int) -> Tensor:
    """Weights that sum to 1, or all 0 where all are 0.

    Args:
        weight: Shape (rows,), at least 0.
        rows: How many there must be.

    Raises:
        ValueError: If the weights do not fit.
    """
    if weight.shape != (rows,) or bool((weight < 0).any()):
        raise ValueError(f"weights must be at least 0 and have shape {(rows,)}, got {tuple(weight.shape)}")
    total = weight.sum()
    return weight / torch.where(total > 0, total, torch.ones_like(total))


def _kl(log_first: Tensor, log_second: Tensor) -> Tensor:
    """KL of every row, from log-probabilities."""
    return (log_first.exp() * (log_first - log_second)).sum(-1)


def _log_mixture(log_student: Tensor, log_teacher: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(log_teacher + math.log(beta), log_student + math.log1p(-beta))
