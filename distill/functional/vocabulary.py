"""Bring the logits of two vocabularies that share their first ids to one width."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import NOTHING

Vocabulary = Literal["mask", "truncate", "zero_mass"]


def align_vocabularies(
    student: Tensor, teacher: Tensor, *, vocabulary: Vocabulary = "mask", beta: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Logits over one set of ids, for a divergence between models whose vocabularies are padded differently.

    Args:
        student: Logits, shape (tokens, student ids).
        teacher: Logits, shape (tokens, teacher ids); the first ids mean the same in both.
        vocabulary: What becomes of the ids that one model has alone. `mask` and `truncate` leave them out, and both
            distributions are those of the common ids, renormalised (a loss on labels differs: it keeps the student's
            whole vocabulary under `mask`, and has the common ids only under `truncate`). `zero_mass` keeps them, as ids
            to which the other model gives no probability: what a student spends on an id its teacher lacks is an error.
        beta: The divergence's, from 0 to 1: `zero_mass` has no finite forward KL under a wider teacher, and no finite
            reverse KL under a wider student.

    Returns:
        The two aligned logits, shapes (tokens, ids); the inputs themselves where the widths agree.

    Raises:
        ValueError: If the alignment is unknown or would make the divergence infinite.

    Example:
        >>> import torch
        >>> [z.shape[1] for z in align_vocabularies(torch.zeros(1, 5), torch.zeros(1, 8))]
        [5, 5]
        >>> [z.shape[1] for z in align_vocabularies(torch.zeros(1, 8), torch.zeros(1, 5), vocabulary="zero_mass")]
        [8, 8]
    """
    check_alignment(student.shape[-1], teacher.shape[-1], vocabulary, beta)
    extra = teacher.shape[-1] - student.shape[-1]
    if extra == 0:
        return student, teacher
    if vocabulary == "zero_mass":
        return F.pad(student, (0, max(extra, 0)), value=NOTHING), F.pad(teacher, (0, max(-extra, 0)), value=NOTHING)
    common = min(student.shape[-1], teacher.shape[-1])
    return student[..., :common], teacher[..., :common]


def check_alignment(student_ids: int, teacher_ids: int, vocabulary: str, beta: float) -> None:
    """Refuse an unknown alignment, and one under which the divergence would be infinite."""
    if vocabulary not in ("mask", "truncate", "zero_mass"):
        raise ValueError(f"vocabulary is {vocabulary!r}; accepted are 'mask', 'truncate' and 'zero_mass'")
    wider, end = ("teacher", 0) if teacher_ids > student_ids else ("student", 1)
    if vocabulary == "zero_mass" and teacher_ids != student_ids and beta == end:
        raise ValueError(
            f"under 'zero_mass' the {'forward' if end == 0 else 'reverse'} KL is infinite where the {wider}'s "
            f"vocabulary is the wider one (student {student_ids}, teacher {teacher_ids}); use 'mask', or a beta "
            "between 0 and 1"
        )
