"""The error every unreadable, mismatched or tampered checkpoint raises."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one sentence that says which file or tensor, and what to do."""
