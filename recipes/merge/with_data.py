"""Static merges that look at the tasks' inputs, as rows and as the shared expert: Fisher, RegMean and AdaMerging.

Fisher information and the Gram matrices of RegMean come from training inputs, of which no label is read. AdaMerging
learns its coefficients on the validation inputs, without their labels; the paper takes the test inputs, which here only
report. What is looked at is a `Source`: that of encoders is here, that of language models in
`recipes.merge.causal.with_data`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from torch.func import functional_call

from recipes.errors import RunError
from recipes.merge.baselines import DATA, SHARED
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

    from recipes.merge.baselines import Options, Shared, Tuned
    from recipes.merge.evaluation import Scores
    from recipes.merge.rows import Judge
    from recipes.merge.schema import Recipe
    from recipes.running.folder import RunFolder
    from twinmerge.merging import Method

Row_co = TypeVar("Row_co", bound="Scores", covariant=True)
States = Mapping[str, Mapping[str, "Tensor"]]
Merged = dict[str, "Tensor"]
Merge = Callable[["Options"], Merged]
OF_LINEAR_LAYERS = ("regmean", "smile", "arrow")
GRIDS = {"regmean": [{"shrink": 0.1}, {"shrink": 0.5}, {"shrink": 0.9}]}  # candidates of rows; others have one alone


def check_linear(recipe: Recipe, model: nn.Module) -> None:
    """Refuse, before anything is trained, a row that is made of linear layers for a model that has none.

    Raises:
        RunError: With the row.
    """
    from torch import nn

    answers: Callable[[], object] = getattr(model, "get_output_embeddings", lambda: None)
    output = answers()  # of a language model, which is tied to the embedding or the only one
    if any(isinstance(module, nn.Linear) and module is not output for module in model.modules()):
        return
    asked = {
        "shared.method": [recipe.shared.method],
        "baselines.data": recipe.baselines.data,
        "baselines.dynamic": recipe.baselines.dynamic,
    }
    for key, names in asked.items():
        if found := [name for name in names if name in OF_LINEAR_LAYERS]:
            raise RunError(f"{key}: {found[0]} merges linear layers, and the base {recipe.base} has none; leave it out")


def all_static(judge: Judge, model: nn.Module, states: States, held: Scores) -> tuple[Recipe, Looked[Scores]]:
    """The recipe with its shared expert tuned; and of every static merge the best candidate, and its row."""
    best, rows = static(judge, model, states, held)
    looked = with_data(Encoders(judge, model, held), model, states)
    looked = replace(looked, best=best | looked.best, rows=rows | looked.rows)
    return judge.recipe.with_shared(looked.best, judge.folder.say), looked


@dataclass(frozen=True)
class Looked(Generic[Row_co]):
    """What static merges came to.

    Attributes:
        best: By method, the validation score of its best candidate and its options.
        rows: By method, the row of that candidate.
        shared: Weights of the shared expert, where it is made from data.
    """

    best: Tuned
    rows: dict[str, Row_co]
    shared: Merged | None

    def method(self, shared: Shared) -> tuple[Method, Options]:
        """How the shared expert is made, and its options: by its name, or from the weights that data gave it."""
        made = self.shared
        if made is None:
            return shared.method, shared.options
        return lambda pretrained, experts: {name: made[name] for name in pretrained}, {}


class Source(Protocol[Row_co]):
    """What methods with data look at, and what their rows are measured by."""

    @property
    def recipe(self) -> Recipe:
        """Of the run."""

    @property
    def folder(self) -> RunFolder:
        """Of the run."""

    def information(self, task: str, expert: nn.Module) -> Merged:
        """Fisher information of an expert on training inputs of its task."""

    def grams(self, task: str, expert: nn.Module) -> Merged:
        """Gram matrices of the inputs of an expert's linear layers on training inputs of its task."""

    def logits(self) -> Callable[[Mapping[str, Tensor], int], Sequence[Tensor]]:
        """Logits of unlabelled validation inputs of every task, by weights and the number of a step."""

    def validated(self, name: str, model: nn.Module) -> float:
        """Normalised score of a candidate on validation."""

    def row(self, name: str, model: nn.Module) -> Row_co:
        """Scores of the best candidate on test."""


def with_data(source: Source[Row_co], model: nn.Module, states: States) -> Looked[Row_co]:
    """The methods that the recipe asks for, as rows or as the shared expert: the best candidate of each on validation.

    Args:
        source: What is looked at and what rows are measured by.
        model: The base; left as it is.
        states: Task -> the expert's parameters.
    """
    best: Tuned = {}
    rows: dict[str, Row_co] = {}
    work, chosen = copy.deepcopy(model), None
    named, shared = source.recipe.baselines.data, source.recipe.shared
    for name in dict.fromkeys([*named, *([shared.method] if shared.method in DATA else [])]):
        as_row = GRIDS.get(name, [{}]) if name in named else []
        as_shared = shared.candidates() if name == shared.method else []
        merge = _MERGES[name](source, model, states)
        row = at_shared = None
        for options in [*as_row, *(options for options in as_shared if options not in as_row)]:
            merged = merge(options)
            one = _Candidate(source.validated(name, set_parameters(work, merged)), options, merged)
            row = one.better(row) if options in as_row else row
            at_shared = one.better(at_shared) if options in as_shared else at_shared
        if row:
            best[name] = (row.score, row.options)
            rows[name] = source.row(name, set_parameters(work, row.merged))
        if at_shared:
            chosen = at_shared.merged
            best |= {SHARED: (at_shared.score, at_shared.options)} if shared.tune else {}
    return Looked(best, rows, chosen)


@dataclass(frozen=True)
class _Candidate:
    """A merge by a method with data, and its score on validation."""

    score: float
    options: Options
    merged: Merged

    def better(self, other: _Candidate | None) -> _Candidate:
        """This one or the other; the first of equals."""
        return self if other is None or self.score > other.score else other


def _experts(model: nn.Module, states: States) -> Iterator[tuple[str, nn.Module]]:
    for task, state in states.items():
        yield task, set_parameters(copy.deepcopy(model), state)


def _fisher(source: Source[Scores], model: nn.Module, states: States) -> Merge:
    information = [source.information(task, expert) for task, expert in _experts(model, states)]
    return lambda options: shared_expert(model, states, fisher, information=information, **options)


def _regmean(source: Source[Scores], model: nn.Module, states: States) -> Merge:
    grams = [source.grams(task, expert) for task, expert in _experts(model, states)]
    return lambda options: shared_expert(model, states, regmean, inputs=grams, **options)


def _adamerging(layers: bool, source: Source[Scores], model: nn.Module, states: States) -> Merge:
    steps, logits = source.recipe.baselines.data_steps, source.logits()

    def merge(options: Options) -> Merged:
        def learned(base: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]]) -> Merged:
            return adamerging(base, experts, logits=logits, layers=layers, steps=steps, **options).weights

        source.folder.say(f"AdaMerging {'by layer' if layers else 'by task'}: {steps} steps on validation inputs")
        return shared_expert(model, states, learned)

    return merge


_MERGES: Mapping[str, Callable[[Source[Scores], nn.Module, States], Merge]] = {
    "fisher": _fisher,
    "regmean": _regmean,
    "adamerging": partial(_adamerging, False),
    "adamerging_layers": partial(_adamerging, True),
}


def inputs_of(judge: Judge, split: str, index: int, most: int) -> list[dict[str, Tensor]]:
    """Up to so many inputs of one task, in batches on the device; no label among them."""
    found, left = [], most
    for _, batch in judge.data.by_length(split):
        mine = (batch["task"] == index).nonzero().flatten()[:left]
        if len(mine):
            found.append({k: v[mine].to(judge.device) for k, v in batch.items() if k not in ("labels", "task")})
            left -= len(mine)
    return found


class Encoders:
    """The inputs of encoders, whose answers are those of a head a task.

    Args:
        judge: What the rows are measured by.
        model: The base; left as it is.
        held: The experts on validation, to which scores are normalised.
    """

    def __init__(self, judge: Judge, model: nn.Module, held: Scores) -> None:
        self.judge, self.model, self.held = judge, model, held
        self.recipe, self.folder = judge.recipe, judge.folder
        self.places = {task.name: index for index, task in enumerate(judge.tasks)}

    def information(self, task: str, expert: nn.Module) -> Merged:
        """Fisher information of an expert, exact in the labels."""
        rows = [
            {k: v[row : row + 1] for k, v in batch.items()}
            for batch in inputs_of(self.judge, "train", self.places[task], self.recipe.baselines.data_items)
            for row in range(len(next(iter(batch.values()))))
        ]

        def logits(row: Mapping[str, Tensor]) -> Tensor:
            found: Tensor = self.judge.heads[task](states_of(expert, expert(**row)), row.get("attention_mask"))
            return found[0]

        parameters = {name: value.requires_grad_() for name, value in expert.named_parameters()}
        with self.folder.phase(f"Fisher information: {task}", len(rows)) as progress:
            return fisher_information(parameters, (partial(logits, row) for row in progress.track(rows)))

    def grams(self, task: str, expert: nn.Module) -> Merged:
        """Gram matrices of the inputs of an expert's linear layers; padding does not count."""
        batches = inputs_of(self.judge, "train", self.places[task], self.recipe.baselines.data_items)
        with self.folder.phase(f"Gram matrices: {task}", len(batches)) as progress:
            runs = ((partial(expert, **batch), batch.get("attention_mask")) for batch in progress.track(batches))
            return input_grams(expert, runs)

    def logits(self) -> Callable[[Mapping[str, Tensor], int], Sequence[Tensor]]:
        """Logits of the tasks that have labels.

        Raises:
            RunError: Where none has.
        """
        judge, most = self.judge, self.recipe.baselines.data_items
        named = [task.name for task in judge.tasks if task.labels]
        if not named:
            raise RunError(
                "baselines.data: AdaMerging needs tasks with labels, whose answers have an entropy; got numbers"
            )
        batches = {name: inputs_of(judge, "validation", self.places[name], most) for name in named}

        def found(weights: Mapping[str, Tensor], step: int) -> list[Tensor]:
            made = []
            for name, given in batches.items():
                batch = given[step % len(given)]
                read = states_of(self.model, functional_call(self.model, dict(weights), kwargs=batch))
                made.append(judge.heads[name](read, batch.get("attention_mask")))
            return made

        return found

    def validated(self, name: str, model: nn.Module) -> float:
        """Normalised score of a candidate on validation."""
        judge, batches = self.judge, self.judge.batches["validation"]
        with self.folder.phase(f"validation: {name}", len(batches)) as progress:
            answer = judge.precise(with_heads(model, judge.heads))
            score = evaluate(answer, judge.tasks, batches, progress.advance, judge.device)
        return score.normalised(self.held)

    def row(self, name: str, model: nn.Module) -> Scores:
        """Scores of the best candidate on test."""
        return self.judge.score(name, with_heads(model, self.judge.heads))
