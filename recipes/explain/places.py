"""Where the models of a merge run are: its experts, and the students of its twin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recipes.merge.checks import cached_at
from recipes.merge.experts import expert_folder

if TYPE_CHECKING:
    from recipes.data.task_source import TaskSource
    from recipes.merge.schema import Recipe

__all__ = ["expert_place", "student_folder"]


def expert_place(recipe: Recipe, source: TaskSource) -> Path:
    """The folder of a task's expert: the one that the recipe gives, else that of the user's cache.

    Args:
        recipe: Of the merge.
        source: The task.

    Raises:
        CheckpointError: When the expert is on the Hub, and cannot be fetched.
    """
    from twinmerge.local import local_folder

    own = recipe.given().get(source.name)
    return (expert_folder(own) or local_folder(own)) if own else cached_at(recipe, source)


def student_folder(given: Path) -> Path:
    """The folder of a student's model, by its own name or by that of the folder `students/<method>` around it."""
    where = given.expanduser()
    return where / "model" if (where / "model" / "config.json").is_file() else where
