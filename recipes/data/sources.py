"""The task source named in a recipe: shipped, Hub, csv, jsonl, parquet or folder, loaded into one form."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from recipes.data import image_tasks, tables, text_tasks, wheels
from recipes.data.splits import Split, Text, TextTask, stratified_order, text_key
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError, RunError

__all__ = ["TaskSource", "apart", "check_task", "cut", "here", "load_task", "ordered"]


# Cut rows are the same for every seed: an expert trained under one seed must not have seen another run's test rows.
CUT_SEED = 0
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
MIN_TRAIN = 10

READ_IN_FULL = 20e6  # bytes of files up to which a pre-flight reads them whole
Labelled = list[tuple[Text, Any]]


def check_task(source: TaskSource) -> str:
    """One sentence for the pre-flight: what would be fetched, or what a file holds.

    Args:
        source: The task as the recipe names it.

    Returns:
        What the task is, where it comes from, bytes to fetch and whether they are cached; of files, the rows of each
        split and what was left out. Files of more than 20 MB are opened and their first rows are read.

    Raises:
        RecipeError: When a file is missing, cannot be read, or has rows that a run would refuse.
    """
    if source.kind == "images":
        return image_tasks.check_images(source)
    if source.source == "shipped":
        shipped = source.known[source.shipped]
        return f"task {source.name}: {shipped.about}; {wheels.describe(shipped.wheel)}"
    if source.source == "hub":
        subset = f", subset {source.subset!r}" if source.subset else ""
        splits = ", ".join(repr(split) for split in (source.train, source.validation, source.test) if split)
        return f"task {source.name}: Hub data set {source.path!r}{subset}, splits {splits}, fetched on first use"
    files = [file for group in tables.split_files(source).values() for file in group]
    size = sum(file.stat().st_size for file in files)
    line = f"task {source.name}: {', '.join(map(str, files))} ({size / 1e6:.1f} MB)"
    if source.language is not None:  # read by `recipes.data.language_rows.check_language`
        return line
    try:
        if size > READ_IN_FULL:
            tables.first_rows(source)
            return f"{line}; the first rows of every file are as they should be"
        task = load_task(source, 0)
    except RunError as error:
        raise RecipeError(str(error)) from error
    parts = f"{len(task.train)} rows to train, {len(task.validation)} to validate, {len(task.test)} to test"
    return "; ".join((f"{line}: {parts}", *task.notes))


def here(source: TaskSource) -> dict[str, int]:
    """Rows of each split of a task that is here and small enough to be read by a pre-flight; empty for every other."""
    if source.source == "hub" or source.language is not None or source.kind == "images":
        return {}
    if source.source == "shipped" and not wheels.cached(source.known[source.shipped].wheel):
        return {}
    files = [] if source.source == "shipped" else tables.own_files(source)
    if sum(file.stat().st_size for file in files) > READ_IN_FULL:
        return {}
    task = load_task(source, 0)
    return {split: len(getattr(task, split)) for split in ("train", "validation", "test")}


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
        RunError: When it cannot be fetched or read, columns or rows are wrong, or rows of one split stand in another.
    """
    if source.language is not None:
        raise RunError(f"task {source.name!r} asks a language model; give it to a recipe with 'training.model: causal'")
    notes: list[str] = []
    names: tuple[str, ...]
    if source.kind == "images":
        pictures, names, missing = image_tasks.read_pictures(source)
        if missing:
            notes.append(f"{missing} rows without an image or label were left out")
        told = replace(source, overlap="drop") if source.source == "shipped" else source
        read = apart(told, {split: Labelled(rows) for split, rows in pictures.items()}, notes)
    elif source.source == "shipped":
        train, test = text_tasks.read_shipped(text_tasks.TASKS[source.shipped])
        read = {"train": Labelled(train), **({"test": Labelled(test)} if test else {})}
        names = ()
    else:
        found, names = tables.read_splits(source)
        read = {split: part.rows for split, part in found.items()}
        if missing := sum(part.missing for part in found.values()):
            notes.append(f"{missing} rows without a text or label were left out")
        read = apart(source, read, notes)
    parts = cut(source, read, notes)
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
    return TextTask(source.name, labels, **splits, metric=source.metric, kind=source.kind, notes=tuple(notes))


def apart(source: TaskSource, read: dict[str, Labelled], notes: list[str]) -> dict[str, Labelled]:
    """The splits without rows of validation or test whose text stands in a split before them.

    Raises:
        RunError: When there are such rows and the source does not say what becomes of them.
    """
    if source.overlap == "keep":
        return read
    seen = {text_key(text) for text, _ in read["train"]}
    parts = dict(read)
    for split in ("validation", "test"):
        if split not in read:
            continue
        parts[split] = [row for row in read[split] if text_key(row[0]) not in seen]
        count = len(read[split]) - len(parts[split])
        before = "train" if split == "validation" or "validation" not in read else "train or validation"
        if count and source.overlap == "refuse":
            raise RunError(
                f"task {source.name!r}: {count} of {len(read[split])} {split} rows stand in {before} too, so that a "
                "score on them says nothing; leave them out with 'overlap: drop', or use them with 'overlap: keep'"
            )
        if count:
            notes.append(f"{count} of {len(read[split])} {split} rows that stand in {before} too were left out")
        seen |= {text_key(text) for text, _ in read[split]}
    return parts


def _refuse_few(source: TaskSource, parts: dict[str, Labelled]) -> None:
    for split, rows in parts.items():
        least = MIN_TRAIN if split == "train" else 1
        if len(rows) < least:
            raise RunError(f"task {source.name!r}: {split} has {len(rows)} different rows; give at least {least}")


def ordered(source: TaskSource, rows: Labelled, seed: int) -> list[int]:
    """The seeded order of which every subsample is the start."""
    return stratified_order([0 if source.kind == "regression" else y for _, y in rows], seed)


def cut(source: TaskSource, read: dict[str, Labelled], notes: list[str]) -> dict[str, Labelled]:
    """Cut the missing splits from train, no text on two sides of a cut.

    Args:
        source: The task as the recipe names it.
        read: Rows of text and whatever belongs to it, by split; train among them.
        notes: What was done to the rows is added to them, a sentence each.

    Raises:
        RunError: When a split has too few different rows.
    """
    missing = [split for split in ("test", "validation") if split not in read]
    _refuse_few(source, read)
    first: dict[Text, tuple[Text, Any]] = {}
    odd: set[Text] = set()
    for text, label in read["train"]:
        if first.setdefault(key := text_key(text), (text, label))[1] != label:
            odd.add(key)
    if odd:
        kept = "the first of each is kept" if missing else "all are trained on"
        notes.append(f"{len(odd)} texts of train have contradictory labels, {kept}")
    if not missing:
        return read
    train = list(first.values())
    if twice := len(read["train"]) - len(train):
        notes.append(f"{twice} rows of train whose text occurs before were left out")
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
