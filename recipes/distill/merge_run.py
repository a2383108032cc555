"""The merge run whose twin is distilled: what its recipe says, its tasks, and whether it can be distilled."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from recipes.data.sources import load_task
from recipes.errors import RecipeError
from recipes.front.parse import parse

if TYPE_CHECKING:
    from recipes.data.splits import TextTask
    from recipes.merge.schema import Recipe

__all__ = ["TWIN", "MergeRun", "check_merge_run", "merge_kind", "merge_run"]

TWIN = "merged"  # folder of the twin within the run folder
ADVICE = "give the folder of a finished 'recipe: merge' run with tasks, such as runs/merge-text4/1"


def merge_kind(path: str) -> Literal["images", "texts", "language"]:
    """What the tasks of a merge run are made of; texts where its recipe cannot be read, which `merge_run` refuses.

    Args:
        path: The run folder.
    """
    try:
        told = yaml.safe_load((Path(path).expanduser() / "recipe.yaml").read_text(encoding="utf-8"))
        if (told.get("training") or {}).get("model") == "causal":
            return "language"
        images = any(task.get("kind") == "images" for task in told.get("tasks") or ())
    except (OSError, ValueError, AttributeError, yaml.YAMLError, RecursionError):
        return "texts"
    return "images" if images else "texts"


@dataclass(frozen=True)
class MergeRun:
    """A finished merge run.

    Attributes:
        folder: The run folder.
        recipe: Of the merge.
        scored_in: The number format in which its table was scored, as its result names it.
    """

    folder: Path
    recipe: Recipe
    scored_in: str

    @property
    def twin(self) -> Path:
        """The twin folder."""
        return self.folder / TWIN

    def tasks(self, rows: int = 0) -> list[TextTask]:
        """Its tasks, of texts or images, with the merge's own validation and test rows.

        Args:
            rows: Training rows of every task; 0 has as many as its experts had.

        Raises:
            RunError: When the rows cannot be read.
        """
        sources = [replace(source, max_train=rows) if rows else source for source in self.recipe.tasks]
        return [load_task(source, self.recipe.seed) for source in sources]


def merge_run(path: str) -> MergeRun:
    """Read what a merge run left behind.

    Args:
        path: The run folder.

    Raises:
        RecipeError: When it is no finished merge run with tasks.
    """
    folder = Path(path).expanduser()
    for name in ("recipe.yaml", "result.json", f"{TWIN}/twin.json"):
        if not (folder / name).is_file():
            raise RecipeError(f"data.path: {path} has no {name}; {ADVICE}")
    try:
        recipe = parse(folder / "recipe.yaml").recipe
        scored_in = json.loads((folder / "result.json").read_text(encoding="utf-8")).get("scored_in", "")
    except RecipeError as error:
        raise RecipeError(*(f"data.path: {problem}" for problem in error.problems)) from error
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise RecipeError(f"data.path: {folder / 'result.json'} cannot be read ({error}); {ADVICE}") from error
    if getattr(recipe, "recipe", "") != "merge" or not recipe.tasks:
        raise RecipeError(f"data.path: {folder} holds no merge run with tasks; {ADVICE}")
    return MergeRun(folder, recipe, str(scored_in))


def check_merge_run(run: MergeRun) -> str:
    """One sentence about a merge run for the pre-flight.

    Raises:
        RecipeError: When its twin lacks the head of a task, or a task has no classes.
    """
    tasks = run.recipe.tasks
    if numeric := [task.name for task in tasks if task.kind == "regression"]:
        raise RecipeError(
            f"data.path: task {numeric[0]!r} is a regression, and the losses here compare probabilities of classes, of "
            "which a number has none; merge the other tasks, and fine-tune this one by itself"
        )
    try:
        heads = json.loads((run.twin / "twin.json").read_text(encoding="utf-8"))["heads"]
        missing = [task.name for task in tasks if task.name not in heads]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise RecipeError(f"data.path: {run.twin / 'twin.json'} cannot be read ({error}); merge again") from error
    if missing and run.recipe.training.model != "causal":
        raise RecipeError(f"data.path: the twin {run.twin} has no head for task {missing[0]!r}; merge again")
    return f"data: training inputs of {', '.join(task.name for task in tasks)}, as of the merge run {run.folder}"
