"""Decoupled knowledge distillation: the target class against the rest, and the classes of the rest among themselves."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import NOTHING, check_temperature, comparable


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 2.0,
    temperature: float = 1.0,
    mixed: Literal["argmax", "partition"] = "argmax",
) -> Tensor:
    r"""Weighted sum of the two parts of KD: :math:`T^2 (\alpha \, TCKD + \beta \, NCKD)`.

    TCKD is the KL between the distributions of {the target, the rest}; NCKD the KL between the distributions over the
    rest, renormalised. The chain rule :math:`KD = TCKD + p_t(rest) \, NCKD` shows what is decoupled: KD gives NCKD a
    weight that a confident teacher drives to 0. Everything is computed from log-probabilities, so that confident logits
    give no NaN.

    Args:
        student: Logits, shape (batch, classes).
        teacher: Logits, shape (batch, classes).
        labels: Class indices (batch,), or label distributions (batch, classes) as mixup and CutMix make them.
        alpha: Weight of TCKD.
        beta: Weight of NCKD.
        temperature: Above 0.
        mixed: What the target of a label distribution is: `argmax`, its largest class, as in the published code, where
            the other mixed class then counts as wrong; or `partition`, where every class above the row's least label
            mass is an event of its own beside the rest, and the chain rule stays exact.

    Returns:
        A scalar of at least 0.

    Raises:
        ValueError: If shapes, labels, the temperature or `mixed` do not fit, or the KL is not defined, see
            `checks.comparable`.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[400.0, 0.0, -400.0]])
        >>> dkd(student, teacher, torch.tensor([0]), beta=0.0)  # log 3: the target is certain
        tensor(1.0986)

    Reference:
        Zhao et al. (2022), "Decoupled knowledge distillation", arXiv 2203.08679, equations 4 to 7.
    """
    check_temperature(temperature)
    student, teacher = comparable(student, teacher, temperature)
    targets = target_classes(labels, student.shape, mixed)
    log_student, log_teacher = (F.log_softmax(z / temperature, -1) for z in (student, teacher))
    rest_student, rest_teacher = _log_rest(log_student, targets), _log_rest(log_teacher, targets)
    gap = log_teacher - log_student
    target_part = (log_teacher.exp() * gap * targets).sum(-1) + rest_teacher.exp() * (rest_teacher - rest_student)
    nobody = rest_teacher < NOTHING / (2 * temperature)  # all but the targets are masked: nothing to tell of the rest
    inner = (log_teacher - rest_teacher[:, None]).exp().masked_fill(targets | nobody[:, None], 0.0)
    rest_part = (inner * (gap - (rest_teacher - rest_student)[:, None])).sum(-1)
    return temperature**2 * (alpha * target_part + beta * rest_part).mean()


def target_classes(labels: Tensor, shape: torch.Size, mixed: str) -> Tensor:
    """Mark the target classes of every row.

    Args:
        labels: As in `dkd`.
        shape: Shape (batch, classes) of the logits.
        mixed: As in `dkd`.

    Returns:
        Boolean tensor of shape (batch, classes).

    Raises:
        ValueError: If the labels fit neither form, or `mixed` is unknown.
    """
    if mixed not in ("argmax", "partition"):
        raise ValueError(f"mixed is {mixed!r}; accepted are 'argmax' and 'partition'")
    if labels.shape == shape and labels.is_floating_point():
        if bool(labels.isnan().any()):
            raise ValueError("label distributions hold NaN; give entries of at least 0 that add up to 1")
        if mixed == "partition":
            return labels > labels.min(-1, keepdim=True).values
        labels = labels.argmax(-1)
    if labels.shape != shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} fit no logits of shape {tuple(shape)}: "
            f"give class indices ({shape[0]},) or label distributions {tuple(shape)}"
        )
    if not ((labels >= 0) & (labels < shape[1])).all():
        raise ValueError(f"labels must be from 0 to {shape[1] - 1}, got {int(labels.min())} to {int(labels.max())}")
    return F.one_hot(labels.long(), shape[1]).bool()


def _log_rest(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Log of the mass outside the targets; the least number of the type, and no NaN gradient, where nothing is."""
    return log_probabilities.masked_fill(targets, torch.finfo(log_probabilities.dtype).min).logsumexp(-1)
