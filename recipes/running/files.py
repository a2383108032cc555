"""Atomic file writes: a reader, or a killed run, sees the old file or the whole new one."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

PART = ".part"  # ending of a file that is being written
METRICS, METRICS_SEALS = "metrics.csv", ".metrics.csv.json"  # rows of a run, and digests of those of ended phases


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Fill a file under a temporary name in its folder, flush it to disk, then rename it; its mode is the umask's.

    Raises:
        OSError: Named after the file that was to be, whatever of its folder is at fault.
    """
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a folder."""
    for left in folder.glob(f".*{PART}"):
        if not _alive(left.name.removesuffix(PART).rpartition(".")[2]):
            with suppress(OSError):
                left.unlink()


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name in its folder, flush it to disk, then rename it."""
    with whole_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; numpy and torch scalars become numbers, NaN and infinities null."""
    write_text(path, json.dumps(plain_json(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain_json(value: object) -> Any:
    """Return a value with only what JSON knows.

    >>> plain_json({"a": float("nan"), "b": (1, Path("x"))})
    {'a': None, 'b': [1, 'x']}
    """
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_json(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalar or not
        return plain_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
