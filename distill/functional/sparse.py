"""Distillation from a few stored classes of every row: the largest with their tail, or a sample that is not biased."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import NOTHING, check_covered, check_rows, check_temperature
from distill.functional.jsd import weighted_mean

Tail = Literal["zero", "ghost"]


class TopClasses(NamedTuple):
    """The largest logits of every row, and what is needed for exact probabilities at some temperatures.

    Attributes:
        ids: Classes, shape (rows, k), int32.
        logits: Their logits, shape (rows, k), float32.
        rest: Log-sum-exp of all other logits over T, shape (rows, temperatures), float32; the log-sum-exp of all logits
            is that of `logits / T` and this.
    """

    ids: Tensor
    logits: Tensor
    rest: Tensor


class SampledClasses(NamedTuple):
    """Classes drawn from every row's distribution, with weights whose expectation is the distribution.

    Attributes:
        ids: Classes, shape (rows, draws), int32; a class may be there more than once.
        weights: Shape (rows, draws), float32.
    """

    ids: Tensor
    weights: Tensor


def top_classes(logits: Tensor, k: int, temperatures: Sequence[float] = (1.0,)) -> TopClasses:
    """The k largest logits of every row with the log-sum-exp of the others.

    Args:
        logits: Shape (rows, classes).
        k: From 1 to the number of classes less 1.
        temperatures: Those at which the loss may be asked for.

    Returns:
        A :class:`TopClasses`.

    Raises:
        ValueError: If k or a temperature does not fit.

    Example:
        >>> import torch
        >>> top_classes(torch.tensor([[0.0, 3.0, 0.0, 1.0]]), 2).rest  # log 2
        tensor([[0.6931]])
    """
    if not 1 <= k < logits.shape[-1]:
        raise ValueError(f"k is {k}, but of {logits.shape[-1]} classes 1 to {logits.shape[-1] - 1} can be kept")
    for temperature in temperatures:
        check_temperature(temperature)
    check_rows(logits, "teacher")
    values, ids = logits.float().topk(k, -1)
    others = logits.float().scatter(-1, ids, -torch.inf)
    rest = torch.stack([(others / temperature).logsumexp(-1) for temperature in temperatures], -1)
    return TopClasses(ids.int(), values, rest)


def sampled_classes(
    logits: Tensor, draws: int, places: Tensor, *, temperature: float = 1.0, exponent: float = 1.0
) -> SampledClasses:
    r"""Importance-sampled classes of every row.

    Classes are drawn from :math:`q \propto p^{exponent}` by systematic sampling, at the points :math:`(u + j) / N` of
    its distribution function, and weigh :math:`p / (N q)`: for a uniform u the expected weight of a class is its
    probability, whatever N and exponent, while the k largest classes are biased, renormalised or not.

    Args:
        logits: Shape (rows, classes).
        draws: N, at least 1.
        places: u, shape (rows,), uniform in [0, 1), from a stream that the views own.
        temperature: Of p, above 0; the loss is then for this temperature alone.
        exponent: Above 0; below 1 draws unlikely classes more often.

    Returns:
        A :class:`SampledClasses`.

    Raises:
        ValueError: If a number or the places do not fit.

    Reference:
        Anshumann et al. (2025), "Sparse logit sampling", arXiv 2503.16870, section 4.
    """
    check_temperature(temperature)
    if draws < 1 or not exponent > 0 or places.shape != logits.shape[:-1]:
        raise ValueError(
            f"sampling needs at least 1 draw, an exponent above 0 and one place a row, got {draws}, {exponent} and "
            f"places of shape {tuple(places.shape)} for logits of shape {tuple(logits.shape)}"
        )
    check_rows(logits, "teacher")
    log_p = F.log_softmax(logits.double() / temperature, -1)
    log_q = F.log_softmax(exponent * log_p, -1)
    steps = log_q.exp().cumsum(-1)
    points = (places.double()[:, None] + torch.arange(draws, device=logits.device)) / draws
    likely = (log_q > -torch.inf) * torch.arange(logits.shape[-1], device=logits.device)
    last = likely.amax(-1, keepdim=True)  # where rounding leads beyond the last class that has any mass
    ids = torch.searchsorted(steps, points * steps[:, -1:], right=True).minimum(last)
    weights = (log_p.gather(-1, ids) - log_q.gather(-1, ids)).exp() / draws
    return SampledClasses(ids.int(), weights.float())


def top_kd(
    student: Tensor,
    teacher: TopClasses,
    *,
    column: int = 0,
    temperature: float = 1.0,
    tail: Tail = "ghost",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Forward KL from the largest classes of a teacher, times the squared temperature.

    Args:
        student: Logits, shape (rows, classes).
        teacher: Of :func:`top_classes`.
        column: Which of the stored temperatures `temperature` is.
        temperature: T.
        tail: What stands for the other classes. `ghost`: one class more, with all their mass, in teacher and student;
            the KL of this coarser partition, at most the full KL. `zero`: nothing; the teacher is renormalised over its
            largest classes, and the student is pushed to give the others nothing.
        weight: Weight of every row, as in :func:`~distill.functional.jsd.generalised_jsd`.

    Returns:
        A scalar of at least 0. Its gradient by the logits over T is :math:`p_s - p_t` on the partition: for `zero`,
        the student's softmax less the renormalised teacher.

    Raises:
        ValueError: If shapes, the column, the tail or the temperature do not fit.
    """
    check_temperature(temperature)
    _check_rows(student, teacher.ids)
    if tail not in ("zero", "ghost"):
        raise ValueError(f"tail is {tail!r}; accepted are 'zero' and 'ghost'")
    if not 0 <= column < teacher.rest.shape[-1]:
        raise ValueError(f"column is {column}, but {teacher.rest.shape[-1]} temperatures are stored")
    student, kept = _counted(student, weight)
    teacher, weight = TopClasses(*(part[kept] for part in teacher)), None if weight is None else weight[kept]
    if not len(student):
        return student.sum()
    ids, masked = teacher.ids.long(), student.isneginf()
    softened = student.clamp(min=NOTHING) / temperature
    known = softened.gather(-1, ids) - softened.logsumexp(-1, keepdim=True)
    stored = teacher.logits.to(softened.dtype) / temperature
    others_count = student.shape[-1] - ids.shape[-1]
    if tail == "ghost":
        others = softened.scatter(-1, ids, torch.finfo(softened.dtype).min).logsumexp(-1, keepdim=True)
        known = torch.cat([known, others - softened.logsumexp(-1, keepdim=True)], -1)
        stored = torch.cat([stored, teacher.rest[:, column, None].to(softened.dtype)], -1)
    if bool(masked.any()):
        alone = masked.gather(-1, ids)
        if tail == "ghost":
            alone = torch.cat([alone, (masked.sum(-1, keepdim=True) - alone.sum(-1, keepdim=True)) == others_count], -1)
        check_covered(torch.where(alone, -torch.inf, 0.0), stored.softmax(-1), "student", "forward")
    log_teacher = F.log_softmax(stored.clamp(min=NOTHING), -1)
    return temperature**2 * weighted_mean((log_teacher.exp() * (log_teacher - known)).sum(-1), weight)


def sampled_kd(
    student: Tensor, teacher: SampledClasses, *, temperature: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    r"""Cross-entropy to sampled classes, times the squared temperature: its expected gradient is that of the full KL.

    :math:`-T^2 \sum_j w_j \log p_s(c_j)`: the full forward KL plus the teacher's entropy, which has no gradient, in
    expectation over the draws. Its gradient by the logits over T is :math:`(\sum_j w_j) p_s - \sum_j w_j e_{c_j}`: no
    dense teacher is made.

    Args:
        student: Logits, shape (rows, classes).
        teacher: Of :func:`sampled_classes` at this temperature.
        temperature: T.
        weight: Weight of every row.

    Returns:
        A scalar.

    Raises:
        ValueError: If shapes or the temperature do not fit.

    Reference:
        Anshumann et al. (2025), "Sparse logit sampling", arXiv 2503.16870, section 4.
    """
    check_temperature(temperature)
    _check_rows(student, teacher.ids)
    student, kept = _counted(student, weight)
    teacher, weight = SampledClasses(*(part[kept] for part in teacher)), None if weight is None else weight[kept]
    if not len(student):
        return student.sum()
    if bool(student.isneginf().any()):
        drawn = torch.zeros_like(student).scatter_add(-1, teacher.ids.long(), teacher.weights.to(student.dtype))
        check_covered(student, drawn, "student", "forward")
    known = F.log_softmax(student / temperature, -1).gather(-1, teacher.ids.long())
    return temperature**2 * weighted_mean(-(teacher.weights.to(known.dtype) * known).sum(-1), weight)


def _counted(student: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | slice]:
    """Student's rows of a weight above 0, in float32 or wider and checked, and which they are."""
    kept: Tensor | slice = slice(None) if weight is None else weight > 0
    student = student[kept].to(torch.promote_types(student.dtype, torch.float32))
    check_rows(student, "student")
    return student, kept


def _check_rows(student: Tensor, ids: Tensor) -> None:
    if student.ndim != 2 or ids.ndim != 2 or len(student) != len(ids):
        raise ValueError(
            f"the student's logits have shape {tuple(student.shape)} and the teacher's classes {tuple(ids.shape)}, but "
            "they must be (rows, classes) and (rows, kept) of the same rows: flatten tokens first"
        )
