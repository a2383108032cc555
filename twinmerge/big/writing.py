"""Sharded safetensors files whose headers are written first, so that tensors can be filled in part by part.

A folder is made beside its place and renamed into it when it is whole. What is done stands in a journal: a merge that
was killed goes on behind the last tensor in it and ends in the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from twinmerge.big.reading import DTYPES, Place
from twinmerge.errors import CheckpointError
from twinmerge.whole_folder import restore_interrupted, settle

Entry = tuple[str, tuple[int, ...]]  # number format as safetensors writes it, and shape
_OPEN = 64  # files that are held open; small shards are many
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)
JOURNAL = ".journal"  # no part of the folder: manifests pass over names with a dot


class Shard(NamedTuple):
    """One file to write: its name, and its tensors in order."""

    name: str
    tensors: Mapping[str, Entry]

    @property
    def bytes(self) -> int:
        """Size of its tensors."""
        return sum(map(size_of, self.tensors.values()))


def size_of(entry: Entry) -> int:
    """Bytes of a tensor."""
    return DTYPES[entry[0]].itemsize * prod(entry[1])


def shards_of(tensors: Mapping[str, Entry], most: int, stem: str = "model") -> list[Shard]:
    """The files of a checkpoint, as Hugging Face names them: one, or as many as `most` bytes a file need.

    Raises:
        ValueError: For a limit below 1.
    """
    if most < 1:
        raise ValueError(f"a shard of {most} bytes holds nothing; give at least 1.")
    groups: list[dict[str, Entry]] = [{}]
    size = 0
    for name, entry in tensors.items():
        if groups[-1] and size + size_of(entry) > most:
            groups.append({})
            size = 0
        groups[-1][name] = entry
        size += size_of(entry)
    if len(groups) == 1:
        return [Shard(f"{stem}.safetensors", groups[0])]
    return [Shard(f"{stem}-{i + 1:05}-of-{len(groups):05}.safetensors", group) for i, group in enumerate(groups)]


def header_of(shard: Shard) -> bytes:
    """The start of a file: length and header, padded so that the tensors begin at a multiple of eight."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, entry in shard.tensors.items():
        table[name] = {"dtype": entry[0], "shape": list(entry[1]), "data_offsets": [at, at + size_of(entry)]}
        at += size_of(entry)
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class Writer:
    """The files of one checkpoint, filled in any order.

    Args:
        folder: Where they are; it exists.
        shards: The files.
        stem: What the index is called after, such as `model`.
    """

    def __init__(self, folder: Path, shards: Iterable[Shard], stem: str = "model") -> None:
        self.folder, self.shards, self.stem = folder, list(shards), stem
        self.places: dict[str, Place] = {}
        self._open: dict[Path, int] = {}
        for shard in self.shards:
            start, file = header_of(shard), folder / shard.name
            # Also over a file that is there: a process that was killed may have made it and written no header.
            self._put(file, 0, memoryview(start))
            os.truncate(file, len(start) + shard.bytes)
            at = len(start)
            for name, (dtype, shape) in shard.tensors.items():
                self.places[name] = Place(file, at, dtype, shape)
                at += size_of((dtype, shape))

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write values of a tensor from a place in it on; they are rounded to the type that the header names."""
        place = self.places[name]
        kind = DTYPES[place.dtype]
        raw = values.detach().to("cpu", kind).contiguous().view(-1)
        view = raw.view(torch.uint8).numpy().data if raw.numel() else memoryview(b"")
        self._put(place.file, place.offset + start * kind.itemsize, view)

    def _put(self, file: Path, offset: int, view: memoryview) -> None:
        done = 0
        if file not in self._open:
            if len(self._open) == _OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[file] = os.open(file, os.O_WRONLY | os.O_CREAT, 0o666)
        while done < len(view):
            done += os.pwrite(self._open[file], view[done:], offset + done)

    def close(self) -> None:
        """Write the index of several files, and close them."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        if len(self.shards) > 1:
            index = {
                "metadata": {"total_size": sum(shard.bytes for shard in self.shards)},
                "weight_map": {name: shard.name for shard in self.shards for name in shard.tensors},
            }
            file = self.folder / f"{self.stem}.safetensors.index.json"
            file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class Journal:
    """What is done of a merge, in a file of the folder that is being made."""

    def __init__(self, file: Path) -> None:
        self.file = file
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # a line that was cut off has no end, and the next one would go on in it
            os.truncate(file, len(whole.encode()))
        self.done = set(whole.split("\n")[1:-1])

    def note(self, what: str) -> None:
        """Say that a part is written."""
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(f"{what}\n")
        self.done.add(what)


@contextmanager
def resumable_folder(
    target: Path, task: object, *, read: Iterable[Path] = (), overwrite: bool = False
) -> Iterator[tuple[Path, Journal]]:
    """Fill a folder beside its place and rename it when it is whole; go on in one that the same task left behind.

    Args:
        target: The folder to make.
        task: What is made, as plain values; a folder left behind by another task is begun anew.
        read: Folders that it is made from, which are not to be replaced.
        overwrite: Replace the target when it exists.

    Yields:
        The folder to fill, and the journal of what is done in it.

    Raises:
        FileExistsError: When the target exists and is not to be replaced.
        CheckpointError: When another process is at it, when it holds what is read, and when it cannot be written.
    """
    target = Path(os.path.abspath(target))
    if holds := [place for place in read if place.resolve().is_relative_to(target.resolve())]:
        raise CheckpointError(f"{target} holds {holds[0]}, which is read, and would replace it; give another folder.")
    try:
        with _filled(target, task, overwrite) as (working, journal):
            yield working, journal
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        place = f" ({error.filename})" if error.filename else ""
        raise CheckpointError(
            f"{target} cannot be written: {os.strerror(error.errno)}{place}; give a folder where there is room and "
            "that may be written to. What is done is kept, so that the same merge goes on there."
        ) from error


@contextmanager
def _filled(target: Path, task: object, overwrite: bool) -> Iterator[tuple[Path, Journal]]:
    restore_interrupted(target)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already; choose another folder or overwrite it explicitly.")
    target.parent.mkdir(parents=True, exist_ok=True)
    working, lock = target.with_name(f".{target.name}.merging"), target.with_name(f".{target.name}.lock")
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"another process is writing {target}; wait for it or give another folder."
            ) from error
        first = _fingerprint(task)
        if _first_line(working / JOURNAL) != first:
            shutil.rmtree(working, ignore_errors=True)
            working.mkdir()
            (working / JOURNAL).write_text(f"{first}\n", encoding="utf-8")
        try:
            yield working, Journal(working / JOURNAL)
        except ValueError:  # of what is merged: it would end the same way again
            shutil.rmtree(working, ignore_errors=True)
            lock.unlink()
            raise
        (working / JOURNAL).unlink()
        settle(working, target)
        lock.unlink()


def _fingerprint(task: object) -> str:
    """The task and the start of the machine: after a crash, what the journal says may not have reached the disk."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    # Not sorted: of parts of tensors' names in an option the first that fits counts.
    text = json.dumps([task, boot.read_text().strip() if boot.exists() else ""], default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(file: Path) -> str:
    return file.read_text(encoding="utf-8").split("\n")[0] if file.is_file() else ""
