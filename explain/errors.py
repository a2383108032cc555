"""The error every input that cannot be explained raises."""


class ExplainError(ValueError):
    """Data or options cannot be explained; the message is one sentence that says what is wrong and what to do."""
