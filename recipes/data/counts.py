"""How many test inputs a task will have, as far as that is known before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.data import tables
from recipes.data.language_rows import load_language
from recipes.data.sources import READ_IN_FULL, here, load_task

if TYPE_CHECKING:
    from recipes.data.task_source import TaskSource

__all__ = ["tested"]


def tested(source: TaskSource) -> int | None:
    """Test inputs of a task: counted where its files are small, else as many as it may have at most; None unknown.

    Args:
        source: The task as the recipe names it.
    """
    if found := here(source):
        return found["test"]
    if source.source in ("shipped", "hub"):
        return source.max_test
    if sum(file.stat().st_size for file in tables.own_files(source)) > READ_IN_FULL:
        return source.max_test
    return len(load_language(source, 0).test if source.language else load_task(source, 0).test)
