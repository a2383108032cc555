"""The error for a teacher, a student or data that do not fit each other."""


class DistillError(ValueError):
    """Something cannot be distilled; the message is one sentence: what is wrong, the value got, what to do."""
