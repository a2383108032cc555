"""The rows of the merge recipe's table, each a small function: experts, base, static merges, routed, oracle, probe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import torch

from recipes.merge.baselines import Candidates, trials, tune
from recipes.merge.evaluation import (
    evaluate,
    evaluate_rows,
    evaluation_device,
    in_precision,
    linear_probe,
    with_experts,
    with_heads,
)
from recipes.merge.routing import task_features
from twinmerge.merging import set_parameters, shared_expert
from twinmerge.modeling_twin import masked_mean
from twinmerge.twin_parts import Router

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipes.data.splits import TextTask
    from recipes.data.text_module import MixedTextDataModule
    from recipes.merge.evaluation import Batch, Counted, Model, Scores
    from recipes.merge.schema import Recipe
    from recipes.running.folder import RunFolder
    from twinmerge.folders import Expert
    from twinmerge.modeling_twin import Head
    from twinmerge.twin_mixin import TwinMixin

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Judge:
    """What every row is measured by: the same batches, heads, device and precision.

    Attributes:
        recipe: The recipe.
        folder: Run folder, for progress.
        tasks: In the order of the table.
        heads: Task -> its head, on the device.
        data: All tasks' inputs.
        batches: Split (`validation`, `test`) -> its batches.
        device: Where models are run.
    """

    recipe: Recipe
    folder: RunFolder
    tasks: list[TextTask]
    heads: dict[str, Head]
    data: MixedTextDataModule
    batches: dict[str, list[Batch]]
    device: torch.device

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        folder: RunFolder,
        tasks: list[TextTask],
        data: MixedTextDataModule,
        experts: Mapping[str, Expert],
    ) -> Judge:
        """The judge of a recipe; the data is set up, and the experts' heads move to the device."""
        device = evaluation_device(recipe.trainer.accelerator)
        heads = {task: cast("Head", expert.head).to(device) for task, expert in experts.items()}
        data.setup(None)
        batches = {"validation": list(data.val_dataloader()), "test": list(data.test_dataloader())}
        return cls(recipe, folder, tasks, heads, data, cast("dict[str, list[Batch]]", batches), device)

    def precise(self, forward: Callable[..., Answer]) -> Callable[..., Answer]:
        """The same forward in the recipe's precision."""
        return in_precision(self.recipe.eval_precision, self.device, forward)

    def score(self, name: str, answer: Model, split: str = "test") -> Scores:
        """The row of a model on a split."""
        with self.folder.phase(f"{split}: {name}", len(self.batches[split])) as progress:
            return evaluate(self.precise(answer), self.tasks, self.batches[split], progress.advance, self.device)


def experts(
    judge: Judge, model: nn.Module, states: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Scores, dict[str, Scores]]:
    """The experts on validation, and the rows of the experts and of the base with their heads.

    Args:
        judge: What the rows are measured by.
        model: The base.
        states: Task -> the expert's parameters.
    """
    whole = with_experts({t: set_parameters(copy.deepcopy(model), state) for t, state in states.items()}, judge.heads)
    held, rows = judge.score("experts", whole, "validation"), {"experts": judge.score("experts", whole)}
    return held, {**rows, "pretrained": judge.score("pretrained", with_heads(model, judge.heads))}


def static(
    judge: Judge, model: nn.Module, states: Mapping[str, Mapping[str, Tensor]], held: Scores
) -> tuple[dict[str, tuple[float, dict[str, float]]], dict[str, Scores]]:
    """The best candidate of every static merge on validation, and their rows.

    Args:
        judge: What the rows are measured by.
        model: The base.
        states: Task -> the expert's parameters.
        held: The experts on validation, to which scores are normalised.
    """
    recipe, folder, parts = judge.recipe, judge.folder, judge.data.parts("validation")
    grid, work = recipe.baselines.grid(), copy.deepcopy(model)
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    candidates = Candidates(named, partial(_called, shared_expert, model, states), recipe.seed)
    counted: dict[tuple[object, ...], Counted] = {}
    tried = trials(grid, len(parts))

    def answer_of(method: str, options: Mapping[str, float]) -> Model:
        return with_heads(set_parameters(work, candidates(method, options)), judge.heads)

    steps = sum(count * len(part) for count, part in zip(tried, parts, strict=True))
    with folder.phase("validation: static candidates", steps) as progress:

        def validate(method: str, options: dict[str, float], part: int) -> float:
            answer = judge.precise(answer_of(method, options))
            own = counted.setdefault((method, *options.items()), {})
            return evaluate(answer, judge.tasks, parts[part], progress.advance, judge.device, own).normalised(held)

        best = tune(grid, validate, len(parts))
    if len(parts) > 1:
        folder.say(
            f"static merges: {tried[0]} candidates on a quarter of the validation rows, the better {tried[1]} on half, "
            f"{tried[2]} on all"
        )
    return best, {method: judge.score(method, answer_of(method, options)) for method, (_, options) in best.items()}


def _called(
    shared_expert: Callable[..., dict[str, Tensor]],
    model: nn.Module,
    states: Mapping[str, Mapping[str, Tensor]],
    method: str,
    options: dict[str, float],
) -> dict[str, Tensor]:
    return shared_expert(model, states, method, **options)


def routed(judge: Judge, twin: TwinMixin, read: tuple[Sequence[Tensor], Tensor, float]) -> dict[str, Scores]:
    """The rows of the twin that routes by itself.

    Args:
        judge: What the rows are measured by.
        twin: With its router.
        read: Router features of the test batches, whose tasks they are of, and the milliseconds an input took.
    """
    found, _, milliseconds = read
    with judge.folder.phase("test: routed", len(judge.batches["test"])) as progress:
        with torch.no_grad():  # the features are those of this very batch: one forward serves both
            router = cast("Router", twin.router)
            weights = iter([router.weights(part.to(judge.device)) for part in found])
        answers = judge.precise(partial(_routed, twin, weights))
        rows = evaluate_rows(answers, judge.tasks, judge.batches["test"], progress.advance, judge.device)
    return {name: replace(row, milliseconds=row.milliseconds + milliseconds) for name, row in rows.items()}


def oracle(judge: Judge, twin: TwinMixin) -> dict[str, Scores]:
    """The row of the twin that is told the task of every input."""
    return {"oracle": judge.score("oracle", partial(_oracle, twin))}


def probe(judge: Judge, model: nn.Module, labelled: Sequence[TextTask], seen: MixedTextDataModule) -> dict[str, Scores]:
    """The row of a linear probe on the base's own features.

    Args:
        judge: What the rows are measured by.
        model: The base.
        labelled: What the experts learned from.
        seen: The same as data; it is set up here.
    """
    seen.setup("fit")

    def pooled(**inputs: Tensor) -> Tensor:
        return masked_mean(model(**inputs)[0], inputs.get("attention_mask"))

    base = judge.precise(pooled)
    features = {
        split: task_features(base, seen, split, judge.folder, "base features", judge.device)
        for split in ("train", "validation")
    }
    return {"linear probe": judge.score("linear probe", linear_probe(model, features, labelled))}


def _routed(
    twin: TwinMixin, weights: Iterator[Tensor], inputs: dict[str, Tensor], asked: list[str]
) -> dict[str, Tensor]:
    """Both routed rows of one forward. A head routed wrongly answers another question: NaN, which counts as wrong."""
    outputs = twin.classify(**inputs, head=asked, router_weights=next(weights))
    own = outputs.logits.clone()
    own[outputs.router_weights.argmax(-1) != outputs.task] = float("nan")
    return {"routed": outputs.logits, "routed, head routed too": own}


def _oracle(twin: TwinMixin, inputs: dict[str, Tensor], asked: list[str]) -> Tensor:
    true = torch.eye(len(twin.tasks), device=inputs["input_ids"].device)[[twin.tasks.index(name) for name in asked]]
    logits: Tensor = twin.classify(**inputs, head=asked, router_weights=true).logits
    return logits
