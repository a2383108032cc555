"""Read the user's own rows: Hub data sets, csv, jsonl and parquet files, and folders of them."""

from __future__ import annotations

import codecs
import glob
import json
import math
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from recipes.errors import RecipeError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import datasets
    import pandas as pd

    from recipes.data.splits import Text
    from recipes.data.task_source import TaskSource

__all__ = [
    "Rows",
    "absent",
    "class_of",
    "first_rows",
    "hub_split",
    "named",
    "own_files",
    "read_columns",
    "read_splits",
    "split_files",
]

MISSING = frozenset({"", "<NA>", "nan", "NaN", "NaT", "#N/A"})  # how the usual tools write a value that is not there
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
FIRST = 100  # rows of a file that a pre-flight reads


@dataclass
class Rows:
    """Rows of one split.

    Attributes:
        rows: Text (or pair) and label: a string for classification, a float for regression.
        missing: How many were left out for want of a text or label.
    """

    rows: list[tuple[Text, Any]] = field(default_factory=list)
    missing: int = 0


def _wanted(source: TaskSource) -> dict[str, str]:
    named = {"train": source.train, "validation": source.validation, "test": source.test}
    return {split: name for split, name in named.items() if name}


def split_files(source: TaskSource) -> dict[str, list[Path]]:
    """The files of every split that a file source names.

    Raises:
        RecipeError: When the path, or the file of a named split, does not exist.
    """
    from gapbridge.pictures import image_files

    where, path = f"task {source.name!r}", Path(source.path).expanduser()
    if source.kind == "images" and source.source in ("folder", "idx"):
        if not path.is_dir():
            raise RecipeError(f"{where}: folder {path} does not exist; give a folder of images")
        return {"train": image_files(path) or [f for f in sorted(path.iterdir()) if f.is_file()]}
    if source.source == "folder":
        if not path.is_dir():
            raise RecipeError(
                f"{where}: folder {path} does not exist; give a folder with train.csv (or .jsonl, .parquet)"
            )
        return {split: [_in_folder(where, path, name)] for split, name in _wanted(source).items()}
    files = [Path(found) for found in sorted(glob.glob(str(path))) if Path(found).is_file()]
    if not files:
        raise RecipeError(f"{where}: no file matches {path}; give an existing path or glob")
    return {"train": files}


def own_files(source: TaskSource) -> list[Path]:
    """The user's own files of a task; none where it is shipped or on the Hub, or they are missing."""
    if source.source in ("shipped", "hub"):
        return []
    try:
        return [file for files in split_files(source).values() for file in files]
    except RecipeError:  # the pre-flight says so
        return []


def _in_folder(where: str, folder: Path, name: str) -> Path:
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
    if not found:
        present = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise RecipeError(f"{where}: {folder} has no {name}.csv, .jsonl or .parquet; it holds {present}")
    return found[0]


def read_splits(source: TaskSource) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Rows of every named split, checked, and the class names in order where the source knows them.

    Args:
        source: A valid source other than ``shipped``.

    Returns:
        The rows of each split that is present; and the names of a Hub ``ClassLabel``, else an empty tuple.

    Raises:
        RunError: When something cannot be read, a column is missing, or a text or label is empty.
    """
    if source.source == "hub":
        return _read_hub(source)
    rows: dict[str, Rows] = {}
    for split, files in split_files(source).items():
        rows[split] = Rows()
        for file in files:
            _take(source, str(file), _read_file(source, file), rows[split])
    return rows, ()


def first_rows(source: TaskSource) -> None:
    """Open every file of a source and check its first rows.

    Raises:
        RunError: As `read_splits`.
    """
    for files in split_files(source).values():
        for file in files:
            _take(source, str(file), _read_file(source, file, FIRST), Rows())


def _take(source: TaskSource, where: str, frame: pd.DataFrame, into: Rows) -> None:
    _need_columns(source, where, list(map(str, frame.columns)), [*source.text, source.label])
    columns = {name: frame[name].tolist() for name in [*source.text, source.label]}
    _rows(source, where, columns, into)


def _read_file(source: TaskSource, file: Path, limit: int | None = None) -> pd.DataFrame:
    import pandas as pd

    form = SUFFIXES.get(file.suffix, "csv") if source.source == "folder" else source.source
    encoding = "utf-8-sig" if codecs.lookup(source.encoding).name == "utf-8" else source.encoding
    try:
        if form == "csv":
            between = source.delimiter or ("\t" if file.suffix == ".tsv" else ",")
            options = {"dtype": str, "keep_default_na": False, "nrows": limit, "encoding": encoding}
            return pd.read_csv(file, sep=between, **options)
        if form == "jsonl":
            with file.open(encoding=encoding) as stream:
                return pd.DataFrame(list(islice(_objects(stream), limit)), dtype=object)
        if limit is None:
            return pd.read_parquet(file)
        from pyarrow.parquet import ParquetFile

        return next((part.to_pandas() for part in ParquetFile(file).iter_batches(limit)), pd.DataFrame())
    except pd.errors.EmptyDataError:
        raise RunError(f"task {source.name!r}: {file} is empty; give a header and rows") from None
    except (ValueError, OSError, RecursionError) as fault:
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        hint = "; set 'encoding:' to that of the file" if isinstance(fault, UnicodeError) else ""
        raise RunError(f"task {source.name!r}: {file} cannot be read as {form} ({reason}){hint}") from fault


def _objects(stream: TextIO) -> Iterable[dict[str, object]]:
    """The objects of a file with one a line, or of one JSON array.

    Raises:
        ValueError: For a line or an element that is no object.
    """
    start = stream.read(1)
    while start.isspace():
        start = stream.read(1)
    whole = start == "["
    found = json.loads(start + stream.read()) if whole else _lines(start, stream)
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{'element' if whole else 'line'} {number} is no object with columns")
        yield row


def _lines(start: str, stream: TextIO) -> Iterable[object]:
    first = start + stream.readline()
    for number, line in enumerate(chain([first], stream), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as fault:
                raise ValueError(f"line {number}: {fault}") from fault


def _read_hub(source: TaskSource) -> tuple[dict[str, Rows], tuple[str, ...]]:
    import datasets

    rows: dict[str, Rows] = {}
    names: tuple[str, ...] = ()
    for split, name in _wanted(source).items():
        where, data = hub_split(source, name)
        _need_columns(source, where, data.column_names, [*source.text, source.label])
        columns = {column: list(data[column]) for column in [*source.text, source.label]}
        feature = data.features[source.label]
        if isinstance(feature, datasets.ClassLabel) and source.kind == "classification":
            names = tuple(feature.names)
            columns[source.label] = named(columns[source.label], names)
        _rows(source, where, columns, rows.setdefault(split, Rows()))
    return rows, names


def named(labels: Iterable[int | None], names: tuple[str, ...]) -> list[str | None]:
    """The names of a Hub data set's classes; None for those without one, as hidden labels are."""
    return [names[label] if label is not None and label >= 0 else None for label in labels]


def hub_split(source: TaskSource, name: str) -> tuple[str, datasets.Dataset]:
    """What a split of a Hub data set is called in messages, and the split."""
    import datasets

    where = f"{source.path}{f'/{source.subset}' if source.subset else ''}[{name}]"
    try:
        return where, datasets.load_dataset(source.path, source.subset or None, split=name)
    except Exception as fault:  # the library raises what its loaders and transports raise
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise RunError(
            f"task {source.name!r}: Hub data set {where} cannot be loaded ({reason}); check its id, subset, "
            "split and the network"
        ) from fault


def read_columns(source: TaskSource, wanted: list[str]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Rows of every named split as they stand in its files: a place for messages, and the values by column.

    Args:
        source: A valid source other than ``shipped``.
        wanted: Columns to read.

    Raises:
        RunError: When something cannot be read, or a column is missing.
    """
    parts: dict[str, list[tuple[str, Any]]] = {}
    if source.source == "hub":
        parts = {split: [hub_split(source, name)] for split, name in _wanted(source).items()}
    else:
        for split, files in split_files(source).items():
            parts[split] = [(str(file), _read_file(source, file)) for file in files]
    read: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for split, tables in parts.items():
        read[split] = []
        for where, table in tables:
            present = list(map(str, table.column_names if source.source == "hub" else table.columns))
            _need_columns(source, where, present, wanted)
            columns = [list(table[name]) for name in wanted]
            for number, values in enumerate(zip(*columns, strict=True), start=1):
                read[split].append((f"{where}, row {number}", dict(zip(wanted, values, strict=True))))
    return read


def _need_columns(source: TaskSource, where: str, present: list[str], wanted: list[str]) -> None:
    for column in wanted:
        if column not in present:
            other = next((mark for mark in ";\t|," if len(present) == 1 and mark in present[0]), "")
            hint = f"; its header is separated by {other!r}, set 'delimiter:' to that" if other else ""
            found = ", ".join(present) or "no rows"
            raise RunError(f"task {source.name!r}: {where} has no column {column!r}; it has {found}{hint}")


def _rows(source: TaskSource, where: str, columns: dict[str, list[Any]], into: Rows) -> None:
    texts = zip(*(columns[name] for name in source.text), strict=True)
    for number, (values, label) in enumerate(zip(texts, columns[source.label], strict=True), start=1):
        at = f"task {source.name!r}: {where}, row {number}"
        # One side of a pair may be empty: public sets have such.
        blank = all(not str(value).strip() for value in values)
        gone = blank or any(not isinstance(value, str) and absent(value) for value in values)
        if source.drop_missing and (gone or absent(label)):
            into.missing += 1
            continue
        for column, value in zip(source.text, values, strict=True):
            if blank or not isinstance(value, str):
                raise RunError(f"{at}: text column {column!r} is {value!r}; give a text, or {_WAY_OUT}")
        stripped = [value.strip() for value in values]
        text = stripped[0] if len(stripped) == 1 else (stripped[0], stripped[1])
        into.rows.append((text, _label(at, source, label)))


_WAY_OUT = "drop such rows with 'drop_missing: true'"


def absent(value: object) -> bool:
    """Whether a value is one of those that stand for none."""
    return value is None or str(value).strip() in MISSING


def class_of(at: str, source: TaskSource, value: object) -> str:
    """The name of a class.

    Args:
        at: The row, for messages.
        source: Of classification, of texts or images.
        value: The label, not `absent`.

    Raises:
        RunError: For several labels at once.
    """
    if not isinstance(value, str | bytes) and hasattr(value, "__len__"):
        raise RunError(
            f"{at}: label column {source.label!r} is {value!r}, which are several labels, and a task has one for each "
            "row; name a column of single classes"
        )
    return str(value).strip()


def _label(at: str, source: TaskSource, value: Any) -> str | float:
    if source.kind == "classification" and not absent(value):
        return class_of(at, source, value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if absent(value) or not math.isfinite(number):
        wanted = "a finite number" if source.kind == "regression" else "a class"
        raise RunError(f"{at}: label column {source.label!r} is {value!r}; give {wanted}, or {_WAY_OUT}")
    return number
