"""The test inputs of a merge run as a table: what is known of each, and what experts, twin and students lose on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from recipes.data.image_tasks import Picture
from recipes.data.language_task import NO_COLUMNS
from recipes.data.models import resolve_model
from recipes.data.own_columns import own_columns
from recipes.data.sources import load_task
from recipes.data.splits import TextTask
from recipes.errors import RecipeError, RunError
from recipes.explain.losses import entropy, losses
from recipes.explain.merged_language import language_rows
from recipes.explain.places import expert_place, student_folder
from recipes.front.parse import parse
from recipes.merge.evaluation import Model, evaluation_device, with_experts
from recipes.merge.experts import base_checkpoint, read_expert
from recipes.merge.recipe import mixed
from recipes.merge.schema import Recipe
from recipes.merge.zero_shot import with_zero_shot
from recipes.running.quiet import hush_libraries
from twinmerge.towers import load_body

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from twinmerge.folders import Expert
    from twinmerge.twin_mixin import TwinMixin
    from twinmerge.twin_parts import Head

__all__ = ["read_merged"]

Row = dict[str, object]


def read_merged(
    folder: Path,
    say: Callable[[str], None],
    students: Mapping[str, Path] | None = None,
    *,
    examples: bool = False,
    columns: Sequence[str] = (),
) -> pd.DataFrame:
    """Run the experts, the routed twin and its students over the test inputs of all tasks of a merge.

    Args:
        folder: Run folder of a finished merge.
        say: Called with a line of progress.
        students: Folders of dense models with the same heads, by name, as `recipe: distill` saves them; of a merge of
            language models plain causal ones.
        examples: Also what each model answers, and the text.
        columns: Further columns of the user's own files; a task that has none of a name leaves it empty. None for
            language models.

    Returns:
        A frame with a row for each test input: `task`, `source` (of the task), `label`, `words` (of the text; not of
        images), `confidence` (of the expert's answer), `entropy` (of its probabilities, as a share of the largest
        possible one), `router_confidence` (the largest weight of the twin's mixture), for each of `expert`, `twin` and
        the students the columns `<model>_zero_one`, `<model>_brier` and `<model>_log`, and the further columns. With
        examples also `<model>_answer`, in the form of `label`, and `text`; of an image that is its file, or its place
        in the data set.

        A row of language models is a prompt with the completion that is right: `label` is the task's name, as there are
        no classes, and `words` and `text` are the prompt's. `confidence` is the mean probability that the expert gives
        to the completion's tokens, and `entropy` the mean over its next-token distributions there. The losses `log`
        (nats a token) and `brier` are means over the completion's tokens, each read after those before it. `zero_one`
        is 1 unless each of them, the end included, is the model's first choice, which is what greedy generation says;
        in tasks of multiple choice it is 1 where another choice is the likeliest. Answers are the chosen choice, or the
        tokens that the model puts first.

    Raises:
        RunError: When the run is damaged, was made of experts that are gone, or has a regression task, a student has
            other heads or tokens, or no task has a further column.
    """
    import pandas as pd

    hush_libraries()
    try:
        recipe = parse(folder / "recipe.yaml").recipe
    except RecipeError as error:
        raise RunError(f"data.path: {error}") from error
    device = evaluation_device(recipe.trainer.accelerator)
    if recipe.training.model == "causal":
        if columns:
            raise RunError(f"data.columns: {NO_COLUMNS}, got {list(columns)}; leave them out")
        return pd.DataFrame(language_rows(folder, recipe, say, students or {}, device, examples=examples))
    tasks = [load_task(source, recipe.seed) for source in recipe.tasks]
    if numeric := [task.name for task in tasks if not task.labels]:
        raise RunError(f"data.path: task {numeric[0]!r} is a regression, and losses are compared for classes only")
    try:
        beside = own_columns(recipe.tasks, tasks, columns)
    except RunError as error:
        raise RunError(f"data.columns: {error}") from error
    models, twin = _models(folder, recipe, tasks, students or {}, device)
    known = [
        row for task, source in zip(tasks, recipe.tasks, strict=True) for row in _known(task, source.source, examples)
    ]
    say(f"scoring {len(known)} test inputs with {len(tasks)} experts, the twin and {len(students or {})} students")
    data = mixed(recipe, tasks, folder / "merged")
    data.setup("test")
    rows: list[Row] = [{} for _ in known]
    with torch.inference_mode():
        for positions, batch in data.by_length("test"):
            inputs = {key: value.to(device) for key, value in batch.items() if key not in ("labels", "task")}
            asked = [tasks[i].name for i in batch["task"].tolist()]
            mixture = twin.route(**inputs)
            logits = {name: model(inputs, asked, mixture).double().cpu() for name, model in models.items()}
            for number, at in enumerate(positions):
                task, truth = tasks[int(batch["task"][number])], int(batch["labels"][number])
                found = {name: value[number, : len(task.labels)] for name, value in logits.items()}
                routed = {"router_confidence": float(mixture[number].max())}
                rows[at] = known[at] | _confidence(found["expert"]) | routed | dict(_losses(found, truth))
                if examples:
                    answers = {f"{name}_answer": int(row.argmax()) for name, row in found.items()}
                    rows[at] |= {name: f"{task.name}: {task.labels[place]}" for name, place in answers.items()}
    return pd.DataFrame(rows).assign(**beside)


def _known(task: TextTask, source: str, examples: bool) -> Iterator[Row]:
    """What is known of every test input before any model is asked."""
    for text, label in zip(task.test.texts, task.test.labels, strict=True):
        row: Row = {"task": task.name, "source": source, "label": f"{task.name}: {task.labels[int(label)]}"}
        if isinstance(text, Picture):
            shown = text.name
        else:
            shown = text if isinstance(text, str) else " ".join(cast("tuple[str, str]", text))
            row["words"] = len(shown.split())
        yield row | ({"text": shown} if examples else {})


Asked = Callable[[dict[str, "Tensor"], list[str], "Tensor"], "Tensor"]  # inputs, tasks, the twin's mixture -> logits


def _models(
    folder: Path, recipe: Recipe, tasks: Sequence[TextTask], students: Mapping[str, Path], device: torch.device
) -> tuple[dict[str, Asked], TwinMixin]:
    """Expert, twin and students by name, on the device, each called with inputs, tasks and the twin's mixture."""
    import twinmerge
    from twinmerge.errors import CheckpointError

    whole = _experts(recipe, tasks, device)
    loaded: dict[str, TwinMixin] = {}
    for name, given in {"twin": folder / "merged", **students}.items():
        where = "data.path" if name == "twin" else f"data.students.{name}"
        try:
            loaded[name] = cast(
                "TwinMixin", twinmerge.load(student_folder(given), dtype=torch.float32).eval().to(device)
            )
        except CheckpointError as error:
            raise RunError(f"{where}: {error}") from error
        for task in tasks:
            head = cast("Head | None", dict(loaded[name].heads.items()).get(task.name))
            if head is None or list(head.label_names or ()) != list(task.labels):
                raise RunError(
                    f"{where}: {given} has no head of task {task.name!r} with its classes; give one of this merge"
                )
    twin = loaded["twin"]

    def routed(inputs: dict[str, Tensor], asked: list[str], mixture: Tensor) -> Tensor:
        return twin.classify(**inputs, head=asked, router_weights=mixture).logits

    def dense(model: TwinMixin) -> Asked:
        return lambda inputs, asked, _: model.classify(**inputs, head=asked).logits

    return {
        "expert": lambda inputs, asked, _: whole(inputs, asked),
        "twin": routed,
        **{name: dense(loaded[name]) for name in students},
    }, twin


def _experts(recipe: Recipe, tasks: Sequence[TextTask], device: torch.device) -> Model:
    """The experts as one model that is told the task."""
    from twinmerge.errors import CheckpointError
    from twinmerge.folders import mapped
    from twinmerge.merging import set_parameters

    where = resolve_model(recipe.base)
    model, base = load_body(where), base_checkpoint(recipe.base)
    read: dict[str, Expert] = {}
    try:
        for task, source in zip(tasks, recipe.tasks, strict=True):
            place = expert_place(recipe, source)
            read[task.name] = read_expert(place, base, where, model, recipe.vocabulary, recipe.labels.get(task.name))
        if recipe.training.heads == "zeroshot":
            read = with_zero_shot(recipe, list(tasks), read)
        read = {task.name: mapped(read[task.name], list(task.labels)) for task in tasks}
    except CheckpointError as error:
        raise RunError(f"data.path: {error}") from error
    experts: dict[str, nn.Module] = {}
    heads: dict[str, Head] = {}
    for name, expert in read.items():
        experts[name] = set_parameters(copy.deepcopy(model), expert.state).eval().to(device)
        heads[name] = cast("Head", expert.head).to(device)
    return with_experts(experts, heads)


def _losses(found: Mapping[str, Tensor], truth: int) -> Iterator[tuple[str, float]]:
    """The losses of every model on one input, by column."""
    for name, logits in found.items():
        for loss, value in losses(logits[None], torch.tensor([truth])).items():
            yield f"{name}_{loss}", float(value)


def _confidence(logits: Tensor) -> Row:
    return {"confidence": float(logits.softmax(-1).max()), "entropy": float(entropy(logits[None]))}
