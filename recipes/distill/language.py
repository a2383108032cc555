"""What a distill recipe of language asks of its teacher before and during training: samples, logits, other tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from recipes.distill.data import network_places
from recipes.distill.networks import told
from recipes.distill.schema import Recipe, Values
from recipes.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from distill.networks import Frozen
    from distill.tokens import TokenData
    from recipes.running.folder import RunFolder

__all__ = ["NO_LIMIT", "answer", "check_answers"]

NO_LIMIT = 2**31  # ids that a cache may keep, as far as can be told without the model


def check_answers(recipe: Recipe) -> Iterator[str]:
    """Refuse samples and teachers that no training of language could use, and say what is asked of the teacher.

    Raises:
        RecipeError: With the first.
    """
    from distill.cross_tokenizer import check_apart
    from distill.sampling import check_samples

    samples, teacher = recipe.samples or {}, recipe.teacher
    terms = {name: recipe.terms(name) for name in recipe.methods}
    with told(RecipeError, "samples"):
        check_samples(samples, terms, recipe.kind)
    if recipe.kind != "language":
        return
    with told(RecipeError, "methods"):
        check_apart(terms)
    if teacher.others and recipe.chunk:
        raise RecipeError(
            f"teacher.others: what {1 + len(teacher.others)} teachers say together is made of whole logits; set "
            "chunk to 0"
        )
    if teacher.others and (recipe.apart or any(shares.get("teacher") for shares in samples.values())):
        raise RecipeError(
            "teacher.others: several teachers have no common tokenizer for uld and say no text together (samples of "
            "the teacher); give one teacher"
        )
    if recipe.apart and (teacher.train or teacher.keep.kind == "top"):
        raise RecipeError(
            "methods: uld compares whole distributions with a teacher that reads tokens of its own, so it can be "
            "neither trained on the student's (teacher.train) nor kept (teacher.keep); leave both out"
        )
    sampled = {name: shares for name, shares in samples.items() if any(shares.values())}
    if not sampled:
        yield from _kept(recipe)
        return
    if recipe.prompt_tokens > recipe.data.length - 2:
        raise RecipeError(
            f"prompt_tokens: {recipe.prompt_tokens} of a block of {recipe.data.length} tokens leave nothing to say; "
            f"give at most {recipe.data.length - 2}"
        )
    if teacher.keep.kind == "top":
        raise RecipeError(
            f"samples: the teacher answers once, about the data (teacher.keep), but {', '.join(sampled)} asks it about "
            "samples; leave teacher.keep or samples out"
        )
    if not teacher.model:
        raise RecipeError("samples: they need a teacher that reads or says them, got none; give teacher.model")
    yield "samples: " + "; ".join(
        f"{name} reads " + ", ".join(f"{key} {share:g}" for key, share in shares.items() if share)
        for name, shares in sampled.items()
    )
    yield from _kept(recipe)


def _kept(recipe: Recipe) -> Iterator[str]:
    teacher = recipe.teacher
    if teacher.keep.kind == "top":
        who = f"the server {teacher.server} ({teacher.served})" if teacher.server else teacher.model
        yield f"teacher: {who} answers once, the {teacher.keep.kept} largest of every token are kept"


def answer(
    recipe: Recipe, data: TokenData, teacher: Frozen | None, folder: RunFolder, students: Sequence[nn.Module]
) -> None:
    """Let the teacher answer what is asked of it once, into `cache/` of the run folder, and hand the answers on.

    Args:
        recipe: Of language.
        data: Its data; gets the answers beside its training blocks.
        teacher: The teacher, where there is one.
        folder: Of the run.
        students: Networks that read what the teacher says.
    """
    import torch
    from transformers import AutoTokenizer

    from distill.answered import sampled_by, served_by, top_of, two_tokenizers
    from distill.sampling import known_ids
    from distill.served import Server

    data.setup()
    if teacher is not None and recipe.trainer.accelerator != "cpu" and torch.cuda.is_available():
        teacher.network.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))
    blocks, keep, cache = data.splits["train"].tokens, recipe.teacher.keep, folder.path / "cache"
    name, seed = recipe.teacher.model, recipe.seed
    common = min(known_ids(network) for network in students)
    if any(shares.get("teacher") for shares in (recipe.samples or {}).values()):
        live, temperature = cast("Frozen", teacher), recipe.sampling_temperature
        known = min(common, known_ids(live.network))
        said: Values = {
            "name": name,
            "prompt": recipe.prompt_tokens,
            "temperature": temperature,
            "seed": seed,
            "common": known,
        }
        data.answers.append(sampled_by(live, blocks, cache / "samples", **said))
    if recipe.teacher.server:
        server = Server(recipe.teacher.server, recipe.teacher.served, keep.kept)
        named = f"{recipe.teacher.server} {recipe.teacher.served}"
        kept: Values = {"name": named, "kept": keep.kept, "seed": seed, "common": common}
        data.answers.append(served_by(server.top, blocks, cache / "top", **kept))
    elif keep.kind == "top":
        kept = {"name": name, "form": keep, "seed": seed, "common": common}
        data.answers.append(top_of(cast("Frozen", teacher), blocks, cache / "top", **kept))
    if recipe.apart:
        places = network_places(recipe)
        theirs, own = (AutoTokenizer.from_pretrained(places[i], trust_remote_code=False) for i in (0, -1))
        data.answers.append(two_tokenizers(theirs, own))
