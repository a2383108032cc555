"""Score merged models on all tasks' inputs shuffled together: raw, normalised by the experts, and as a recovered gap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twinmerge.modeling_twin import masked_mean
from twinmerge.module import task_metric

if TYPE_CHECKING:
    from recipes.data.splits import TextTask
    from twinmerge.modeling_twin import Head

Batch = Mapping[str, Tensor]
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

    def normalised(self, experts: Scores) -> float:
        """Mean over tasks of score / expert's score: the paper's metric."""
        return sum(s / experts.tasks[t] for t, s in self.tasks.items()) / len(self.tasks)

    def recovered(self, experts: Scores, base: Scores) -> dict[str, float]:
        """Share of the gap between the base with the experts' heads and the experts that is closed, per task.

        Tasks whose gap is below two points are left out: a ratio to nearly nothing says nothing.
        """
        gaps = {t: experts.tasks[t] - base.tasks[t] for t in self.tasks}
        return {t: (self.tasks[t] - base.tasks[t]) / gap for t, gap in gaps.items() if gap >= 0.02}


def evaluate(model: Model, tasks: Sequence[TextTask], batches: Iterable[Batch], tick: Callable[[], Any]) -> Scores:
    """Run a model over mixed batches and score each task with its own metric.

    Args:
        model: inputs and questions to logits (batch, most labels); a row of NaN counts as wrong.
        tasks: in the order of the batches' `task` index.
        batches: with `labels` and `task` beside the inputs.
        tick: called after every batch.
    """
    metrics = [task_metric(t.metric, len(t.labels) or 1) for t in tasks]
    spent, rows = 0.0, 0
    with torch.inference_mode():
        for batch in batches:
            inputs = {k: v for k, v in batch.items() if k not in ("labels", "task")}
            start = time.perf_counter()
            logits = model(inputs, [tasks[i].name for i in batch["task"].tolist()])
            spent, rows = spent + time.perf_counter() - start, rows + len(logits)
            for index in batch["task"].unique().tolist():
                mine = batch["task"] == index
                outputs = len(tasks[index].labels) or 1
                guess, truth = logits[mine][:, :outputs].float(), batch["labels"][mine]
                if outputs > 1 and (missed := guess.isnan().any(1)).any():  # answered another question: wrong for sure
                    guess[missed] = F.one_hot((truth[missed] + 1) % outputs, outputs).float()
                metrics[index].update(guess[:, 0] if outputs == 1 else guess, truth)
            tick()
    scores = {
        task.name: float(torch.stack(list(metric.compute().values())).mean())
        for task, metric in zip(tasks, metrics, strict=True)
    }
    return Scores(scores, 1000 * spent / max(rows, 1))


def with_heads(encoder: Any, heads: Mapping[str, Head]) -> Model:
    """A model that answers every question from one encoder's states, with the head of that question."""

    def answer(inputs: dict[str, Tensor], questions: list[str]) -> Tensor:
        hidden = encoder(**inputs)[0]
        return apply_heads(hidden, inputs.get("attention_mask"), questions, heads)

    return answer


def with_experts(experts: Mapping[str, Any], heads: Mapping[str, Head]) -> Model:
    """Every question answered by its own expert and head: the reference that merging is measured against."""

    def answer(inputs: dict[str, Tensor], questions: list[str]) -> Tensor:
        logits = torch.full((len(questions), _labels(heads)), float("-inf"))
        for name in dict.fromkeys(questions):
            rows = torch.tensor([q == name for q in questions])
            part = {k: v[rows] for k, v in inputs.items()}
            scores = heads[name](experts[name](**part)[0], part.get("attention_mask"))
            logits[rows, : scores.shape[1]] = scores
        return logits

    return answer


def apply_heads(hidden: Tensor, mask: Tensor | None, questions: Sequence[str], heads: Mapping[str, Head]) -> Tensor:
    """Logits (batch, most labels) of each row's own head; minus infinity beyond its labels."""
    logits = hidden.new_full((len(questions), _labels(heads)), float("-inf"))
    for name in dict.fromkeys(questions):
        rows = torch.tensor([q == name for q in questions], device=hidden.device)
        scores = heads[name](hidden[rows], None if mask is None else mask[rows])
        logits[rows, : scores.shape[1]] = scores
    return logits


def linear_probe(
    encoder: Any,
    features: Mapping[str, tuple[Tensor, Tensor]],
    limits: Sequence[int | None],
    tasks: Sequence[TextTask],
) -> Model:
    """Logistic (or ridge) regression a task on the frozen base's features, its strength chosen on validation.

    Args:
        encoder: the frozen base.
        features: `train` and `validation` -> masked mean features (rows, width) and task ids, in the tasks' row order.
        limits: labelled training rows that the task's expert had too; None for all.
        tasks: in the order of the ids.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probes = {}
    for index, (task, limit) in enumerate(zip(tasks, limits, strict=True)):
        x, held_x = (features[s][0][features[s][1] == index].numpy() for s in ("train", "validation"))
        y, held_y = task.train.labels[:limit], task.validation.labels
        candidates = [
            make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000) if task.labels else Ridge(1 / c))
            for c in (0.001, 0.01, 0.1, 1.0)
        ]
        probes[task.name] = max((c.fit(x[:limit], y) for c in candidates), key=lambda p: p.score(held_x, held_y))

    def answer(inputs: dict[str, Tensor], questions: list[str]) -> Tensor:
        pooled = masked_mean(encoder(**inputs)[0], inputs.get("attention_mask")).numpy()
        logits = torch.full((len(questions), max(len(t.labels) or 1 for t in tasks)), float("-inf"))
        for name in dict.fromkeys(questions):
            rows = torch.tensor([q == name for q in questions])
            guess = torch.as_tensor(probes[name].predict(pooled[rows.numpy()]))
            logits[rows] = (
                F.one_hot(guess, logits.shape[1]).float() if guess.dtype == torch.int64 else guess[:, None].float()
            )
        return logits

    return answer


def _labels(heads: Mapping[str, Head]) -> int:
    return max(head.out_proj.out_features for head in heads.values())
