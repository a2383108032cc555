"""Further columns of the user's own files beside the test rows of tasks: what a text came with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from recipes.data.sources import READ_IN_FULL, load_task
from recipes.data.splits import text_key
from recipes.data.tables import absent, own_files, read_columns
from recipes.errors import RecipeError, RunError

if TYPE_CHECKING:
    import pandas as pd

    from recipes.data.splits import Text, TextTask
    from recipes.data.task_source import TaskSource

__all__ = ["check_own_columns", "own_columns"]

FILES = ("csv", "jsonl", "parquet", "folder")


def check_own_columns(sources: Sequence[TaskSource], wanted: Sequence[str], key: str) -> str:
    """One sentence for a pre-flight about columns of the user's files; files that it does not read in full are left.

    Args:
        sources: Where the tasks come from.
        wanted: Names of columns.
        key: Of the recipe, which names them.

    Raises:
        RecipeError: When no task has a column, or one text stands in a task's test rows with several values of it.
    """
    files = [source for source in sources if source.source in FILES and source.kind != "images"]
    if sum(file.stat().st_size for source in files for file in own_files(source)) > READ_IN_FULL:
        return f"{key}: {', '.join(wanted)} are looked for when the run reads the files"
    try:
        own_columns(files, [load_task(source, 0) for source in files], wanted)
    except RunError as error:
        raise RecipeError(f"{key}: {error}") from error
    return f"{key}: {', '.join(wanted)} found"


def own_columns(
    sources: Sequence[TaskSource], tasks: Sequence[TextTask], wanted: Sequence[str]
) -> dict[str, pd.Series]:
    """Columns of the user's files for the test rows of tasks of texts.

    Args:
        sources: Where each task comes from.
        tasks: The same tasks, read.
        wanted: Names of columns.

    Returns:
        By name a series with a value for every test row, tasks one by one: numbers where all values are numbers, else
        texts; missing where the value, or the column in this task's files, is not there.

    Raises:
        RunError: When no task has a column, or one text stands in a task's test rows with several values of it.
    """
    import pandas as pd

    made: dict[str, pd.Series] = {}
    for name in wanted:
        values: list[object] = []
        for source, task in zip(sources, tasks, strict=True):
            found = _values(source, name)
            values += [None] * len(task.test) if found is None else _looked_up(source, task, name, found)
        if all(value is None for value in values):
            raise RunError(f"no file of {', '.join(task.name for task in tasks)} has a column {name!r}")
        series = pd.Series(values, dtype=object)
        numbers = pd.to_numeric(series, errors="coerce")
        made[name] = numbers if numbers.notna().equals(series.notna()) else series
    return made


def _values(source: TaskSource, name: str) -> list[dict[str, object]] | None:
    """Rows of the file that the test rows were read or cut from; None where they have no such column."""
    if source.source not in FILES or source.kind == "images":
        return None
    asked = [*source.text, source.label]
    try:
        parts = read_columns(source, [*asked, *([name] if name not in asked else [])])
    except RunError as error:
        if f"no column {name!r}" in str(error):
            return None
        raise
    return [row for _, row in parts["test" if source.test else "train"]]


def _looked_up(source: TaskSource, task: TextTask, name: str, found: Sequence[Mapping[str, object]]) -> list[object]:
    """A value for every test row; of rows that a cut made one, that of the first, which the cut has kept."""
    known: dict[object, list[object]] = {}
    for row in found:
        texts = tuple(str(row[column]).strip() for column in source.text)
        text = texts[0] if len(texts) == 1 else (texts[0], texts[1])
        label = str(row[source.label]).strip()
        value = None if absent(row[name]) else row[name]
        known.setdefault((text if source.test else text_key(text), label), []).append(value)
    values = []
    for asked, number in zip(task.test.texts, task.test.labels, strict=True):
        there = known[asked if source.test else text_key(cast("Text", asked)), task.labels[int(number)]]
        if source.test and any(value != there[0] for value in there):
            raise RunError(
                f"the test rows of task {task.name!r} hold {asked!r} {len(there)} times with several "
                f"values of {name!r}, so that which belongs to which cannot be told; leave the column out, or drop the "
                "copies"
            )
        values.append(there[0])
    return values
