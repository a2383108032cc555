"""Score merged models on all tasks' inputs shuffled together: raw, normalised by the experts, as a recovered gap."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twinmerge.module import task_metric
from twinmerge.states import States, states_of

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from recipes.data.splits import TextTask
    from twinmerge.modeling_twin import Head

Batch = Mapping[str, Tensor]
Counted = dict[str, list["MetricCollection"]]  # row name -> the metrics of every task, fed so far
Probe = Callable[[Tensor, list[str]], Tensor]  # features of a batch and the question asked of each row -> logits
Model = Callable[[dict[str, Tensor], list[str]], Tensor]  # inputs and the question asked of each row -> logits


@dataclass(frozen=True)
class Scores:
    """One row of the evaluation table.

    Attributes:
        tasks: raw score per task.
        milliseconds: time per input, all tasks together.
    """

    tasks: dict[str, float]
    milliseconds: float

    @property
    def mean(self) -> float:
        """Mean raw score over tasks."""
        return sum(self.tasks.values()) / len(self.tasks)

    def beats(self, other: Scores, task: str) -> bool:
        """Whether this row is better than another on a task."""
        return self.tasks[task] > other.tasks[task]

    def normalised(self, experts: Scores) -> float:
        """Mean over tasks of score / expert's score: the paper's metric.

        Tasks whose expert scores nothing are left out; NaN when none is left.
        """
        shares = [s / experts.tasks[t] for t, s in self.tasks.items() if experts.tasks[t] > 0]
        return sum(shares) / len(shares) if shares else math.nan

    def recovered(self, experts: Scores, base: Scores) -> dict[str, float]:
        """Share of the gap between the base with the experts' heads and the experts that is closed, per task.

        Tasks whose gap is below two points are left out: a ratio to nearly nothing says nothing.
        """
        gaps = {t: experts.tasks[t] - base.tasks[t] for t in self.tasks}
        return {t: (self.tasks[t] - base.tasks[t]) / gap for t, gap in gaps.items() if gap >= 0.02}


Answer = TypeVar("Answer")


def evaluation_device(accelerator: object) -> torch.device:
    """Where merged models are scored: on a CUDA device, unless there is none or the recipe's Trainer is on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu")


def in_precision(precision: str, device: torch.device | str, forward: Callable[..., Answer]) -> Callable[..., Answer]:
    """The same forward in a number format.

    Args:
        precision: `32`, which changes nothing, or `bf16`: matrix products in bfloat16, sums and norms in float32.
        device: where it runs.
        forward: what is called.
    """
    kind = torch.device(device).type

    def run(*arguments: object, **named: object) -> Answer:
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
            return forward(*arguments, **named)

    return run


def evaluate(
    model: Model,
    tasks: Sequence[TextTask],
    batches: Iterable[Batch],
    tick: Callable[[], object],
    device: torch.device | str = "cpu",
    counted: Counted | None = None,
) -> Scores:
    """Run a model over mixed batches and score each task with its own metric.

    Args:
        model: inputs and questions to logits (batch, most labels); a row of NaN counts as wrong.
        tasks: in the order of the batches' `task` index.
        batches: with `labels` and `task` beside the inputs.
        tick: called after every batch.
        device: of the model; inputs are moved there, and logits back.
        counted: what earlier batches of the same model counted; these are added to it.
    """
    rows = evaluate_rows(lambda inputs, asked: {"": model(inputs, asked)}, tasks, batches, tick, device, counted)
    return rows[""]


def evaluate_rows(
    model: Callable[[dict[str, Tensor], list[str]], Mapping[str, Tensor]],
    tasks: Sequence[TextTask],
    batches: Iterable[Batch],
    tick: Callable[[], object],
    device: torch.device | str = "cpu",
    counted: Counted | None = None,
) -> dict[str, Scores]:
    """As `evaluate`, for a model whose one forward answers several rows of the table: row name -> logits."""
    metrics = {} if counted is None else counted
    spent, count = 0.0, 0
    with torch.inference_mode():
        for batch in batches:
            start = time.perf_counter()
            inputs = {k: v.to(device) for k, v in batch.items() if k not in ("labels", "task")}
            answers = model(inputs, [tasks[i].name for i in batch["task"].tolist()])
            rows = {name: logits.cpu() for name, logits in answers.items()}
            spent, count = spent + time.perf_counter() - start, count + len(batch["task"])
            for name, logits in rows.items():
                if name not in metrics:
                    metrics[name] = [task_metric(t.metric, len(t.labels) or 1) for t in tasks]
                for index in dict.fromkeys(batch["task"].tolist()):
                    mine = batch["task"] == index
                    metrics[name][index].update(*_answers(tasks[index], logits[mine], batch["labels"][mine]))
            tick()
    return {name: Scores(_scores(tasks, found), 1000 * spent / max(count, 1)) for name, found in metrics.items()}


def _answers(task: TextTask, logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """What a task's metric compares, rows of NaN made wrong."""
    outputs = len(task.labels) or 1
    guess = logits[:, :outputs].float()
    missed = guess.isnan().any(1)
    if not task.labels:  # nothing is wrong for sure here: the mean is the guess that knows nothing
        guess[missed] = sum(task.train.labels) / len(task.train)
        return guess[:, 0], truth.float()
    truth = truth.long()  # float in a batch that has regression tasks too
    guess[missed] = F.one_hot((truth[missed] + 1) % outputs, outputs).float()
    return guess, truth


def _scores(tasks: Sequence[TextTask], metrics: Sequence[MetricCollection]) -> dict[str, float]:
    found: dict[str, float] = {}
    for task, metric in zip(tasks, metrics, strict=True):
        with warnings.catch_warnings():  # of a correlation with a constant guess: it is not defined, and counts 0
            warnings.filterwarnings("ignore", message=".*(variance|close to zero).*")
            values = torch.stack(list(metric.compute().values()))
        found[task.name] = float(values.nan_to_num(0.0).mean())
    return found


def with_heads(encoder: nn.Module, heads: Mapping[str, Head]) -> Model:
    """A model that answers every question from one encoder's states, with the head of that question."""

    def answer(inputs: dict[str, Tensor], questions: list[str]) -> Tensor:
        return apply_heads(states_of(encoder, encoder(**inputs)), inputs.get("attention_mask"), questions, heads)

    return answer


def with_experts(experts: Mapping[str, nn.Module], heads: Mapping[str, Head]) -> Model:
    """Every question answered by its own expert and head: the reference that merging is measured against."""

    def answer(inputs: dict[str, Tensor], questions: list[str]) -> Tensor:
        device = next(iter(inputs.values())).device
        logits = torch.full((len(questions), _labels(heads)), float("-inf"), device=device)
        for name in dict.fromkeys(questions):
            rows = torch.tensor([q == name for q in questions], device=device)
            part = {k: v[rows] for k, v in inputs.items()}
            scores = heads[name](states_of(experts[name], experts[name](**part)), part.get("attention_mask"))
            logits[rows, : scores.shape[1]] = scores.to(logits.dtype)
        return logits

    return answer


def apply_heads(states: States, mask: Tensor | None, questions: Sequence[str], heads: Mapping[str, Head]) -> Tensor:
    """Logits (batch, most labels) of each row's own head; minus infinity beyond its labels."""
    logits = states.tokens.new_full((len(questions), _labels(heads)), float("-inf"))
    for name in dict.fromkeys(questions):
        rows = torch.tensor([q == name for q in questions], device=logits.device)
        scores = heads[name](states.of(rows), None if mask is None else mask[rows])
        logits[rows, : scores.shape[1]] = scores.to(logits.dtype)
    return logits


def linear_probe(features: Mapping[str, tuple[Tensor, Tensor]], tasks: Sequence[TextTask]) -> Probe:
    """Logistic (or ridge) regression a task on the frozen base's features, its strength chosen on validation.

    Args:
        features: `train` and `validation` -> masked mean features (rows, width) and task ids, in the tasks' row order.
        tasks: in the order of the ids, with the labelled rows that their experts had, and no more.

    Returns:
        Features of a batch (rows, width) and the question asked of each row to logits (rows, most labels).
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probes = {}
    for index, task in enumerate(tasks):
        x, held_x = (features[s][0][features[s][1] == index].numpy() for s in ("train", "validation"))
        y, held_y = task.train.labels, task.validation.labels
        candidates = [
            make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000) if task.labels else Ridge(1 / c))
            for c in (0.001, 0.01, 0.1, 1.0)
        ]
        probes[task.name] = max((c.fit(x, y) for c in candidates), key=lambda p: p.score(held_x, held_y))

    def answer(states: Tensor, questions: list[str]) -> Tensor:
        pooled = states.float().cpu().numpy()
        logits = torch.full((len(questions), max(len(t.labels) or 1 for t in tasks)), float("-inf"))
        for name in dict.fromkeys(questions):
            rows = torch.tensor([q == name for q in questions])
            guess = torch.as_tensor(probes[name].predict(pooled[rows.numpy()]))
            whole = guess.dtype == torch.int64  # classes, and not the numbers of a regression
            logits[rows] = F.one_hot(guess, logits.shape[1]).float() if whole else guess[:, None].float()
        return logits

    return answer


def _labels(heads: Mapping[str, Head]) -> int:
    return max(head.out_proj.out_features for head in heads.values())
