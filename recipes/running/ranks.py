"""How a launcher's processes meet in one run folder: rank 0 makes it, the others wait while it is alive."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipes.errors import RecipeError
from recipes.running.environment import PROCESS_KEYS, process_rank

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

READY = "ready"  # the run folder is
PATIENCE = 600.0  # seconds in which rank 0 must have begun: on a busy machine its imports alone take minutes


class Board:
    """What rank 0 tells the other processes of a launcher, as long as they have no other way to talk.

    A file beside the run folder, which rank 0 holds locked while it lives: what a dead one wrote counts as nothing.

    Args:
        out: The run folder, which need not exist yet.
        handle: On rank 0, the descriptor of the file.
    """

    def __init__(self, out: Path, handle: int | None = None) -> None:
        self._out = out
        self._handle = handle

    def say(self, word: str) -> None:
        """On rank 0, tell the others; on them, do nothing."""
        if self._handle is not None:
            os.write(self._handle, f"{word}\n".encode())

    def wait(self, word: str, patience: float = PATIENCE) -> None:
        """On the others, return when rank 0 has said a word, however long it takes; on rank 0, do nothing.

        Args:
            word: What to wait for.
            patience: Seconds in which rank 0 must have begun.

        Raises:
            RecipeError: When rank 0 has not begun by then, or ended before it said the word.
        """
        if self._handle is not None:
            return
        begun, deadline = False, time.monotonic() + patience
        while True:
            alive, words = _glance(_file(self._out))
            if alive and word in words:
                return
            if begun and not alive:
                raise RecipeError(f"--out {self._out}: rank 0 ended before this process could go on; see its message")
            begun = begun or alive
            if not begun and time.monotonic() > deadline:
                raise RecipeError(
                    f"--out {self._out}: rank 0 has not begun within {patience:.0f} seconds; see its message"
                )
            time.sleep(0.1)


def _file(out: Path) -> Path:
    return out.parent / f".{out.name}.rank0"


@contextmanager
def board(out: Path | None) -> Iterator[Board | None]:
    """The board of the processes that a launcher such as torchrun has started; on rank 0 it lasts for the block.

    Args:
        out: The run folder that they share, which need not exist yet; None where there are no others.

    Yields:
        The board; None for a process that no launcher has started.
    """
    if out is None or fcntl is None or not any(os.environ.get(key) for key in PROCESS_KEYS):
        yield None
        return
    if process_rank() != 0:
        yield Board(out)
        return
    path = _file(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _held(handle):  # by another run, which is at work in the folder: that is refused elsewhere
            yield None
            return
        os.ftruncate(handle, 0)
        try:
            yield Board(out, handle)
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _held(handle: int) -> bool:
    for _ in range(20):  # the others hold it for a glance
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EAGAIN}:  # a file system without locks promises nothing
                return True
            time.sleep(0.05)
        else:
            return True
    return False


def _glance(path: Path) -> tuple[bool, list[str]]:
    """Whether a living process holds a file, and its lines."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False, []
    try:
        fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True, path.read_text(encoding="utf-8").splitlines()
    else:
        return False, []
    finally:
        os.close(handle)
