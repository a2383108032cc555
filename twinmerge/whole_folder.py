"""Folders that are whole or absent: written beside their place and renamed into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill a temporary sibling, then rename it into place: a killed run leaves the old folder or a whole new one.

    Args:
        target: the folder to make.
        overwrite: replace it when it exists.

    Yields:
        The folder to fill.

    Raises:
        FileExistsError: when the target exists and `overwrite` is false.
    """
    target = Path(os.path.abspath(target))
    restore_interrupted(target)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already; choose another folder or overwrite it explicitly.")
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*.part"):
        if not _alive(left.name.split(".")[-2]):
            shutil.rmtree(left, ignore_errors=True)
    working = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    try:
        yield working
        settle(working, target)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def settle(working: Path, target: Path) -> None:
    """Bring a finished folder to the disk and rename it into its place, over what is there."""
    for path in (*working.rglob("*"), working):
        _flush(path)
    previous = _previous(target)
    if target.exists():
        _remove(previous)
        target.rename(previous)
    working.rename(target)
    _flush(target.parent)
    _remove(previous)


def _remove(place: Path) -> None:
    """Take a folder away; of a link to one the link alone."""
    if place.is_symlink():
        place.unlink()
    shutil.rmtree(place, ignore_errors=True)


def restore_interrupted(target: Path) -> None:
    """Put the previous folder back when a save was killed between its two renames."""
    target = Path(os.path.abspath(target))
    previous = _previous(target)
    if previous.exists() and not target.exists():
        previous.rename(target)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
