"""Whether a base reads what the tasks hold: texts or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.data.language_task import GENERATED
from recipes.data.models import reads_images
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError, RunError

if TYPE_CHECKING:
    from recipes.merge.schema import Training
    from twinmerge.checkpoints import Checkpoint

_TABLES = ("wpe.weight", "embed_positions.weight", "position_embeddings.weight")


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


def check_tokens(folder: Path, training: Training, tasks: Sequence[TaskSource]) -> None:
    """Refuse a `max_length` that the base's tokenizer does not take, for tasks of texts with labels.

    Args:
        folder: Of the base.
        training: Of the recipe.
        tasks: Of the recipe.

    Raises:
        RecipeError: With the field and what is accepted.
    """
    if not tasks or tasks[0].kind == "images" or training.model == "causal":
        return
    from transformers import AutoTokenizer

    from recipes.data.text_module import check_length

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError):
        return  # said where it is used
    try:
        check_length(training.max_length, tokenizer, str(folder))
    except RunError as error:
        raise RecipeError(f"training.max_length: {error}") from error


def check_positions(base: Checkpoint, training: Training, tasks: Sequence[TaskSource]) -> None:
    """Refuse rows and answers that are longer than a language model's table of learned positions.

    Models that compute their positions have no such table and take longer rows.

    Args:
        base: Headers of the base.
        training: Of the recipe.
        tasks: Of the recipe.

    Raises:
        RecipeError: With the fields and what is accepted.
    """
    tables = [shape[0] for name, (_, shape) in base.tensors.items() if name.endswith(_TABLES)]
    if training.model != "causal" or not tables:
        return
    told = [base.config.get(key) for key in ("n_positions", "max_position_embeddings")]
    most = min(tables + [n for n in told if isinstance(n, int)])  # some tables have rows of their own beside
    answers = [t.language.generation.max_new_tokens for t in tasks if t.language and t.language.metric in GENERATED]
    longest = max(answers, default=0)
    if training.max_length + longest > most:
        behind = f" and answers of up to {longest} tokens (max_new_tokens) behind its rows" if longest else ""
        raise RecipeError(
            f"training.max_length: expected at most {most - longest} for {base.folder}, which has {most} "
            f"positions{behind}, got {training.max_length}"
        )
