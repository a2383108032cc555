"""The test inputs of a merge run as a table: what is known of each, and what its expert and the twin lose on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn

from recipes.data.models import resolve_model
from recipes.data.sources import load_task
from recipes.data.splits import TextTask
from recipes.data.text_module import MixedTextDataModule
from recipes.errors import RecipeError, RunError
from recipes.front.parse import parse
from recipes.merge.checks import cached_at
from recipes.merge.evaluation import evaluation_device, with_experts
from recipes.merge.experts import base_checkpoint, expert_folder, read_expert
from recipes.merge.schema import Recipe
from recipes.running.quiet import hush_libraries

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from twinmerge.twin_mixin import TwinMixin
    from twinmerge.twin_parts import Head

__all__ = ["read_merged"]


def read_merged(folder: Path, say: Callable[[str], None]) -> pd.DataFrame:
    """Run the experts and the routed twin of a merge over the test inputs of all its tasks.

    Args:
        folder: Run folder of a finished merge.
        say: Called with a line of progress.

    Returns:
        A frame with a row for each test input: `task`, `label`, `words` (of the text), `confidence` (of the expert's
        answer), `entropy` (of its probabilities, as a share of the largest possible one), and for each of `expert` and
        `twin` the columns `<model>_zero_one`, `<model>_brier` and `<model>_log`.

    Raises:
        RunError: When the run is damaged, was made of experts that are gone, or has a regression task.
    """
    import pandas as pd

    hush_libraries()
    try:
        recipe = parse(folder / "recipe.yaml").recipe
    except RecipeError as error:
        raise RunError(f"data.path: {error}") from error
    if images := [source.name for source in recipe.tasks if source.kind == "images"]:
        raise RunError(f"data.path: task {images[0]!r} is of images, and merges of texts are explained")
    tasks = [load_task(source, recipe.seed) for source in recipe.tasks]
    if numeric := [task.name for task in tasks if not task.labels]:
        raise RunError(f"data.path: task {numeric[0]!r} is a regression, and losses are compared for classes only")
    where = resolve_model(recipe.base)
    experts, heads, twin = _models(folder, recipe, tasks)
    device = evaluation_device(recipe.trainer.accelerator)
    for part in (*experts.values(), *heads.values(), twin):
        part.to(device)
    whole = with_experts(experts, heads)
    data = MixedTextDataModule(
        tasks,
        where,
        batch_size=recipe.training.batch_size,
        max_length=recipe.training.max_length,
        eval_batch_size=recipe.eval_batch_size,
    )
    data.setup("test")
    texts = [text for task in tasks for text in task.test.texts]
    names = [task.name for task in tasks for _ in task.test.texts]
    whole_texts = [text if isinstance(text, str) else " ".join(cast("tuple[str, str]", text)) for text in texts]
    words = [len(text.split()) for text in whole_texts]
    counts = {task.name: len(task.labels) for task in tasks}
    say(f"scoring {len(texts)} test inputs with {len(experts)} experts and the twin")
    rows: list[dict[str, object]] = [{} for _ in texts]
    with torch.inference_mode():
        for positions, batch in data.by_length("test"):
            asked = [names[i] for i in positions]
            inputs = {key: value.to(device) for key, value in batch.items() if key not in ("labels", "task")}
            logits = {"expert": whole(inputs, asked), "twin": twin.classify(**inputs, head=asked).logits}
            for number, at in enumerate(positions):
                truth, outputs = int(batch["labels"][number]), counts[asked[number]]
                found = {key: value[number, :outputs].double().cpu() for key, value in logits.items()}
                known = _confidence(found["expert"])
                losses = {f"{key}_{loss}": value for key, row in found.items() for loss, value in _losses(row, truth)}
                task = tasks[int(batch["task"][number])]
                rows[at] = {
                    "task": task.name,
                    "label": f"{task.name}: {task.labels[truth]}",
                    "words": words[at],
                    **known,
                    **losses,
                }
    return pd.DataFrame(rows)


def _models(
    folder: Path, recipe: Recipe, tasks: Sequence[TextTask]
) -> tuple[dict[str, nn.Module], dict[str, Head], TwinMixin]:
    """The experts and their heads by task, and the twin."""
    from transformers import AutoModel

    import twinmerge
    from twinmerge.errors import CheckpointError
    from twinmerge.folders import mapped
    from twinmerge.local import local_folder
    from twinmerge.merging import set_parameters

    where = resolve_model(recipe.base)
    model = AutoModel.from_pretrained(where, trust_remote_code=False).eval()
    base = base_checkpoint(recipe.base)
    experts: dict[str, nn.Module] = {}
    heads: dict[str, Head] = {}
    try:
        for task, source in zip(tasks, recipe.tasks, strict=True):
            given = recipe.given().get(task.name)
            place = (expert_folder(given) or local_folder(given)) if given else cached_at(recipe, source)
            read = read_expert(place, base, where, model, recipe.vocabulary, recipe.labels.get(task.name))
            expert = mapped(read, list(task.labels))
            experts[task.name] = set_parameters(copy.deepcopy(model), expert.state).eval()
            heads[task.name] = cast("Head", expert.head)
        twin = twinmerge.load(folder / "merged")
    except CheckpointError as error:
        raise RunError(f"data.path: {error}") from error
    twin.eval()
    return experts, heads, twin


def _losses(logits: Tensor, truth: int) -> list[tuple[str, float]]:
    chance = logits.softmax(-1)
    brier = (chance.square().sum() - 2 * chance[truth] + 1) / 2
    return [
        ("zero_one", float(logits.argmax() != truth)),
        ("brier", float(brier)),
        ("log", float(F.cross_entropy(logits[None], torch.tensor([truth])))),
    ]


def _confidence(logits: Tensor) -> dict[str, float]:
    chance = logits.softmax(-1)
    entropy = -(chance * logits.log_softmax(-1)).sum() / torch.tensor(float(len(chance))).log()
    return {"confidence": float(chance.max()), "entropy": float(entropy)}
