"""Pre-flight of a merge: everything that exists is compared by its headers, and nothing is written."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.data.language_rows import check_language
from recipes.data.models import check_model, is_here, own_code, reads_images
from recipes.data.sources import check_task, load_task
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError, RunError
from recipes.front.preflight import check_all
from recipes.merge.alone import check_read, read_lines, told_router
from recipes.merge.baselines import told
from recipes.merge.experts import (
    base_checkpoint,
    cache_folder,
    check_base,
    expert_damage,
    expert_folder,
    inspect_expert,
    is_own,
    read_expert,
)
from recipes.merge.finetune import check_training
from recipes.merge.kinds import check_kind, check_positions, check_tokens
from recipes.merge.layers import check_layers
from recipes.merge.routable import check_images_taken, check_routable
from recipes.merge.schema import Recipe
from recipes.merge.trial import check_options
from recipes.running.quiet import hush_libraries
from twinmerge.towers import is_pair, load_body

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from recipes.data.looks import Look
    from twinmerge.checkpoints import Checkpoint

READ_IN_FULL = 4e9  # bytes of a base up to which a pre-flight reads foreign experts in full


def check(recipe: Recipe) -> Iterator[str]:
    """Compare everything that exists by its headers, and say what would be made; write nothing."""
    # The base first: what is wrong with it would be said of every expert again.
    yield from check_all(
        [partial(check_model, recipe.base), partial(_check_base, recipe), partial(check_options, recipe)]
    )
    base = base_checkpoint(recipe.base)
    given = recipe.given()
    if not recipe.tasks:
        sees = base is not None and reads_images(base.config)
        yield from check_all(
            [
                partial(check_unlabelled, recipe, list(given)),
                *(partial(check_given, recipe, name, given[name], base) for name in given),
                partial(check_routable, recipe.base, (), RecipeError),
                *([partial(check_images_taken, recipe.base, recipe.training.image_size)] if sees else []),
            ]
        )
        yield (
            f"plan: {len(given)} experts, every static merge, a twin, {told_router(recipe)}; no data, so that nothing "
            "is scored"
        )
        return
    yield from check_all(
        [
            *(partial(check_language if task.language else check_task, task) for task in recipe.tasks),
            *(partial(_check_expert, recipe, task, given.get(task.name), base) for task in recipe.tasks),
            # A twin of a language model is tried on a small batch when it is made.
            *(
                [partial(check_routable, recipe.base, tuple(recipe.training.frozen), RecipeError)]
                if recipe.training.model == "encoder"
                else []
            ),
            *(
                [partial(check_images_taken, recipe.base, recipe.training.image_size)]
                if recipe.tasks[0].kind == "images"
                else []
            ),
            *([partial(_check_rows, recipe)] if recipe.of_layers() else []),
        ]
    )
    if trained := [task for task in recipe.tasks if task.name not in given]:
        check_training(recipe.training, recipe.trainer, trained)
    missing = [t for t in recipe.tasks if t.name not in given and not _cached(recipe, t)]
    need = "" if base is None else f", about {(len(missing) + 2) * base.bytes / 1e9:.1f} GB needed"
    yield f"disk: {shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB free in the working folder{need}"
    policy = ", ".join(f"{k} {v}" for k, v in recipe.exclusive.policy().items())
    options = f" with {told(recipe.shared.options)}" if recipe.shared.options else ""
    tried = len(recipe.baselines.grid())
    yield (
        f"plan: shared expert by {recipe.shared.method}{options}, exclusive experts with {policy}, router "
        f"{recipe.router.kind}, {tried} static candidate{'s' * (tried != 1)} tuned on validation"
    )


def check_unlabelled(recipe: Recipe, names: list[str]) -> str:
    """Read the texts, or look at the images, from which the router of a merge without tasks is made.

    Args:
        recipe: Without tasks.
        names: Of its experts.

    Raises:
        RecipeError: When an expert has none, or some cannot be read.
    """
    from twinmerge.unlabelled import pictures_of

    told = []
    for key, by in (("texts", recipe.texts), ("images", recipe.images)):
        if odd := sorted(set(names) ^ set(by)) if by else []:
            raise RecipeError(f"{key}: '{odd[0]}' has none or is no expert; give some for {', '.join(names)}")
        for name, place in by.items():
            try:
                count = len(read_lines(place) if key == "texts" else pictures_of(name, place))
            except (RunError, ValueError) as error:
                raise RecipeError(f"{key}.{name}: {error}") from error
            told.append(f"{count} {key} of {name}")
    return f"router: {', '.join(told) or 'none, since there are no texts and no images'}"


def _check_base(recipe: Recipe) -> str:
    base = check_base(
        recipe.base,
        {"exclusive.rank": recipe.exclusive.rank, "training.lora_rank": recipe.training.lora_rank},
    )
    if base is None:
        return "base: not here as a folder, so that experts are compared with it when the run starts"
    check_kind(recipe.base, recipe.tasks, base.config)
    check_tokens(base.folder, recipe.training, recipe.tasks)
    check_positions(base, recipe.training, recipe.tasks)
    if not recipe.tasks:
        sees = reads_images(base.config)
        if sees and "text_config" in base.config and not is_pair(base):
            raise RecipeError(
                f"base: {recipe.base} reads texts and images together, which no recipe merges; use "
                "twinmerge.merge_folders"
            )
        check_read(recipe, sees)
    return f"base: {len(base.tensors)} tensors, {base.bytes / 1e6:.1f} MB"


def _check_rows(recipe: Recipe) -> str:
    if not is_here(recipe.base):
        return "further rows: the base is not here as a folder, so that its layers are looked at when the run starts"
    return check_layers(recipe, RecipeError)


def _check_expert(recipe: Recipe, task: TaskSource, given: str | None, base: Checkpoint | None) -> str:
    from twinmerge.errors import CheckpointError

    if given:
        return check_given(recipe, task.name, given, base, task)
    where = cached_at(recipe, task)
    if not (where / "expert.json").exists():
        return f"expert {task.name}: to be trained, then cached"
    if fault := expert_damage(where):
        return f"expert {task.name}: to be trained again, since {where} {fault}"
    try:
        line = inspect_expert(where, base)
    except CheckpointError as error:
        advice = f" It is a cache entry: delete {where} to have it made again."
        raise RecipeError(f"experts.{task.name}: {error}{advice}") from error
    return f"expert {task.name}: {line}"


def check_given(recipe: Recipe, name: str, given: str, base: Checkpoint | None, task: TaskSource | None = None) -> str:
    """Check a given expert: by its headers where the finetune recipe made it, else by reading it in full.

    Raises:
        RecipeError: When it is damaged, no fine-tune of the base, cannot be read exactly, or answers other labels.
    """
    from twinmerge.errors import CheckpointError
    from twinmerge.folders import mapped

    where = expert_folder(given)
    if where is None:
        return f"expert {name}: Hub model {given!r}, fetched and compared when the run starts"
    if recipe.vocabulary == "union" and (fault := own_code(where)):  # its tokenizer is read only there
        raise RecipeError(f"experts.{name}: {where} {fault}")
    try:
        line = inspect_expert(where, base, recipe.vocabulary)
        if base is not None and reads_images(base.config):
            _check_sight(recipe, where)
        if base is None or is_own(where):
            return f"expert {name}: {line}"
        if base.bytes > READ_IN_FULL:
            return f"expert {name}: {line}; its answers are compared with its own model's when the run starts"
        if recipe.training.model == "causal":
            return f"expert {name}: {_language_expert(where, base)}"
        expert = read_expert(where, base, base.folder, _model(base.folder), recipe.vocabulary, recipe.labels.get(name))
        if task is not None and recipe.training.heads != "zeroshot":
            if expert.head is None:
                mapped(expert, [])
            elif task.source in ("csv", "jsonl", "parquet", "folder", "idx"):
                mapped(expert, list(load_task(task, recipe.seed).labels))
    except (CheckpointError, RunError) as error:
        raise RecipeError(f"experts.{name}: {error}") from error
    return f"expert {name}: {expert.note}"


def _check_sight(recipe: Recipe, where: Path) -> None:
    """Refuse an expert that was trained on other images than the merge gives it."""
    from recipes.data.looks import check_reader

    hush_libraries()
    if fault := check_reader(where, _look(recipe.base, recipe.training.image_size)):
        raise RunError(f"{where} {fault}")


@functools.cache
def _look(base: str, size: int) -> Look:
    from recipes.data.looks import look_of

    return look_of(base, size)


def _language_expert(where: Path, base: Checkpoint) -> str:
    from twinmerge.language_folder import read_language_folder

    return read_language_folder(where, base.folder, _language_model(base.folder), headers=base).note


@functools.cache
def _language_model(where: Path) -> PreTrainedModel:
    from recipes.merge.causal.train import language_model

    hush_libraries()
    model: PreTrainedModel = language_model(where).eval()
    return model


@functools.cache
def _model(where: Path) -> nn.Module:
    hush_libraries()
    return load_body(where)


def cached_at(recipe: Recipe, task: TaskSource) -> Path:
    """Where the user's cache keeps the expert of a task."""
    return cache_folder(recipe.base, task, recipe.training, recipe.trainer, recipe.seed)


def _cached(recipe: Recipe, task: TaskSource) -> bool:
    return not expert_damage(cached_at(recipe, task))
