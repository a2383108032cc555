"""What every logit loss asks of its input, in one sentence each."""

import math
from typing import Literal

import torch
from torch import Tensor

NOTHING = -1e30  # a logit of no probability: finite, so that 0 times a difference of logarithms stays 0
Divergence = Literal["forward", "reverse", "bounded"]


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Refuse logits that cannot be compared.

    Args:
        student: Logits, shape (batch, classes), floating.
        teacher: Logits of the same shape.

    Raises:
        ValueError: If a shape, a type or the number of classes does not fit.
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"the student's logits have shape {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}, but "
            "both must be (batch, classes): flatten tokens, and align different vocabularies first"
        )
    if not (student.is_floating_point() and teacher.is_floating_point()):
        raise ValueError(f"logits must be floating, got {student.dtype} and {teacher.dtype}")
    if student.shape[0] == 0 or student.shape[1] < 2:
        raise ValueError(
            f"logits of shape {tuple(student.shape)} hold nothing to compare: give a row and two classes or more"
        )


def comparable(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, divergence: Divergence = "forward"
) -> tuple[Tensor, Tensor]:
    """Logits in float32 or wider in which masked classes, of logit -inf, have a probability of 0 and no NaN gradient.

    Args:
        student: Logits, shape (rows, classes).
        teacher: Logits of the same shape.
        temperature: At which they are compared.
        divergence: `forward` is infinite where the student alone masks a class, `reverse` where the teacher does, and
            `bounded` never.

    Returns:
        Both, unchanged where all are finite.

    Raises:
        ValueError: If the logits do not fit each other, are NaN or +inf, mask a whole row, or their divergence is
            infinite.
    """
    check_logits(student, teacher)
    student, teacher = (z.to(torch.promote_types(z.dtype, torch.float32)) for z in (student, teacher))
    if _all_finite(student, teacher):
        return student, teacher
    check_rows(student, "student")
    check_rows(teacher, "teacher")
    pairs = {"forward": ("student", student, teacher), "reverse": ("teacher", teacher, student)}
    if divergence in pairs:
        who, masked, other = pairs[divergence]
        check_covered(masked, (other / temperature).softmax(-1), who, divergence)
    return student.clamp(min=NOTHING), teacher.clamp(min=NOTHING)


def _all_finite(*tensors: Tensor) -> bool:
    """Whether sums, which a device makes in one pass, are finite: then so is every number."""
    return bool(torch.stack([tensor.detach().float().sum() for tensor in tensors]).isfinite().all())


def check_rows(logits: Tensor, who: str) -> None:
    """Refuse logits that are no distribution: NaN, +inf, or all -inf.

    Args:
        logits: Shape (rows, classes).
        who: student or teacher.

    Raises:
        ValueError: With the first such row.
    """
    wrong = logits.isnan() | (logits == torch.inf)
    for found, what, cause in (
        (wrong.any(-1), "hold NaN or +inf", "a training that diverged, or inputs that are not finite, makes them"),
        (logits.isneginf().all(-1), "are all -inf", "a mask must leave a row one class at least"),
    ):
        if bool(found.any()):
            raise ValueError(
                f"the {who}'s logits {what} in row {int(found.nonzero()[0])}, so no loss is defined: {cause}"
            )


def check_covered(masked: Tensor, probabilities: Tensor, who: str, divergence: str) -> None:
    """Refuse a class that one masks and to which the other gives a probability.

    Args:
        masked: Logits of the one, shape (rows, classes).
        probabilities: Of the other, the same shape.
        who: The one: student or teacher.
        divergence: forward or reverse.

    Raises:
        ValueError: With the first such class.
    """
    found = (masked.isneginf() & (probabilities > 0)).nonzero()
    if len(found):
        row, column = found[0].tolist()
        other = "teacher" if who == "student" else "student"
        raise ValueError(
            f"the {who} masks class {column} of row {row}, to which the {other} gives a probability of "
            f"{float(probabilities[row, column].detach()):.3g}, so the {divergence} KL is infinite: mask the same "
            "classes in both, or use the jsd with a beta between 0 and 1"
        )


def without_masked(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of `comparable` without the classes that both mask in every row: they have no relation to lose."""
    if bool(student.detach().amin() > NOTHING):
        return student, teacher
    kept = ((student > NOTHING) | (teacher > NOTHING)).any(0)
    return student[:, kept], teacher[:, kept]


def check_finite(student: Tensor, teacher: Tensor, what: str = "features") -> None:
    """Refuse features, maps or scores that hold NaN or infinities.

    Args:
        student: Any shape.
        teacher: Any shape.
        what: They are.

    Raises:
        ValueError: With whose they are.
    """
    if _all_finite(student, teacher):
        return
    for who, tensor in (("student", student), ("teacher", teacher)):
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"the {who}'s {what} hold NaN or infinities, so no loss is defined: a training that diverged, or "
                "inputs that are not finite, makes them"
            )


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not a positive finite number.

    >>> check_temperature(0.0)
    Traceback (most recent call last):
    ValueError: the temperature is 0.0, but it must be a finite number above 0, as in 1.0 or 4.0
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"the temperature is {temperature}, but it must be a finite number above 0, as in 1.0 or 4.0")


def check_features(student: Tensor, teacher: Tensor, rows: int = 2) -> None:
    """Refuse pooled features of different batches or of too few rows for a relation between samples.

    Args:
        student: Features, shape (batch, student width).
        teacher: Features, shape (batch, teacher width).
        rows: Fewest rows that the relation needs.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(
            f"features have shapes {tuple(student.shape)} and {tuple(teacher.shape)}, but both must be (batch, width) "
            "of the same batch: pool feature maps first"
        )
    check_finite(student, teacher)
    if len(student) < rows:
        raise ValueError(f"a batch of {len(student)} has no relations between samples; give at least {rows} rows")
