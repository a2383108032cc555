"""Universal logit distillation: next-token distributions of two vocabularies compared by their sorted probabilities."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import NOTHING, check_rows, check_temperature
from distill.functional.jsd import weighted_mean


def uld(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, weight: Tensor | None = None) -> Tensor:
    r"""Mean over rows of the L1 distance of sorted probabilities.

    :math:`\sum_i |p_s^{(i)} - p_t^{(i)}|`, where :math:`p^{(i)}` is the i-th largest probability and the shorter vector
    is filled with zeros: the Wasserstein distance of two distributions over tokens of which any costs as much to move
    onto any other. It knows how sure the teacher is and not of what, so it stands beside a loss of the labels.

    Args:
        student: Logits, shape (rows, student's vocabulary).
        teacher: Logits, shape (rows, teacher's vocabulary), of the same rows: places where both have read the same
            text.
        temperature: Of both softmaxes, above 0.
        weight: Weight of every row, as in :func:`~distill.functional.jsd.generalised_jsd`.

    Returns:
        A scalar from 0 to 2; 0, with a graph, where there are no rows.

    Raises:
        ValueError: If shapes, the temperature or the weights do not fit, or logits are no distribution.

    Example:
        >>> import torch
        >>> certain = torch.tensor([[0.0, 90.0, 0.0]])
        >>> as_sure, less_sure = uld(certain, torch.tensor([[90.0, 0.0]])), uld(certain, torch.zeros(1, 2))  # other ids
        >>> round(float(as_sure), 6), round(float(less_sure), 6)
        (0.0, 1.0)

    Reference:
        Boizard et al. (2024), "Towards cross-tokenizer distillation: the universal logit distillation loss for LLMs",
        arXiv 2402.12030, section 3.2. There the t-th token of one answer stands beside the t-th of the other; which
        rows are compared is the caller's choice here.
    """
    check_temperature(temperature)
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(
            f"logits have shapes {tuple(student.shape)} and {tuple(teacher.shape)}, but both must be (rows, "
            "vocabulary) of the same rows: pair the places where both have read the same text first"
        )
    if not len(student):
        return student.sum()
    check_rows(student.detach(), "student")
    check_rows(teacher, "teacher")
    kind = torch.promote_types(student.dtype, torch.float32)
    made = [(z.to(kind).clamp(min=NOTHING) / temperature).softmax(-1) for z in (student, teacher)]
    wide = max(p.shape[-1] for p in made)
    first, second = (F.pad(p.sort(-1, descending=True).values, (0, wide - p.shape[-1])) for p in made)
    return weighted_mean((first - second).abs().sum(-1), weight)
