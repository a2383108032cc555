"""Whether a base reads what the tasks hold: texts or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recipes.data.models import reads_images
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError


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
