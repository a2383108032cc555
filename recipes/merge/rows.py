"""The rows of the merge recipe's table, each a small function: experts, base, static merges, routed, oracle, probe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import torch

from recipes.merge.evaluation import (
    Scores,
    apply_heads,
    evaluate_rows,
    evaluation_device,
    in_precision,
    linear_probe,
    with_experts,
)
from recipes.merge.kept import Kept
from recipes.merge.precision import NAMED, settled
from recipes.merge.routing import task_features
from twinmerge.merging import set_parameters
from twinmerge.modeling_twin import masked_mean
from twinmerge.states import states_of
from twinmerge.twin_parts import Router

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipes.data.image_module import MixedImageDataModule
    from recipes.data.splits import TextTask
    from recipes.data.text_module import MixedTextDataModule
    from recipes.merge.evaluation import Batch, Model, Probe
    from recipes.merge.precision import Format
    from recipes.merge.schema import Recipe
    from recipes.running.folder import RunFolder
    from twinmerge.folders import Expert
    from twinmerge.modeling_twin import Head
    from twinmerge.twin_mixin import TwinMixin

    Data = MixedTextDataModule | MixedImageDataModule
    Read = tuple[Sequence[Tensor], Tensor, float]  # router features of batches, task ids, milliseconds an input

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
        kept: Scores that earlier runs found.
        precision: Number format of all forwards, `32` or `bf16`.
        why: Why it is this one.
    """

    recipe: Recipe
    folder: RunFolder
    tasks: list[TextTask]
    heads: dict[str, Head]
    data: Data
    batches: dict[str, list[Batch]]
    device: torch.device
    kept: Kept
    precision: Format = "32"
    why: str = ""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        folder: RunFolder,
        tasks: list[TextTask],
        data: Data,
        model: nn.Module,
        experts: Mapping[str, Expert],
    ) -> Judge:
        """The judge of a recipe; the data is set up, and the base and the experts' heads move to the device."""
        device = evaluation_device(recipe.trainer.accelerator)
        model.to(device)
        heads = {task: cast("Head", expert.head).to(device) for task, expert in experts.items()}
        data.setup(None)
        loaders = {"validation": data.val_dataloader(), "test": data.test_dataloader()}
        batches = cast("dict[str, list[Batch]]", {split: list(loader) for split, loader in loaders.items()})
        asked = {task.name: [task.metric, *task.labels] for task in tasks}
        states = {task: expert.state for task, expert in experts.items()}
        kept = Kept(folder, model, states, heads, asked, batches, str(device), recipe.training.statistics)
        return cls(recipe, folder, tasks, heads, data, batches, device, kept)

    def settled(self, answer: Model) -> Judge:
        """The judge with its number format: as the recipe says, or found on the middle validation batch."""
        given = self.batches["validation"][len(self.batches["validation"]) // 2]
        asked = [self.tasks[i].name for i in given["task"].tolist()]
        inputs = {name: value for name, value in given.items() if name not in ("labels", "task")}
        chosen, why = settled(
            self.recipe.eval_precision,
            self.device,
            lambda batch: answer(batch, asked[: len(next(iter(batch.values())))]),
            inputs,
        )
        self.folder.say(f"scored in {NAMED[chosen]}: {why}")
        return replace(self, precision=chosen, why=why)

    def precise(self, forward: Callable[..., Answer]) -> Callable[..., Answer]:
        """The same forward in the precision of all."""
        return in_precision(self.precision, self.device, forward)

    def score(self, name: str, answer: Model, split: str = "test") -> Scores:
        """The row of a model on a split."""
        return self.score_rows(name, lambda inputs, asked: {name: answer(inputs, asked)}, split)[name]

    def score_once(self, name: str, answer: Callable[[], Model], *of: object, split: str = "test") -> Scores:
        """The row of a model that is made only where no earlier run has scored it.

        Args:
            name: Of the row.
            answer: Makes the model.
            of: What decides the model, beside the base, the experts and the name.
            split: What it is scored on.
        """
        key = (self.precision, split, name, *of)
        if found := self.kept.find(*key):
            return Scores(*found)
        scores = self.score(name, answer(), split)
        self.kept.keep(scores.tasks, scores.milliseconds, *key)
        return scores

    def score_rows(
        self, name: str, answer: Callable[[dict[str, Tensor], list[str]], Mapping[str, Tensor]], split: str = "test"
    ) -> dict[str, Scores]:
        """All rows that one forward answers."""
        with self.folder.phase(f"{split}: {name}", len(self.batches[split])) as progress:
            return evaluate_rows(self.precise(answer), self.tasks, self.batches[split], progress.advance, self.device)


def whole(judge: Judge, model: nn.Module, states: Mapping[str, Mapping[str, Tensor]]) -> Model:
    """The experts as one model that is told the task.

    Args:
        judge: What the rows are measured by.
        model: The base; left as it is.
        states: Task -> the expert's parameters.
    """
    return with_experts({t: set_parameters(copy.deepcopy(model), state) for t, state in states.items()}, judge.heads)


def experts(judge: Judge, answer: Model) -> tuple[Scores, dict[str, Scores]]:
    """The experts on validation, and their row.

    Args:
        judge: What the rows are measured by.
        answer: Of `whole`.
    """
    held = judge.score_once("experts", lambda: answer, split="validation")
    return held, {"experts": judge.score_once("experts", lambda: answer)}


def routed(judge: Judge, twin: TwinMixin, read: Read, name: str = "routed") -> dict[str, Scores]:
    """The rows of the twin that routes by itself.

    Args:
        judge: What the rows are measured by.
        twin: With its router.
        read: Router features of the test batches, whose tasks they are of, and the milliseconds an input took.
        name: Of the phase.
    """
    found, _, milliseconds = read
    with torch.no_grad():  # the features are those of this very batch: one forward serves both
        router = cast("Router", twin.router)
        weights = iter([router.weights(part.to(judge.device)) for part in found])
    rows = judge.score_rows(name, partial(_routed, twin, weights))
    return {name: replace(row, milliseconds=row.milliseconds + milliseconds) for name, row in rows.items()}


def oracle(judge: Judge, twin: TwinMixin) -> dict[str, Scores]:
    """The row of the twin that is told the task of every input."""
    return {"oracle": judge.score("oracle", partial(_oracle, twin))}


def base(
    judge: Judge,
    model: nn.Module,
    labelled: Sequence[TextTask],
    seen: MixedTextDataModule | MixedImageDataModule | None,
) -> dict[str, Scores]:
    """The rows of the base itself, by one forward: with the experts' heads, and with a linear probe a task.

    Args:
        judge: What the rows are measured by.
        model: The base.
        labelled: What the experts learned from.
        seen: The same as data, set up here; None for no probe.
    """
    probe: Probe | None = None
    if seen is not None:
        seen.setup("fit")
        read = judge.precise(
            lambda **inputs: masked_mean(states_of(model, model(**inputs)).tokens, inputs.get("attention_mask"))
        )
        features = {
            split: task_features(read, seen, split, judge.folder, "base features", judge.device)
            for split in ("train", "validation")
        }
        probe = linear_probe(features, labelled)

    def answer(inputs: dict[str, Tensor], asked: list[str]) -> dict[str, Tensor]:
        states, mask = states_of(model, model(**inputs)), inputs.get("attention_mask")
        rows = {"pretrained": apply_heads(states, mask, asked, judge.heads)}
        return rows if probe is None else {**rows, "linear probe": probe(masked_mean(states.tokens, mask), asked)}

    if probe is None:
        return {"pretrained": judge.score_once("pretrained", lambda: lambda *given: answer(*given)["pretrained"])}
    return judge.score_rows("pretrained", answer)


def _routed(
    twin: TwinMixin, weights: Iterator[Tensor], inputs: dict[str, Tensor], asked: list[str]
) -> dict[str, Tensor]:
    """Both routed rows of one forward. A head routed wrongly answers another question: NaN, which counts as wrong."""
    outputs = twin.classify(**inputs, head=asked, router_weights=next(weights))
    own = outputs.logits.clone()
    own[outputs.router_weights.argmax(-1) != outputs.task] = float("nan")
    return {"routed": outputs.logits, "routed, head routed too": own}


def _oracle(twin: TwinMixin, inputs: dict[str, Tensor], asked: list[str]) -> Tensor:
    true = torch.eye(len(twin.tasks), device=next(iter(inputs.values())).device)[
        [twin.tasks.index(name) for name in asked]
    ]
    logits: Tensor = twin.classify(**inputs, head=asked, router_weights=true).logits
    return logits
