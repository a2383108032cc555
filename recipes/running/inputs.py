"""The user's own files that a run reads: noted before its pre-flight, and the same when it ends and when it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from recipes.running.seals import STAMP, digest, times

NAME = "inputs.json"
READ = (".safetensors", ".bin", ".json", ".txt", ".model", ".ckpt", ".pt", ".csv", ".jsonl", ".parquet", ".npz")
TREE = "**"  # last part of a path that stands for all files below a folder, which may be millions

# file -> size, times and digest; tree -> how many files, their bytes, 0, and the digest of their names and sizes
Noted = Mapping[str, list[int | str]]


def note(paths: Iterable[Path]) -> Noted:
    """Size, times and digest of every file, and of what readers take up of every folder; what is missing is left out.

    Args:
        paths: Files, folders, and ``folder/**`` for names and sizes of all files below a folder.
    """
    paths = list(paths)
    trees = {str(path): _tree(path.parent) for path in paths if path.name == TREE and path.parent.is_dir()}
    files: dict[str, list[int | str]] = {str(file): [*times(file), digest(file)] for file in _read(paths)}
    return files | trees


def _tree(folder: Path) -> list[int | str]:
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    listed = json.dumps(sorted(sizes.items()))
    return [len(sizes), sum(sizes.values()), 0, hashlib.sha256(listed.encode()).hexdigest()]


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
        if file.name == TREE:
            if not file.parent.is_dir() or _tree(file.parent)[-1] != known:
                return f"{file.parent} has changed"
            continue
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
