"""Whether a base reads what the tasks hold: texts or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.data.models import is_here, reads_images, resolve_model
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError


def check_base_kind(base: str, tasks: Sequence[TaskSource]) -> None:
    """As `check_kind`, of a base by its name; one that is not here yet is not looked at.

    Raises:
        RecipeError: With both kinds.
    """
    from twinmerge.errors import CheckpointError
    from twinmerge.headers import read_json

    if not is_here(base):
        return
    try:
        config = read_json(Path(resolve_model(base)) / "config.json")
    except CheckpointError as error:
        raise RecipeError(f"base: {error}") from error
    check_kind(base, tasks, config if isinstance(config, Mapping) else {})


def check_kind(base: str, tasks: Sequence[TaskSource], config: Mapping[str, object]) -> None:
    """Refuse tasks of images for a base that reads texts, and the other way round.

    Args:
        base: As in the recipe.
        tasks: Of the recipe.
        config: The base's config.json.

    Raises:
        RecipeError: With both kinds.
    """
    images, kind = reads_images(config), config.get("model_type")
    reads, other = ("images", "texts") if images else ("texts", "images")
    fitting = "shipped:minilm" if images else "shipped:efficientnet-lite0"
    for index, task in enumerate(tasks):
        if (task.kind == "images") != images:
            raise RecipeError(
                f"tasks.{index}.kind: {task.name!r} is a task of {other}, and the base {base} (a {kind} model) reads "
                f"{reads}; give a base such as {fitting}, or tasks of {reads}"
            )
