"""Rows of the merge table for static merges that look at the tasks' inputs: Fisher, RegMean and AdaMerging.

Fisher information and the Gram matrices of RegMean come from training inputs, of which no label is read. AdaMerging
learns its coefficients on the validation inputs, without their labels; the paper takes the test inputs, which here only
report.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch.func import functional_call

from recipes.errors import RunError
from recipes.merge.evaluation import evaluate, with_heads
from recipes.merge.static import static
from twinmerge.functional.adamerging import adamerging
from twinmerge.functional.fisher import fisher
from twinmerge.functional.regmean import regmean
from twinmerge.gathering import fisher_information, input_grams
from twinmerge.merging import set_parameters, shared_expert
from twinmerge.states import states_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipes.merge.evaluation import Scores
    from recipes.merge.rows import Judge
    from recipes.merge.schema import Recipe

States = Mapping[str, Mapping[str, "Tensor"]]
Merged = dict[str, "Tensor"]
Tuned = dict[str, tuple[float, dict[str, float]]]
OF_LINEAR_LAYERS = ("regmean", "smile", "arrow")
SHRINKS = (0.1, 0.5, 0.9)


def check_linear(recipe: Recipe, model: nn.Module) -> None:
    """Refuse, before anything is trained, a row that is made of linear layers for a model that has none.

    Raises:
        RunError: With the row.
    """
    from torch import nn

    if any(isinstance(module, nn.Linear) for module in model.modules()):
        return
    for key, names in (("data", recipe.baselines.data), ("dynamic", recipe.baselines.dynamic)):
        if found := [name for name in names if name in OF_LINEAR_LAYERS]:
            raise RunError(
                f"baselines.{key}: {found[0]} merges linear layers, and the base {recipe.base} has none; leave it out"
            )


def all_static(judge: Judge, model: nn.Module, states: States, held: Scores) -> tuple[Recipe, Tuned, dict[str, Scores]]:
    """The recipe with its shared expert tuned, the best candidate of every static merge, and their rows."""
    best, rows = static(judge, model, states, held)
    recipe = judge.recipe.with_shared(best, judge.folder.say)
    looked, more = with_data(judge, model, states, held)
    return recipe, best | looked, rows | more


def with_data(judge: Judge, model: nn.Module, states: States, held: Scores) -> tuple[Tuned, dict[str, Scores]]:
    """The methods that the recipe asks for: the best candidate of each on validation, and their rows.

    Args:
        judge: What the rows are measured by.
        model: The base; left as it is.
        states: Task -> the expert's parameters.
        held: The experts on validation, to which scores are normalised.
    """
    best: Tuned = {}
    rows: dict[str, Scores] = {}
    work = copy.deepcopy(model)
    for name in judge.recipe.baselines.data:
        found: list[tuple[float, dict[str, float], Merged]] = []
        for options, merged in _MERGES[name](judge, model, states):
            answer = judge.precise(with_heads(set_parameters(work, merged), judge.heads))
            steps = len(judge.batches["validation"])
            with judge.folder.phase(f"validation: {name}", steps) as progress:
                score = evaluate(answer, judge.tasks, judge.batches["validation"], progress.advance, judge.device)
            found.append((score.normalised(held), options, merged))
        score_of, chosen, merged = max(found, key=lambda one: one[0])
        best[name] = (score_of, chosen)
        rows[name] = judge.score(name, with_heads(set_parameters(work, merged), judge.heads))
    return best, rows


def inputs_of(judge: Judge, split: str, index: int, most: int) -> list[dict[str, Tensor]]:
    """Up to so many inputs of one task, in batches on the device; no label among them."""
    found, left = [], most
    for _, batch in judge.data.by_length(split):
        mine = (batch["task"] == index).nonzero().flatten()[:left]
        if len(mine):
            found.append({k: v[mine].to(judge.device) for k, v in batch.items() if k not in ("labels", "task")})
            left -= len(mine)
    return found


def _experts(model: nn.Module, states: States) -> Iterator[tuple[int, str, nn.Module]]:
    for index, (task, state) in enumerate(states.items()):
        yield index, task, set_parameters(copy.deepcopy(model), state)


def _fisher(judge: Judge, model: nn.Module, states: States) -> Iterator[tuple[dict[str, float], Merged]]:
    information = []
    for index, task, expert in _experts(model, states):
        rows = [
            {k: v[row : row + 1] for k, v in batch.items()}
            for batch in inputs_of(judge, "train", index, judge.recipe.baselines.data_items)
            for row in range(len(next(iter(batch.values()))))
        ]
        parameters = {name: value.requires_grad_() for name, value in expert.named_parameters()}
        with judge.folder.phase(f"Fisher information: {task}", len(rows)) as progress:
            answers = (partial(_logits, judge, task, expert, row) for row in progress.track(rows))
            information.append(fisher_information(parameters, answers))
    yield {}, shared_expert(model, states, fisher, information=information)


def _logits(judge: Judge, task: str, expert: nn.Module, row: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = judge.heads[task](states_of(expert, expert(**row)), row.get("attention_mask"))
    return logits[0]


def _regmean(judge: Judge, model: nn.Module, states: States) -> Iterator[tuple[dict[str, float], Merged]]:
    grams = []
    for index, task, expert in _experts(model, states):
        batches = inputs_of(judge, "train", index, judge.recipe.baselines.data_items)
        with judge.folder.phase(f"Gram matrices: {task}", len(batches)) as progress:
            runs = ((partial(expert, **batch), batch.get("attention_mask")) for batch in progress.track(batches))
            grams.append(input_grams(expert, runs))
    for shrink in SHRINKS:
        yield {"shrink": shrink}, shared_expert(model, states, regmean, inputs=grams, shrink=shrink)


def _adamerging(
    layers: bool, judge: Judge, model: nn.Module, states: States
) -> Iterator[tuple[dict[str, float], Merged]]:
    given = judge.recipe.baselines
    tasks = [(index, task) for index, task in enumerate(judge.tasks) if task.labels]
    if not tasks:
        raise RunError("baselines.data: AdaMerging needs tasks with labels, whose answers have an entropy; got numbers")
    batches = {task.name: inputs_of(judge, "validation", index, given.data_items) for index, task in tasks}

    def logits(weights: Mapping[str, Tensor], step: int) -> list[Tensor]:
        found = []
        for _, task in tasks:
            batch = batches[task.name][step % len(batches[task.name])]
            read = states_of(model, functional_call(model, dict(weights), kwargs=batch))
            found.append(judge.heads[task.name](read, batch.get("attention_mask")))
        return found

    def learned(base: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]]) -> Merged:
        return adamerging(base, experts, logits=logits, layers=layers, steps=given.data_steps).weights

    judge.folder.say(f"AdaMerging {'by layer' if layers else 'by task'}: {given.data_steps} steps on validation inputs")
    yield {}, shared_expert(model, states, learned)


_MERGES: Mapping[str, Callable[[Judge, nn.Module, States], Iterator[tuple[dict[str, float], Merged]]]] = {
    "fisher": _fisher,
    "regmean": _regmean,
    "adamerging": partial(_adamerging, False),
    "adamerging_layers": partial(_adamerging, True),
}
