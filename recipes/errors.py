"""The two errors a user may see: a wrong recipe (exit code 2) and a failed run (exit code 1)."""

import errno
import re

LONGEST = 300  # characters of somebody else's message that are shown
ASKS = "trust_remote_code=True"  # what transformers' refusal of a stranger's code asks for
UNRUN = "needs code that it brings along, which is never run"
UNRUN_ADVICE = "give one of an architecture and a tokenizer that transformers has"


class RecipeError(Exception):
    """The recipe or the command line is wrong; nothing was run and nothing was written.

    Args:
        problems: One sentence each; all are shown, one a line.

    >>> print(RecipeError("merge.yaml:8: method.rnk: unknown key", "merge.yaml:9: seed: expected a whole number"))
    merge.yaml:8: method.rnk: unknown key
    merge.yaml:9: seed: expected a whole number
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class RunError(Exception):
    """A run failed for a reason the user can act on: one sentence, no traceback."""

    exit_code = 1


FULL = {errno.ENOSPC, errno.EDQUOT}  # a full disk, or a used-up share of it


def is_short_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: Python's, Arrow's, torch's or a device's."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in ("t allocate memory", "out of memory"))
    )


def _asking(text: str) -> str:
    """Which repository a refusal of transformers is about."""
    found = re.search(r"The repository (\S+)", text)
    return found[1] if found else "a model"


def unforeseen(error: Exception) -> str:
    """One sentence about an error that nobody foresaw; `--debug` shows where it comes from.

    >>> unforeseen(PermissionError(13, "Permission denied", "/runs"))
    '/runs: Permission denied; give a folder that can be written with --out, or free this one'
    """
    if isinstance(error, OSError) and error.errno in FULL:
        return f"the disk is full: {error.filename or 'no file could be written'}; free some space and start again"
    if isinstance(error, OSError) and error.filename is not None:
        where = str(error.filename)
        where = where if len(where) <= LONGEST else f"{where[:LONGEST]}..."
        if error.errno == errno.ENAMETOOLONG:
            return f"{where[:60]}...: the name is too long for this file system; give a shorter one"
        return f"{where}: {error.strerror}; give a folder that can be written with --out, or free this one"
    if is_short_of_memory(error):
        return "there is not enough memory; end other programs, or make the batches, the model or the data smaller"
    text = " ".join(str(error).split())
    if ASKS in text:
        return f"{_asking(text)} {UNRUN}; {UNRUN_ADVICE}"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return f"stopped: {type(error).__name__}{f': {text}' if text else ''} (add --debug for its traceback)"
