"""Classes of a text recipe by name: what the data has, and whether the teacher knows the same."""

from __future__ import annotations

import json
from pathlib import Path

from distill.errors import DistillError
from distill.labels import class_order, given_names
from recipes.data import wheels
from recipes.data.models import resolve_model
from recipes.data.sources import load_task
from recipes.data.text_tasks import TASKS
from recipes.distill.networks import is_twin
from recipes.distill.schema import Network, Recipe
from recipes.errors import RecipeError, RunError

__all__ = ["check_classes", "class_names"]


def class_names(recipe: Recipe) -> list[str] | None:
    """Names of the data's classes in the order of its labels; None for images and language."""
    task = recipe.data.task
    return None if task is None else list(load_task(task, recipe.seed).labels)


def check_classes(recipe: Recipe, teacher: Network) -> str:
    """Say how the classes of a teacher that is taken as it is belong to those of the data, without fetching either.

    Args:
        recipe: Of texts.
        teacher: One of its teachers.

    Raises:
        RecipeError: If it knows other classes.
    """
    task = recipe.data.task
    if task is None:
        return ""
    if is_twin(teacher.model):
        return "teacher's classes: those of the twin's head, compared by name once it is loaded"
    known = teacher.options.get("id2label") or _configured(teacher.model)
    if known is None:
        return "teacher's classes: compared by name once it is fetched"
    fetched = task.source == "shipped" and not wheels.cached(TASKS[task.shipped].wheel)
    if fetched or task.source == "hub":
        return "teacher's classes: compared by name once the data is fetched"
    try:
        wanted = class_names(recipe) or []
    except RunError as error:
        raise RecipeError(f"data.task: {error}") from error
    count = len(known) or 2  # what a configuration does not say is transformers' two
    if count != len(wanted):
        raise RecipeError(
            f"teacher.model: {teacher.model} tells {count} classes apart, but the data has {len(wanted)}: "
            f"{', '.join(wanted)}; give a teacher of these, or train it with teacher.train"
        )
    names = given_names(known)
    try:
        order = class_order(names, wanted, "the teacher")
    except DistillError as error:
        raise RecipeError(f"teacher.model: {error}, as teacher.options.id2label") from error
    if names is None or wanted == [str(i) for i in range(len(wanted))]:
        return f"teacher's classes: without common names, taken in the order {', '.join(wanted)}"
    return f"teacher's classes: {', '.join(wanted)}" + (", brought into this order by name" if order else "")


def _configured(model: str) -> dict[str, str] | None:
    """`id2label` of a model folder, empty where it has none; None where nothing lies here."""
    folder = None if model.startswith("shipped:") else Path(str(resolve_model(model)))
    if folder is None or not (folder / "config.json").is_file():
        return None
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
        return {str(index): str(name) for index, name in found.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"teacher.model: {folder / 'config.json'} cannot be read ({reason}); copy it again"
        ) from error
