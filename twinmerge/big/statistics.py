"""What methods with data take of every expert, in files: Fisher information, or Gram matrices of layers' inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

from torch import Tensor

from twinmerge.big.reading import Files, Place, places_in
from twinmerge.errors import CheckpointError
from twinmerge.methods import WITH_DATA


class FileRows:
    """A tensor in a file, of which rows are read."""

    def __init__(self, place: Place, files: Files) -> None:
        self.place, self.files = place, files

    @property
    def shape(self) -> Sequence[int]:
        """Its shape."""
        return self.place.shape

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Read rows."""
        start, stop, _ = rows.indices(self.place.shape[0] if self.place.shape else 1)
        width = prod(self.place.shape[1:])
        values = self.files.read(self.place, start * width, max(0, stop - start) * width)
        return values.view(-1, *self.place.shape[1:]) if self.place.shape else values.view(())


class FileState(Mapping[str, FileRows]):
    """The tensors of a safetensors file by name."""

    def __init__(self, file: Path, files: Files) -> None:
        self.places, self.files = places_in(file), files

    def __getitem__(self, name: str) -> FileRows:
        """One tensor."""
        return FileRows(self.places[name], self.files)

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self.places)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.places)


def check_statistics(method: str, statistics: Mapping[str, str | Path] | None, tasks: Sequence[str]) -> None:
    """Refuse statistics of a method that takes none, and a method that lacks those of an expert.

    Raises:
        ValueError: In one sentence.
        CheckpointError: When a file is not there.
    """
    if method not in WITH_DATA:
        if statistics:
            raise ValueError(f"statistics are given and {method} takes none; {' and '.join(WITH_DATA)} do.")
        return
    if odd := sorted(set(tasks) ^ set(statistics or {})):
        raise ValueError(
            f"{method} needs statistics of every expert and of no other, but '{odd[0]}' has none or is no expert; give "
            "a safetensors file each, see twinmerge.gathering."
        )
    for task, file in (statistics or {}).items():
        if not Path(file).expanduser().is_file():
            raise CheckpointError(f"the statistics of '{task}', {file}, are no file; give a safetensors file.")


def read_statistics(
    method: str, statistics: Mapping[str, str | Path] | None, tasks: Sequence[str], files: Files
) -> dict[str, list[FileState]]:
    """The option of a method that holds statistics; none for a method without."""
    if method not in WITH_DATA:
        return {}
    given = statistics or {}
    return {WITH_DATA[method].option: [FileState(Path(given[task]).expanduser(), files) for task in tasks]}
