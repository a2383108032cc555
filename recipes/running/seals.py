"""Digests of what is written now and used later: kept beside the files, and compared before they are used."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recipes.running.files import remove_parts, write_json, write_text

STAMP = "gapbridge-stamp.json"
SMALL = 4 * 2**20  # bytes up to which a file is hashed on every use: it costs milliseconds
SETTLED = 2 * 10**9  # nanoseconds after which a change to a file shows in its times, on every file system

Times = list[int]  # size in bytes, then the times of the last change of content and of anything, in nanoseconds


def times(file: Path) -> Times:
    """What tells cheaply that a file is as it was: setting back the one time moves the other."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def digest(file: Path) -> str:
    """The sha256 of a file, computed once in a process unless the file changes."""
    return _digest_once(file.absolute(), *times(file)) if _settled(times(file)) else _sha256(file)


@functools.cache
def _digest_once(file: Path, *_: int) -> str:
    return _sha256(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _settled(seen: Times) -> bool:
    return time.time_ns() - max(seen[1:]) > SETTLED


def stamp(folder: Path, **about: Any) -> None:
    """Write size and digest of every file in a folder, and below it, into the folder's stamp.

    Args:
        folder: Whole, and nobody writes to it.
        about: Further entries of the stamp.
    """
    remove_parts(folder)  # of a process that was killed while it stamped this folder
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != STAMP)
    files = {path.relative_to(folder).as_posix(): [path.stat().st_size, _sha256(path)] for path in found}
    write_json(folder / STAMP, {**about, "files": files})


def damage(
    folder: Path,
    *,
    full: bool = False,
    remember: bool = False,
    about: Mapping[str, Any] | None = None,
    names: Iterable[str] | None = None,
) -> str:
    """What in a folder is not as it was stamped, in words that go on after the folder's name; empty when it is whole.

    Large files are hashed where their size and times are not those at which the stamp last found them good.

    Args:
        folder: With a stamp.
        full: Hash every file.
        remember: Note size and times of the files that were hashed in the stamp.
        about: Entries that the stamp must have.
        names: The files that it must list; any when None.
    """
    try:
        content = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        files, seen = dict(content["files"]), dict(content.get("seen") or {})
        wrong = {key for key, value in (about or {}).items() if content.get(key) != value}
        if wrong or not files or (names is not None and set(files) != set(names)):
            return f"has a {STAMP} of something else"
        before = dict(seen)
        for name, (size, known) in files.items():
            path = folder / name
            if not path.is_file():
                return f"lacks {name}"
            now = times(path)
            if not full and size > SMALL and now == seen.get(name):
                continue
            if now[0] != size or (_sha256(path) if full else digest(path)) != known:
                return f"has a file {name} of other content than it was made with"
            if _settled(now):
                seen[name] = now
    except FileNotFoundError:
        return f"has no {STAMP}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"has a {STAMP} that cannot be read"
    if remember and seen != before:
        with contextlib.suppress(OSError):  # a cache that others keep is read, and hashed every time
            write_json(folder / STAMP, {**content, "seen": seen})
    return ""


def added(folder: Path, kinds: Iterable[str]) -> str:
    """A file of a stamped folder that its stamp does not list, which a reader might take up; empty where none is.

    Args:
        folder: With a stamp that `damage` found whole.
        kinds: Endings of the files that readers take up.
    """
    listed = json.loads((folder / STAMP).read_text(encoding="utf-8"))["files"]
    found = sorted(path.name for path in folder.iterdir() if path.suffix in set(kinds) and path.name != STAMP)
    return next((f"has a file {name} that was added to it" for name in found if name not in listed), "")


def seal(file: Path) -> None:
    """Write the digest of one file beside it; what the file is good for is written after that."""
    write_text(_seal(file), f"{_sha256(file)}\n")


def sealed(file: Path) -> bool:
    """Whether a file is what it was when it was sealed."""
    try:
        return _seal(file).read_text(encoding="utf-8").strip() == digest(file)
    except (OSError, ValueError):
        return False


def _seal(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")
