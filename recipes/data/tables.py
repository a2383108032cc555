"""Read the user's own rows: Hub data sets, csv, jsonl and parquet files, and folders of them."""

from __future__ import annotations

import glob
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.errors import RecipeError, RunError

if TYPE_CHECKING:
    from recipes.data.splits import Text
    from recipes.data.task_source import TaskSource

__all__ = ["read_columns", "read_splits", "split_files"]

SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


def _wanted(source: TaskSource) -> dict[str, str]:
    named = {"train": source.train, "validation": source.validation, "test": source.test}
    return {split: name for split, name in named.items() if name}


def split_files(source: TaskSource) -> dict[str, list[Path]]:
    """The files of every split that a file source names.

    Raises:
        RecipeError: When the path, or the file of a named split, does not exist.
    """
    where, path = f"task {source.name!r}", Path(source.path).expanduser()
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


def _in_folder(where: str, folder: Path, name: str) -> Path:
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
    if not found:
        present = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise RecipeError(f"{where}: {folder} has no {name}.csv, .jsonl or .parquet; it holds {present}")
    return found[0]


def read_splits(source: TaskSource) -> tuple[dict[str, list[tuple[Text, Any]]], tuple[str, ...]]:
    """Rows of every named split, checked, and the class names in order where the source knows them.

    Args:
        source: A valid source other than ``shipped``.

    Returns:
        For each split present rows of text (or pair) and label: a string for classification, a float for regression;
        and the names of a Hub ``ClassLabel``, else an empty tuple.

    Raises:
        RunError: When something cannot be read, a column is missing, or a text or label is empty.
    """
    if source.source == "hub":
        return _read_hub(source)
    rows: dict[str, list[tuple[Text, Any]]] = {}
    for split, files in split_files(source).items():
        rows[split] = []
        for file in files:
            frame = _read_file(source, file)
            _need_columns(source, str(file), list(map(str, frame.columns)), [*source.text, source.label])
            columns = {name: frame[name].tolist() for name in [*source.text, source.label]}
            rows[split] += _rows(source, str(file), columns)
    return rows, ()


def _read_file(source: TaskSource, file: Path) -> Any:
    import pandas as pd

    form = SUFFIXES.get(file.suffix, "csv") if source.source == "folder" else source.source
    try:
        if form == "csv":
            return pd.read_csv(file, dtype=str, keep_default_na=False)
        if form == "jsonl":
            with file.open(encoding="utf-8") as lines:
                return pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)
        return pd.read_parquet(file)
    except pd.errors.EmptyDataError:
        raise RunError(f"task {source.name!r}: {file} is empty; give a header and rows") from None
    except (ValueError, OSError) as fault:
        reason = str(fault).splitlines()[0]
        raise RunError(f"task {source.name!r}: {file} cannot be read as {form} ({reason})") from fault


def _read_hub(source: TaskSource) -> tuple[dict[str, list[tuple[Text, Any]]], tuple[str, ...]]:
    import datasets

    rows: dict[str, list[tuple[Text, Any]]] = {}
    names: tuple[str, ...] = ()
    for split, name in _wanted(source).items():
        where, data = _hub_split(source, name)
        _need_columns(source, where, data.column_names, [*source.text, source.label])
        columns = {column: list(data[column]) for column in [*source.text, source.label]}
        feature = data.features[source.label]
        if isinstance(feature, datasets.ClassLabel) and source.kind == "classification":
            names = tuple(feature.names)
            columns[source.label] = [names[y] if y is not None and y >= 0 else y for y in columns[source.label]]
        rows[split] = _rows(source, where, columns)
    return rows, names


def _hub_split(source: TaskSource, name: str) -> tuple[str, Any]:
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
        parts = {split: [_hub_split(source, name)] for split, name in _wanted(source).items()}
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
            raise RunError(f"task {source.name!r}: {where} has no column {column!r}; it has {', '.join(present)}")


def _rows(source: TaskSource, where: str, columns: dict[str, list[Any]]) -> list[tuple[Text, Any]]:
    rows: list[tuple[Text, Any]] = []
    texts = zip(*(columns[name] for name in source.text), strict=True)
    for number, (values, label) in enumerate(zip(texts, columns[source.label], strict=True), start=1):
        at = f"task {source.name!r}: {where}, row {number}"
        blank = not any(
            str(value).strip() for value in values
        )  # one side of a pair may be empty: public sets have such
        for column, value in zip(source.text, values, strict=True):
            if blank or not isinstance(value, str):
                raise RunError(f"{at}: text column {column!r} is {value!r}; give a text, or drop the row")
        stripped = [value.strip() for value in values]
        text = stripped[0] if len(stripped) == 1 else (stripped[0], stripped[1])
        rows.append((text, _label(at, source, label)))
    return rows


def _label(at: str, source: TaskSource, value: Any) -> str | float:
    empty = value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip() == ""
    if source.kind == "classification" and not empty:
        return str(value).strip()
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if empty or not math.isfinite(number):
        wanted = "a finite number" if source.kind == "regression" else "a class"
        raise RunError(f"{at}: label column {source.label!r} is {value!r}; give {wanted}, or drop the row")
    return number
