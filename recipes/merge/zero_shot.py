"""Give experts that are towers of CLIP the names of their classes for heads."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from recipes.data.models import resolve_model
from recipes.errors import RunError

if TYPE_CHECKING:
    from recipes.data.splits import TextTask
    from recipes.merge.schema import Recipe
    from twinmerge.folders import Expert


def unnamed(task: TextTask) -> str:
    """A sentence about a task whose classes have numbers for names; empty where they have names.

    Args:
        task: With the names of its classes.
    """
    if not all(label.strip().lstrip("-").isdigit() for label in task.labels):
        return ""
    return (
        f"task {task.name}: its classes are called {', '.join(task.labels[:3])} and so on, and a zero-shot head reads "
        "these numbers as names, which is right for digits alone; give a data set that names its classes"
    )


def with_zero_shot(recipe: Recipe, tasks: Sequence[TextTask], experts: Mapping[str, Expert]) -> dict[str, Expert]:
    """The experts with zero-shot heads: of the whole base, which holds the text model too, or of a whole expert.

    Args:
        recipe: With the base, the experts and the templates.
        tasks: With the names of their classes.
        experts: By task, without heads.

    Raises:
        RunError: When the base reads no texts.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    from recipes.merge.experts import expert_folder
    from twinmerge.headers import inspect_checkpoint
    from twinmerge.local import local_folder
    from twinmerge.towers import reads_texts
    from twinmerge.zero_shot import zero_shot_head

    where = resolve_model(recipe.base)
    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    whole = functools.cache(partial(AutoModel.from_pretrained, dtype=torch.float32, trust_remote_code=False))
    given = recipe.given()
    own = {source.name: source.templates for source in recipe.tasks}
    made = {}
    for task in tasks:
        place = expert_folder(given[task.name]) or local_folder(given[task.name])
        model = whole(place if reads_texts(inspect_checkpoint(place)) else where).eval()
        try:
            head = zero_shot_head(model, tokenizer, task.labels, own[task.name] or recipe.training.templates)
        except ValueError as error:
            raise RunError(f"training.heads: {error}") from error
        made[task.name] = replace(experts[task.name], head=head, labels=list(task.labels))
    return made
