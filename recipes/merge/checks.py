"""Pre-flight of a merge: everything that exists is compared by its headers, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.data.models import check_model
from recipes.data.sources import check_task
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError
from recipes.front.preflight import check_all
from recipes.merge.experts import base_checkpoint, cache_folder, inspect_expert
from recipes.merge.schema import Recipe

if TYPE_CHECKING:
    from twinmerge.checkpoints import Checkpoint


def check(recipe: Recipe) -> Iterator[str]:
    """Compare everything that exists by its headers, and say what would be made; write nothing."""
    # The base first: what is wrong with it would be said of every expert again.
    yield from check_all([partial(check_model, recipe.base), partial(_check_base, recipe)])
    base = base_checkpoint(recipe.base)
    yield from check_all(
        [
            *(partial(check_task, task) for task in recipe.tasks),
            *(partial(_check_expert, recipe, task, base) for task in recipe.tasks),
        ]
    )
    missing = [t for t in recipe.tasks if t.name not in recipe.experts and not _cached(recipe, t)]
    need = "" if base is None else f", about {(len(missing) + 2) * base.bytes / 1e9:.1f} GB needed"
    yield f"disk: {shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB free in the working folder{need}"
    policy = ", ".join(f"{k} {v}" for k, v in recipe.exclusive.policy().items())
    options = "".join(f" {k} {v}" for k, v in recipe.shared.options.items())
    yield (
        f"plan: shared expert by {recipe.shared.method}{options}, exclusive experts with {policy}, router "
        f"{recipe.router.kind}, {len(recipe.baselines.grid())} static candidates tuned on validation"
    )


def _check_base(recipe: Recipe) -> str:
    from twinmerge.errors import CheckpointError

    try:
        base = base_checkpoint(recipe.base)
    except CheckpointError as error:
        raise RecipeError(f"base: {error}") from error
    if base is None:
        return "base: not here as a folder, so that experts are compared with it when the run starts"
    check_rank(recipe, [shape for _, shape in base.tensors.values()], RecipeError)
    return f"base: {len(base.tensors)} tensors, {base.bytes / 1e6:.1f} MB"


def check_rank(recipe: Recipe, shapes: list[tuple[int, ...]], error: type[Exception]) -> None:
    """Refuse a rank that is larger than any matrix of the base has."""
    widest = max(min(shape) for shape in shapes if len(shape) == 2)
    if recipe.exclusive.rank is not None and recipe.exclusive.rank > widest:
        raise error(f"exclusive.rank: expected 1 to {widest}, the base's largest, got {recipe.exclusive.rank}")


def _check_expert(recipe: Recipe, task: TaskSource, base: Checkpoint | None) -> str:
    from twinmerge.errors import CheckpointError

    given = recipe.experts.get(task.name)
    where = Path(given).expanduser() if given else cached_at(recipe, task)
    if not given and not (where / "expert.json").exists():
        return f"expert {task.name}: to be trained, then cached"
    try:
        _, _, line = inspect_expert(where, base)
    except CheckpointError as error:
        advice = "" if given else f" It is a cache entry: delete {where} to have it made again."
        raise RecipeError(f"experts.{task.name}: {error}{advice}") from error
    return f"expert {task.name}: {line}"


def cached_at(recipe: Recipe, task: TaskSource) -> Path:
    """Where the user\'s cache keeps the expert of a task."""
    return cache_folder(recipe.base, task, recipe.training, recipe.trainer, recipe.seed)


def _cached(recipe: Recipe, task: TaskSource) -> bool:
    return (cached_at(recipe, task) / "expert.json").exists()
