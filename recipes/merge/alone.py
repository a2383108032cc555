"""Merge given experts without any data: every static merge, and a twin with a router from texts or without one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.data.models import resolve_model
from recipes.errors import RunError
from recipes.merge.baselines import seeded
from recipes.merge.experts import base_checkpoint, expert_folder, read_expert, stored_format_of
from recipes.running.quiet import hush_libraries
from twinmerge.methods import compared

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from recipes.merge.schema import Recipe
    from recipes.running.folder import RunFolder
    from twinmerge.folders import Expert


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
    images = bool(recipe.tasks) and recipe.tasks[0].kind == "images"
    look = look_of(recipe.base, recipe.training.image_size) if images else None
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
    from transformers import AutoModel, AutoTokenizer

    from twinmerge.artefact import save
    from twinmerge.merging import set_parameters, shared_expert
    from twinmerge.one_call import combine, router_from_texts

    hush_libraries()
    where = resolve_model(recipe.base)
    model = AutoModel.from_pretrained(where, dtype=torch.float32, trust_remote_code=False).eval()
    experts, tokenizer = read_all(recipe, folder, model, recipe.given())
    words = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    states = {task: expert.state for task, expert in experts.items()}
    for method in dict.fromkeys([*compared(), recipe.shared.method]):
        options = recipe.shared.options if method == recipe.shared.method else {}
        state = shared_expert(model, states, method, **seeded(method, options, recipe.seed))
        target = folder.path / "static" / method
        set_parameters(copy.deepcopy(model), state).save_pretrained(target)
        words.save_pretrained(target)
    shared, policy, dense = recipe.shared, recipe.exclusive.policy(), recipe.exclusive.dense
    twin = combine(model, experts, shared.method, policy, dense=dense, seed=recipe.seed, **shared.options)
    twin.to(getattr(torch, stored_format_of(recipe, where)))
    twin.router_reads = recipe.router.features
    if recipe.texts:
        read = {task: read_lines(recipe.texts[task]) for task in experts}
        twin.router = router_from_texts(twin, recipe.router.kind, words, read, recipe.seed)
    card = {"base": recipe.base, "sources": {task: expert.digest for task, expert in experts.items()}}
    save(twin, folder.path / "merged", tokenizer=words, card=card, overwrite=True)
    rows = [
        {
            "expert": task,
            "labels": ", ".join(expert.labels or []),
            "largest difference": expert.error,
            "read as": expert.note,
        }
        for task, expert in experts.items()
    ]
    router = f"router {recipe.router.kind} from texts" if recipe.texts else "no router: give router_weights"
    summary = f"{len(experts)} experts in one twin, {router}; static merges beside it."
    folder.finish(
        {"experts": rows, "router": recipe.router.kind if recipe.texts else None}, {"Experts": rows}, summary=summary
    )


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
