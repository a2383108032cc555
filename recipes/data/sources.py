"""The task source named in a recipe: shipped, Hub, csv, jsonl, parquet or folder, loaded into one form."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recipes.data import tables, text_tasks, wheels
from recipes.data.splits import Split, Text, TextTask, stratified_order, text_key
from recipes.front.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KINDS", "METRICS", "SOURCES", "TaskSource", "check_task", "load_task"]

SOURCES = ("shipped", "hub", "csv", "jsonl", "parquet", "folder")
KINDS = ("classification", "regression")
METRICS = ("accuracy", "f1", "mcc", "accuracy_f1", "pearson_spearman")

# Cut rows are the same for every seed: an expert trained under one seed must not have seen another run's test rows.
CUT_SEED = 0
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
MIN_ROWS = 10
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Labelled = list[tuple[Text, Any]]


@dataclass
class TaskSource:
    """Where one task's texts and labels come from.

    Args:
        name: Name of the task: 1 to 64 letters, digits, ``_`` or ``-``.
        source: ``shipped`` (fetched from the package index), ``hub`` (``datasets.load_dataset``), ``csv``, ``jsonl``,
            ``parquet``, or ``folder`` (one file a split inside).
        path: Shipped task (default: the name), Hub data set, file, glob or folder.
        subset: Configuration of a Hub data set.
        text: The text column, or two columns for sentence pairs.
        label: The label column.
        train: Split name on the Hub, file name without its ending in a folder.
        validation: Likewise; empty cuts 10 % from train.
        test: Likewise; empty cuts 20 % from train.
        kind: ``classification`` or ``regression``.
        metric: ``accuracy``, ``f1``, ``mcc``, ``accuracy_f1`` or ``pearson_spearman``.
        max_train: Keep at most this many training rows, a stratified sample drawn with the run's seed.
        max_validation: Likewise for validation.
        max_test: Likewise for test.
    """

    name: str
    source: str = "shipped"
    path: str = ""
    subset: str = ""
    text: list[str] = field(default_factory=lambda: ["text"])
    label: str = "label"
    train: str = "train"
    validation: str = ""
    test: str = ""
    kind: str = "classification"
    metric: str = "accuracy"
    max_train: int | None = None
    max_validation: int | None = None
    max_test: int | None = None


def _did_you_mean(value: str, accepted: Sequence[str]) -> str:
    close = difflib.get_close_matches(value, accepted, n=1)
    return (
        f"did you mean {close[0]!r}? accepted: {', '.join(accepted)}" if close else f"accepted: {', '.join(accepted)}"
    )


def _validate(source: TaskSource) -> None:
    """Refuse what needs no data to be seen as wrong."""
    if not _NAME.fullmatch(source.name):
        raise RunError(f"task name {source.name!r} is not usable: give 1 to 64 letters, digits, '_' or '-'")
    where = f"task {source.name!r}"
    for key, accepted in (("source", SOURCES), ("kind", KINDS), ("metric", METRICS)):
        value = getattr(source, key)
        if value not in accepted:
            raise RunError(f"{where}: {key} {value!r} is unknown; {_did_you_mean(value, accepted)}")
    if (source.kind == "regression") != (source.metric == "pearson_spearman"):
        raise RunError(
            f"{where}: metric {source.metric!r} does not fit kind {source.kind!r}; 'pearson_spearman' belongs to "
            "regression, the others to classification"
        )
    if len(source.text) not in {1, 2}:
        raise RunError(f"{where}: text names {len(source.text)} columns; give one, or two for sentence pairs")
    for key in ("max_train", "max_validation", "max_test"):
        limit = getattr(source, key)
        if limit is not None and limit < 1:
            raise RunError(f"{where}: {key} is {limit}; give a positive number, or null for all rows")
    if source.source == "shipped":
        task = source.path or source.name
        if task not in text_tasks.TASKS:
            raise RunError(
                f"{where}: no shipped task is called {task!r}; {_did_you_mean(task, list(text_tasks.TASKS))}"
            )
        if source.kind != "classification":
            raise RunError(f"{where}: the shipped task {task!r} is a classification, kind {source.kind!r} does not fit")
    elif not source.path:
        raise RunError(f"{where}: source {source.source!r} needs a path")
    elif not source.train:
        raise RunError(f"{where}: train names no split; give the split or file to train on")


def check_task(source: TaskSource) -> str:
    """One sentence for the pre-flight: what would be read or fetched, without doing either.

    Args:
        source: The task as the recipe names it.

    Returns:
        What the task is, where it comes from, bytes to fetch and whether they are cached.

    Raises:
        RunError: When the source is wrong or a file is missing.
    """
    _validate(source)
    if source.source == "shipped":
        shipped = text_tasks.TASKS[source.path or source.name]
        return f"task {source.name}: {shipped.about}; {wheels.describe(shipped.wheel)}"
    if source.source == "hub":
        subset = f", subset {source.subset!r}" if source.subset else ""
        splits = ", ".join(repr(split) for split in (source.train, source.validation, source.test) if split)
        return f"task {source.name}: Hub data set {source.path!r}{subset}, splits {splits}, fetched on first use"
    files = [file for group in tables.split_files(source).values() for file in group]
    size = sum(file.stat().st_size for file in files)
    return f"task {source.name}: {', '.join(map(str, files))} ({size / 1e6:.1f} MB)"


def load_task(source: TaskSource, seed: int) -> TextTask:
    """Read a task into train, validation and test.

    Splits that the source does not have are cut from train, stratified: 20 % for test, 10 % for validation. Before a cut, rows
    whose text occurs twice are dropped. The cut is the same for every seed, so that no run tests on what another trained on.

    Args:
        source: The task as the recipe names it.
        seed: Draws the subsamples of ``max_train``, ``max_validation`` and ``max_test``.

    Returns:
        The task with class indices in the order of ``labels`` (sorted names; a Hub data set's own order).

    Raises:
        RunError: When files, columns or rows are missing or wrong.
    """
    _validate(source)
    if source.source == "shipped":
        train, test = text_tasks.read_rows(source.path or source.name)
        read = {"train": list[tuple[Text, Any]](train), **({"test": list[tuple[Text, Any]](test)} if test else {})}
        names: tuple[str, ...] = ()
    else:
        read, names = tables.read_splits(source)
    _refuse_empty(source, read)
    parts = _cut(source, read)
    labels = _label_names(source, parts, names)
    index = {name: i for i, name in enumerate(labels)}
    splits = {}
    for split, limit in (("train", source.max_train), ("validation", source.max_validation), ("test", source.max_test)):
        rows = parts[split]
        if limit is not None and limit < len(rows):
            rows = [rows[i] for i in _order(source, rows, seed)[:limit]]
        texts: Any = [text for text, _ in rows]
        splits[split] = Split(texts, [index[y] for _, y in rows] if labels else [float(y) for _, y in rows])
    if labels and len(set(splits["train"].labels)) < 2:
        raise RunError(f"task {source.name!r}: max_train={source.max_train} leaves a single class in train; raise it")
    return TextTask(source.name, labels, **splits, metric=source.metric, kind=source.kind)


def _refuse_empty(source: TaskSource, read: dict[str, Labelled]) -> None:
    for split, rows in read.items():
        if not rows:
            raise RunError(f"task {source.name!r}: split {split!r} is empty; give at least one row")
    if len(read["train"]) < MIN_ROWS:
        count = len(read["train"])
        raise RunError(f"task {source.name!r}: train has {count} rows, too few to learn from; give at least {MIN_ROWS}")


def _order(source: TaskSource, rows: Labelled, seed: int) -> list[int]:
    return stratified_order([y if source.kind == "classification" else 0 for _, y in rows], seed)


def _cut(source: TaskSource, read: dict[str, Labelled]) -> dict[str, Labelled]:
    """Cut the missing splits from train, no text on two sides of a cut."""
    missing = [split for split in ("test", "validation") if split not in read]
    parts = dict(read)
    if not missing:
        return parts
    seen = {text_key(text) for split in read for text, _ in read[split] if split != "train"}
    train: Labelled = []
    for text, label in read["train"]:
        key = text_key(text)
        if key not in seen:
            seen.add(key)
            train.append((text, label))
    order = _order(source, train, CUT_SEED)
    start = 0
    for split in missing:
        share = TEST_SHARE if split == "test" else VALIDATION_SHARE
        end = start + max(1, round(share * len(train)))
        parts[split] = [train[i] for i in sorted(order[start:end])]
        start = end
    parts["train"] = [train[i] for i in sorted(order[start:])]
    return parts


def _label_names(source: TaskSource, parts: dict[str, Labelled], names: tuple[str, ...]) -> tuple[str, ...]:
    if source.kind == "regression":
        return ()
    counts = Counter(y for _, y in parts["train"])
    if len(counts) < 2:
        raise RunError(f"task {source.name!r}: train has the single class {next(iter(counts))!r}; give at least two")
    for split in ("validation", "test"):
        unseen = sorted({y for _, y in parts[split]} - counts.keys())
        if unseen:
            raise RunError(
                f"task {source.name!r}: {split} has the label {unseen[0]!r}, which train never shows; "
                f"labels of train: {', '.join(sorted(counts, key=_natural))}"
            )
    return names or tuple(sorted(counts, key=_natural))


def _natural(label: str) -> tuple[float, str]:
    """Whole numbers by value, then names by alphabet."""
    return (float(label) if label.isdecimal() else float("inf"), label)
