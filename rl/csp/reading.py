"""Columns of a file of steps, by name, from the formats that people have."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

LARGEST, MOST = 2**32, 200  # bytes that are unpacked whatever the file's size, and bytes of each of its own beyond that
SUFFIXES = (".npz", ".parquet", ".csv")
Column = NDArray[np.generic]
_NUMBERED = re.compile(r"(observation|action|action_mask)[_.\[](\d+)\]?")


def read_columns(path: Path) -> dict[str, Column]:
    """Columns of a file by name.

    Tables may spread a vector over columns ``observation_0``, ``observation_1`` and so on, as CSV must; they become
    one column ``observation`` (rows, width). So do ``action`` and ``action_mask``.

    Args:
        path: An ``.npz``, ``.parquet`` or ``.csv`` file.

    Raises:
        ValueError: If the file has another format, is empty, damaged or cut off, or a vector lacks an entry.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"the data file {path} is empty")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is none of {', '.join(SUFFIXES)} files; the name must end in one of them")
    import pandas as pd

    kind = "Parquet" if path.suffix == ".parquet" else "CSV"
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except Exception as error:  # what a damaged file provokes in pandas and in the decoders
        raise ValueError(f"{path} is no {kind} file, or was cut off ({_said(error)}); write it again") from error
    return _vectors(path, {str(name): _column(path, str(name), column) for name, column in frame.items()})


def _read_npz(path: Path) -> dict[str, Column]:
    try:
        with path.open("rb") as file:  # numpy leaves a file that it cannot read open
            archive = np.load(file, allow_pickle=False)
            _refuse_bomb(archive.zip, path.stat().st_size)
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # what a damaged archive provokes in zip, in numpy's headers and in the decoders
        raise ValueError(
            f"{path} is no .npz file of plain arrays, or was cut off ({_said(error)}); write it again with numpy.savez"
        ) from error


def _vectors(path: Path, columns: Mapping[str, Column]) -> dict[str, Column]:
    """Columns in which those that are numbered are one."""
    found: dict[str, Column] = {}
    numbered: dict[str, dict[int, Column]] = {}
    for name, column in columns.items():
        if matched := _NUMBERED.fullmatch(name):
            parts = numbered.setdefault(matched[1], {})
            if int(matched[2]) in parts:
                raise ValueError(f"{path} has two columns for entry {int(matched[2])} of {matched[1]}; leave one out")
            parts[int(matched[2])] = column
        else:
            found[name] = column
    for name, parts in numbered.items():
        if name in found:
            raise ValueError(f"{path} has {name} and numbered columns of it; leave one of the two out")
        if missing := sorted(set(range(max(parts) + 1)) - parts.keys()):
            raise ValueError(f"{path} has {name}_{max(parts)} but no {name}_{missing[0]}; columns are numbered from 0")
        found[name] = np.stack([parts[number] for number in range(len(parts))], axis=1)
    return found


def _refuse_bomb(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive that unpacks to far more than a file of its size holds."""
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(LARGEST, MOST * size):
        raise ValueError(f"{size} bytes unpack to {unpacked}")


def _said(error: Exception) -> str:
    """The first sentence of what a library said, for use inside one of ours."""
    return (str(error) or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")


def _column(path: Path, name: str, series: pd.Series[object]) -> Column:
    """A column of a table as an array; lists in it must be of one length."""
    column: Column = series.to_numpy()
    if column.dtype != object or not len(column):
        return column
    if path.suffix == ".csv" and name == "observation":
        raise ValueError(
            f"{path} has observations of text; in CSV a vector takes a column an entry: observation_0, ..."
        )
    lengths = [np.shape(row) for row in column]
    if odd := next((row for row, length in enumerate(lengths) if length != lengths[0]), None):
        raise ValueError(
            f"{path}: {name} has a list of shape {lengths[odd]} in row {odd} but of {lengths[0]} in row 0; every row "
            "needs one of equal length"
        )
    return np.stack(list(column))
