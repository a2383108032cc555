"""The user's own files that a run reads: noted before its pre-flight, and the same when it ends and when it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from recipes.running.seals import STAMP, digest, times

NAME = "inputs.json"
READ = (".safetensors", ".bin", ".json", ".txt", ".model", ".ckpt", ".pt", ".csv", ".jsonl", ".parquet", ".npz")

Noted = Mapping[str, list[int | str]]  # file -> size, times and digest


def note(paths: Iterable[Path]) -> Noted:
    """Size, times and digest of every file, and of what readers take up of every folder; what is missing is left out.

    Args:
        paths: Files and folders.
    """
    return {str(file): [*times(file), digest(file)] for file in _read(paths)}


def _read(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in inside:
            if file.is_file() and file.name != STAMP and (file == path or file.suffix in READ):
                yield file


def added(noted: Noted, paths: Iterable[Path]) -> str:
    """The first file among those that are read now which was not noted, in words; empty when there is none.

    Args:
        noted: What was there before.
        paths: Files and folders, as they are named now: a pattern may match more than it did.
    """
    return next((f"{file} was added" for file in _read(paths) if str(file) not in noted), "")


def changed(noted: Noted) -> str:
    """The first file that is not as it was noted, in words; empty when there is none."""
    for name, (*seen, known) in noted.items():
        file = Path(name)
        if not file.is_file():
            return f"{name} is gone"
        if times(file) != seen and digest(file) != known:
            return f"{name} has changed"
    return ""


def read_noted(path: Path) -> Noted | None:
    """What a run folder has noted; None where that is missing or cannot be read."""
    try:
        found = json.loads((path / NAME).read_text(encoding="utf-8"))
        return {str(name): [*map(int, entry[:3]), str(entry[3])] for name, entry in found.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
