"""Rows of tensors in safetensors files, read into memory of their own: no page of a file stays with the process.

A mapped file counts as the process's memory for every page that was touched; a read into a small buffer does not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from twinmerge.errors import CheckpointError
from twinmerge.headers import Checkpoint, read_header

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = frozenset(("F64", "F32", "F16", "BF16"))


@dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        file: The safetensors file.
        offset: Of its first byte in the file.
        dtype: As safetensors writes it.
        shape: Its shape.
    """

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def places_of(checkpoint: Checkpoint) -> dict[str, Place]:
    """Where every tensor of a checkpoint lies, from the headers of its files.

    Raises:
        CheckpointError: For pickled files, quantised models, and number formats that cannot be merged.
    """
    if quantised := checkpoint.config.get("quantization_config"):
        kind = quantised.get("quant_method", "an unknown way") if isinstance(quantised, Mapping) else quantised
        raise CheckpointError(
            f"{checkpoint.folder} is quantised ({kind}), and packed weights cannot be merged; give the model as it was "
            "before, in float32, float16 or bfloat16."
        )
    found: dict[str, Place] = {}
    for file in sorted(set(checkpoint.files.values())):
        if file.suffix != ".safetensors":
            raise CheckpointError(
                f"{file} is a pickle, which cannot be read in parts; save the model again with save_pretrained, which "
                "writes safetensors."
            )
        found.update(places_in(file))
    return found


def places_in(file: Path) -> dict[str, Place]:
    """Where every tensor of a safetensors file lies.

    Raises:
        CheckpointError: For a damaged file, and for number formats that cannot be merged.
    """
    found: dict[str, Place] = {}
    entries = read_header(file)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    for name, (dtype, shape) in entries.items():
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{file}: tensor '{name}' is stored as {dtype}, which is not merged; give a checkpoint in "
                f"{', '.join(sorted(FLOATS))}."
            )
        found[name] = Place(file, 8 + length + int(header[name]["data_offsets"][0]), dtype, shape)
    return found


class Files:
    """Files that are read in parts; each is opened once.

    Args:
        release: Tell the system after each read that the pages are not needed again, which leaves the page cache to
            others where a checkpoint would fill it.
    """

    def __init__(self, *, release: bool = False) -> None:
        self.release = release
        self._open: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def read(self, place: Place, start: int, count: int) -> Tensor:
        """Some values of a tensor, flat, in the type that they are stored in.

        Args:
            place: Of the tensor.
            start: First value.
            count: How many.

        Raises:
            CheckpointError: When the file has become shorter since its header was read.
        """
        kind = DTYPES[place.dtype]
        buffer = torch.empty(count * kind.itemsize, dtype=torch.uint8)
        view, offset = memoryview(buffer.numpy().data), place.offset + start * kind.itemsize
        self._fill(place.file, view, offset)
        if self.release:
            os.posix_fadvise(self._descriptor(place.file), offset, len(view), os.POSIX_FADV_DONTNEED)
        return buffer.view(kind)

    def read_columns(self, place: Place, start: int, stop: int) -> Tensor:
        """Some columns of a tensor as a matrix: rows, and all behind the first dimension side by side.

        Args:
            place: Of the tensor.
            start: First column.
            stop: The column behind the last.

        Returns:
            Shape (rows, stop - start), in the type that they are stored in.
        """
        kind, rows = DTYPES[place.dtype], place.shape[0]
        columns = prod(place.shape[1:])
        width = (stop - start) * kind.itemsize
        buffer = torch.empty(rows * width, dtype=torch.uint8)
        view = memoryview(buffer.numpy().data)
        for row in range(rows):
            self._fill(
                place.file,
                view[row * width : (row + 1) * width],
                place.offset + (row * columns + start) * kind.itemsize,
            )
        if self.release and stop == columns:  # the pages hold the other columns too
            os.posix_fadvise(self._descriptor(place.file), place.offset, place.bytes, os.POSIX_FADV_DONTNEED)
        return buffer.view(kind).view(rows, stop - start)

    def _fill(self, file: Path, view: memoryview, offset: int) -> None:
        descriptor, got = self._descriptor(file), 0
        while got < len(view):
            step = os.preadv(descriptor, [view[got:]], offset + got)
            if step == 0:
                raise CheckpointError(f"{file} became shorter while it was read; copy it again and start anew.")
            got += step

    def expect(self, place: Place) -> None:
        """Have the system read a tensor ahead, while another one is worked on."""
        os.posix_fadvise(self._descriptor(place.file), place.offset, place.bytes, os.POSIX_FADV_WILLNEED)

    def _descriptor(self, file: Path) -> int:
        if file not in self._open:
            try:
                self._open[file] = os.open(file, os.O_RDONLY)
            except OSError as error:
                raise CheckpointError(f"{file} cannot be read ({error.strerror}); check the path.") from error
        return self._open[file]
