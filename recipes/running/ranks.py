"""How the processes of a launcher come together in one run folder: rank 0 makes it, the others wait while it is alive."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recipes.errors import RecipeError
from recipes.running.environment import PROCESS_KEYS

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

READY = b"ready"
PATIENCE = 600.0  # seconds in which rank 0 must have begun: on a busy machine its imports alone take minutes


def _sign(out: Path) -> Path:
    return out.parent / f".{out.name}.rank0"


@contextmanager
def announced(out: Path | None) -> Iterator[Callable[[], None]]:
    """On rank 0, show the other processes of a launcher that this one is alive, for as long as the block lasts.

    Args:
        out: The run folder, which need not exist yet; None where there is nobody to tell.

    Yields:
        What to call when the run folder is ready.
    """
    if out is None or fcntl is None or not any(os.environ.get(key) for key in PROCESS_KEYS):
        yield lambda: None
        return
    path = _sign(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _held(handle):  # by another run, which is at work in the folder: that is refused elsewhere
            yield lambda: None
            return
        os.ftruncate(handle, 0)
        try:
            yield lambda: os.pwrite(handle, READY, 0) and None
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


def wait_for_rank_zero(out: Path, patience: float = PATIENCE) -> None:
    """Return when rank 0 says that the run folder is ready; its pre-flight may take as long as it likes.

    Args:
        out: The run folder.
        patience: Seconds in which rank 0 must have begun.

    Raises:
        RecipeError: When rank 0 has not begun by then, or ended before it said so.
    """
    begun, deadline = False, time.monotonic() + patience
    while True:
        alive, content = _glance(_sign(out))
        if alive and content == READY:
            return
        if begun and not alive:
            raise RecipeError(f"--out {out}: rank 0 ended before the run folder was ready; see its message")
        begun = begun or alive
        if not begun and time.monotonic() > deadline:
            raise RecipeError(f"--out {out}: rank 0 has not begun within {patience:.0f} seconds; see its message")
        time.sleep(0.1)


def _glance(path: Path) -> tuple[bool, bytes]:
    """Whether a living process holds a file, and its content."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False, b""
    try:
        content = os.pread(handle, len(READY), 0)
        if fcntl is not None:
            try:
                fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True, content
            return False, content
        return True, content
    finally:
        os.close(handle)
