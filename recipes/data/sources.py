"""The task source named in a recipe: shipped, Hub, csv, jsonl, parquet or folder, loaded into one form."""

from __future__ import annotations

from collections import Counter
from typing import Any

from recipes.data import tables, text_tasks, wheels
from recipes.data.splits import Split, Text, TextTask, stratified_order, text_key
from recipes.data.task_source import TaskSource
from recipes.errors import RunError

__all__ = ["TaskSource", "check_task", "cut", "load_task", "ordered"]


# Cut rows are the same for every seed: an expert trained under one seed must not have seen another run's test rows.
CUT_SEED = 0
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
MIN_TRAIN = 10

Labelled = list[tuple[Text, Any]]


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
        shipped = source.known[source.shipped]
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
    if source.language is not None:
        raise RunError(f"task {source.name!r} asks a language model; give it to a recipe with 'training.model: causal'")
    if source.source == "shipped":
        train, test = text_tasks.read_shipped(source.known[source.shipped])
        read = {"train": list[tuple[Text, Any]](train), **({"test": list[tuple[Text, Any]](test)} if test else {})}
        names: tuple[str, ...] = ()
    else:
        read, names = tables.read_splits(source)
    parts = cut(source, read)
    labels = _label_names(source, parts, names)
    index = {name: i for i, name in enumerate(labels)}
    splits = {}
    for split, limit in (("train", source.max_train), ("validation", source.max_validation), ("test", source.max_test)):
        rows = parts[split]
        if limit is not None and limit < len(rows):
            rows = [rows[i] for i in ordered(source, rows, seed)[:limit]]
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


def ordered(source: TaskSource, rows: Labelled, seed: int) -> list[int]:
    """The seeded order of which every subsample is the start."""
    return stratified_order([y if source.kind == "classification" else 0 for _, y in rows], seed)


def cut(source: TaskSource, read: dict[str, Labelled]) -> dict[str, Labelled]:
    """Cut the missing splits from train, no text on two sides of a cut.

    Args:
        source: The task as the recipe names it.
        read: Rows of text and whatever belongs to it, by split; train among them.

    Raises:
        RunError: When a split has too few different rows.
    """
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
    chosen = ordered(source, train, CUT_SEED)
    start = 0
    for split in missing:
        share = TEST_SHARE if split == "test" else VALIDATION_SHARE
        end = start + max(1, round(share * len(train)))
        parts[split] = [train[i] for i in sorted(chosen[start:end])]
        start = end
    parts["train"] = [train[i] for i in sorted(chosen[start:])]
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
