"""Merge given experts without any data: every static merge, and a twin, its router from texts or images or none."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from recipes.data.models import resolve_model
from recipes.errors import RecipeError, RunError
from recipes.merge.baselines import seeded
from recipes.merge.experts import base_checkpoint, expert_folder, read_expert, stored_format_of
from recipes.running.quiet import hush_libraries
from twinmerge.methods import compared
from twinmerge.towers import load_body

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from recipes.data.looks import Look
    from recipes.data.models import Reader
    from recipes.merge.schema import Recipe
    from recipes.running.folder import RunFolder
    from twinmerge.folders import Expert
    from twinmerge.twin_mixin import TwinMixin
    from twinmerge.twin_parts import Router


def sees(model: PreTrainedModel) -> bool:
    """Whether a body reads images."""
    return bool(model.main_input_name == "pixel_values")


def check_read(recipe: Recipe, images: bool) -> None:
    """Refuse texts for the router of a base that reads images, and the other way round.

    Args:
        recipe: Without tasks.
        images: What the base reads.

    Raises:
        RecipeError: Where another kind is given.
    """
    given, other = ("texts", "images") if images else ("images", "texts")
    if getattr(recipe, given):
        raise RecipeError(
            f"{given}: expected {other}, which the base {recipe.base} reads; give {other} of every expert"
        )


def told_router(recipe: Recipe) -> str:
    """Which router a merge without tasks makes, and from what."""
    given = "texts" if recipe.texts else "images" if recipe.images else ""
    return f"router {recipe.router.kind} from {given}" if given else "no router: a forward takes router_weights"


def read_all(
    recipe: Recipe, folder: RunFolder, model: PreTrainedModel, given: Mapping[str, str]
) -> tuple[dict[str, Expert], Path | str]:
    """Read all experts, fit their vocabularies to each other, and say how each was read.

    Args:
        recipe: With the declared labels and vocabulary.
        folder: Run folder, for the log, and for the tokenizer of a union.
        model: The base; its embeddings grow where the vocabulary does.
        given: Task name -> folder or Hub name.

    Returns:
        The experts by task, and the folder or Hub name of their tokenizer.

    Raises:
        RunError: For one that cannot be read exactly.
    """
    from recipes.data.looks import check_reader, look_of
    from twinmerge.errors import CheckpointError
    from twinmerge.local import local_folder
    from twinmerge.vocabulary import fit_vocabulary

    where = resolve_model(recipe.base)
    look = look_of(recipe.base, recipe.training.image_size) if sees(model) else None
    experts: dict[str, Expert] = {}
    places: dict[str, Path] = {}
    for name, one in given.items():
        try:
            places[name] = expert_folder(one) or local_folder(one)
            if look is not None and (fault := check_reader(places[name], look)):
                raise RunError(f"experts.{name}: {places[name]} {fault}")
            base, labels = base_checkpoint(recipe.base), recipe.labels.get(name)
            experts[name] = read_expert(places[name], base, where, model, recipe.vocabulary, labels)
        except CheckpointError as error:
            raise RunError(f"experts.{name}: {error}") from error
        folder.say(f"expert {name}: {experts[name].note}")
    try:
        experts, tokenizer = fit_vocabulary(model, experts, recipe.vocabulary, where, places)
    except CheckpointError as error:
        raise RunError(f"experts: {error}") from error
    if tokenizer is None:
        return experts, where
    tokenizer.save_pretrained(folder.path / "tokenizer")
    return experts, folder.path / "tokenizer"


def run_alone(recipe: Recipe, folder: RunFolder) -> None:
    """Write every static merge of the given experts, and the twin; nothing is scored, for there is no data."""
    import torch

    from recipes.data.looks import look_of, saved_reader
    from twinmerge.artefact import save
    from twinmerge.merging import set_parameters, shared_expert
    from twinmerge.one_call import combine

    hush_libraries()
    where = resolve_model(recipe.base)
    model = load_body(where)
    check_read(recipe, sees(model))
    look = look_of(recipe.base, recipe.training.image_size) if sees(model) else None
    experts, tokenizer = read_all(recipe, folder, model, recipe.given())
    reader = saved_reader(tokenizer, look, model)
    states = {task: expert.state for task, expert in experts.items()}
    for method in dict.fromkeys([*compared(), recipe.shared.method]):
        options = recipe.shared.options if method == recipe.shared.method else {}
        state = shared_expert(model, states, method, **seeded(method, options, recipe.seed))
        target = folder.path / "static" / method
        set_parameters(copy.deepcopy(model), state).save_pretrained(target)
        if reader is not None:
            reader.save_pretrained(target)
    shared, policy, dense = recipe.shared, recipe.exclusive.policy(), recipe.exclusive.dense
    twin = combine(model, experts, shared.method, policy, dense=dense, seed=recipe.seed, **shared.options)
    twin.to(getattr(torch, stored_format_of(recipe, where)))
    twin.router_reads = recipe.router.features
    twin.router = _router(recipe, twin, reader, look)
    card = {"base": recipe.base, "sources": {task: expert.digest for task, expert in experts.items()}}
    save(twin, folder.path / "merged", tokenizer=reader, card=card, overwrite=True)
    rows = [
        {
            "expert": task,
            "labels": ", ".join(expert.labels or []),
            "largest difference": expert.error,
            "read as": expert.note,
        }
        for task, expert in experts.items()
    ]
    summary = f"{len(experts)} experts in one twin, {told_router(recipe)}; static merges beside it."
    kind = None if twin.router is None else recipe.router.kind
    folder.finish({"experts": rows, "router": kind}, {"Experts": rows}, summary=summary)


def _router(recipe: Recipe, twin: TwinMixin, reader: Reader | None, look: Look | None) -> Router | None:
    """The router from the texts or the images that the recipe gives; None where it gives neither."""
    from recipes.data.image_tasks import Picture
    from twinmerge.unlabelled import pictures_of, router_from_images, router_from_texts

    kind, seed = recipe.router.kind, recipe.seed
    if recipe.texts:
        read = {task: read_lines(recipe.texts[task]) for task in twin.tasks}
        return router_from_texts(twin, kind, cast("PreTrainedTokenizerBase", reader), read, seed)
    if look is None or not recipe.images:
        return None
    pictures = {task: [Picture(str(file)) for file in pictures_of(task, recipe.images[task])] for task in twin.tasks}
    return router_from_images(twin, kind, {task: map(look.pixels, files) for task, files in pictures.items()}, seed)


def read_lines(file: str) -> list[str]:
    """The texts of a file, one a line.

    Raises:
        RunError: When it cannot be read or holds fewer than two.
    """
    path = Path(file).expanduser()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise RunError(f"texts: {path} cannot be read ({error}); give a file with one text a line") from error
    if len(lines) < 2:
        raise RunError(f"texts: {path} has {len(lines)} texts; give at least two")
    return lines
