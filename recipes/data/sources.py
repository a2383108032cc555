"""The task source named in a recipe: shipped, Hub, csv, jsonl, parquet or folder, loaded into one form."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from recipes.data import tables, text_tasks, wheels
from recipes.data.splits import Split, Text, TextTask, stratified_order, text_key
from recipes.data.text_tasks import TASKS
from recipes.errors import RunError
from recipes.fields import FieldError, check_name, check_positive

__all__ = ["TaskSource", "check_task", "load_task"]

Source = Literal["shipped", "hub", "csv", "jsonl", "parquet", "folder"]
Kind = Literal["classification", "regression"]
Metric = Literal["accuracy", "f1", "mcc", "accuracy_f1", "pearson_spearman"]

# Cut rows are the same for every seed: an expert trained under one seed must not have seen another run's test rows.
CUT_SEED = 0
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
MIN_TRAIN = 10

Labelled = list[tuple[Text, Any]]


@dataclass
class TaskSource:
    """Where one task's texts and labels come from.

    Attributes:
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
    source: Source = "shipped"
    path: str = ""
    subset: str = ""
    text: list[str] = field(default_factory=lambda: ["text"])
    label: str = "label"
    train: str = "train"
    validation: str = ""
    test: str = ""
    kind: Kind = "classification"
    metric: Metric = "accuracy"
    max_train: int | None = None
    max_validation: int | None = None
    max_test: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is wrong whatever the data hold."""
        check_name(self.name, "name")
        if (self.kind == "regression") != (self.metric == "pearson_spearman"):
            fitting = "'pearson_spearman'" if self.kind == "regression" else "accuracy, f1, mcc or accuracy_f1"
            raise FieldError("metric", f"expected {fitting} for kind {self.kind!r}, got {self.metric!r}")
        if len(self.text) not in {1, 2}:
            raise FieldError("text", f"expected one column, or two for sentence pairs, got {self.text!r}")
        for key in ("max_train", "max_validation", "max_test"):
            limit = getattr(self, key)
            if limit is not None:
                check_positive(limit, key)
        if self.source == "shipped":
            self._check_shipped()
        elif not self.path:
            raise FieldError("path", f"expected a path or data set for source {self.source!r}, got nothing")
        elif not self.train:
            raise FieldError("train", "expected the split or file to train on, got nothing")
        elif self.source in {"csv", "jsonl", "parquet"} and (self.validation or self.test):
            key = "validation" if self.validation else "test"
            raise FieldError(
                key, f"source {self.source!r} is one set of rows that is cut; use 'source: folder' for a file a split"
            )

    def _check_shipped(self) -> None:
        if self.shipped not in TASKS:
            close = difflib.get_close_matches(self.shipped, TASKS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ";"
            where = "path" if self.path else "name"
            raise FieldError(
                where,
                f"no shipped task is called {self.shipped!r}{hint} accepted: {', '.join(TASKS)}, or another source",
            )
        if self.kind != "classification":
            raise FieldError("kind", f"expected 'classification' for a shipped task, got {self.kind!r}")

    @property
    def shipped(self) -> str:
        """The shipped task that is meant when the source is ``shipped``."""
        return self.path or self.name


def check_task(source: TaskSource) -> str:
    """One sentence for the pre-flight: what would be read or fetched, without doing either.

    Args:
        source: The task as the recipe names it.

    Returns:
        What the task is, where it comes from, bytes to fetch and whether they are cached.

    Raises:
        RecipeError: When a file is missing.
    """
    if source.source == "shipped":
        shipped = TASKS[source.shipped]
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

    Splits that the source does not have are cut from train, stratified: 20 % for test, 10 % for validation. Before a
    cut, rows whose text occurs twice are dropped. The cut is the same for every seed, so that no run tests on what
    another trained on.

    Args:
        source: The task as the recipe names it.
        seed: Draws the subsamples of ``max_train``, ``max_validation`` and ``max_test``.

    Returns:
        The task with class indices in the order of ``labels`` (sorted names; a Hub data set's own order).

    Raises:
        RecipeError: When a file is missing.
        RunError: When it cannot be fetched or read, or columns or rows are wrong.
    """
    if source.source == "shipped":
        train, test = text_tasks.read_rows(source.shipped)
        read = {"train": list[tuple[Text, Any]](train), **({"test": list[tuple[Text, Any]](test)} if test else {})}
        names: tuple[str, ...] = ()
    else:
        read, names = tables.read_splits(source)
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


def _refuse_few(source: TaskSource, parts: dict[str, Labelled]) -> None:
    for split, rows in parts.items():
        least = MIN_TRAIN if split == "train" else 1
        if len(rows) < least:
            raise RunError(f"task {source.name!r}: {split} has {len(rows)} different rows; give at least {least}")


def _order(source: TaskSource, rows: Labelled, seed: int) -> list[int]:
    return stratified_order([y if source.kind == "classification" else 0 for _, y in rows], seed)


def _cut(source: TaskSource, read: dict[str, Labelled]) -> dict[str, Labelled]:
    """Cut the missing splits from train, no text on two sides of a cut."""
    missing = [split for split in ("test", "validation") if split not in read]
    _refuse_few(source, read)
    if not missing:
        return read
    first: dict[Text, tuple[Text, Any]] = {}
    for text, label in read["train"]:
        first.setdefault(text_key(text), (text, label))
    train = list(first.values())
    parts = {**read, "train": train}
    _refuse_few(source, parts)
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
