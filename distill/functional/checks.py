"""What every logit loss asks of its input, in one sentence each."""

import math

from torch import Tensor


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
    if len(student) < rows:
        raise ValueError(f"a batch of {len(student)} has no relations between samples; give at least {rows} rows")
