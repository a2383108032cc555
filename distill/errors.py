"""The error for a teacher, a student or data that do not fit each other."""

from collections.abc import Iterator
from contextlib import contextmanager


class DistillError(ValueError):
    """Something cannot be distilled; the message is one sentence: what is wrong, the value got, what to do."""


@contextmanager
def about(student: str, beside: bool) -> Iterator[None]:
    """Say of which student a loss or a network refuses its values, where several are trained.

    Args:
        student: Its name.
        beside: Whether there are others.

    >>> with about("kd", True):
    ...     raise ValueError("its logits hold NaN")
    Traceback (most recent call last):
    distill.errors.DistillError: student kd: its logits hold NaN
    """
    try:
        yield
    except ValueError as error:
        if not beside:
            raise
        raise DistillError(f"student {student}: {error}") from error
