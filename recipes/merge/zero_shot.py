"""Give experts that are towers of CLIP the names of their classes for heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    """The experts with zero-shot heads of the whole base, which holds the text model too.

    Args:
        recipe: With the base and the templates.
        tasks: With the names of their classes.
        experts: By task, without heads.

    Raises:
        RunError: When the base reads no texts.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    from twinmerge.zero_shot import zero_shot_head

    where = resolve_model(recipe.base)
    whole = AutoModel.from_pretrained(where, dtype=torch.float32, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    made = {}
    for task in tasks:
        try:
            head = zero_shot_head(whole, tokenizer, task.labels, recipe.training.templates)
        except ValueError as error:
            raise RunError(f"training.heads: {error}") from error
        made[task.name] = replace(experts[task.name], head=head, labels=list(task.labels))
    return made
