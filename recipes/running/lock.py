"""One run at a time in a folder: a lock that names its process and host, and that dies with its process."""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from recipes.errors import RunError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the operating system releases it however the process ends.

    What the file says is for people only: the lock itself is the system's, so that a dead run's is free.

    Args:
        folder: The run folder; it exists.

    Raises:
        RunError: When another run is in the folder, with its process and host.
    """
    if fcntl is None:
        yield
        return
    handle = _take(folder)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before it is released, so that nobody's newer one is removed
        os.close(handle)


def refuse_live(folder: Path) -> None:
    """Refuse a folder in which another process runs.

    Raises:
        RunError: As :func:`locked`.
    """
    if fcntl is not None and (folder / LOCK).is_file():
        os.close(_take(folder))


def _take(folder: Path) -> int:
    """Open and lock the file, and write into it who we are."""
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EAGAIN}:  # a file system without locks promises nothing
                return handle
            owner = _owner(os.pread(handle, 4096, 0))
            os.close(handle)
            raise RunError(
                f"{folder}: a run is at work in this folder, {owner}; wait for it, stop it, or give another folder "
                "with --out"
            ) from error
        try:
            same = os.fstat(handle).st_ino == path.stat().st_ino
        except FileNotFoundError:
            same = False
        if same:
            break
        os.close(handle)  # its last holder removed it in the meantime
    text = {"process": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(text).encode(), 0)
    return handle


def _owner(content: bytes) -> str:
    try:
        found = json.loads(content)
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (ValueError, KeyError, TypeError):  # it has not been written yet
        return "which began just now"
