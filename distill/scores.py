"""What students and teacher are worth on labelled rows, and the warnings that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from distill.functional.vocabulary import align_vocabularies

FIGURES = ("accuracy", "loss", "agreement", "kl")


class Scores(nn.Module):
    """Running means of a stage: of every student, and of the teacher beside chance.

    Args:
        students: Their names.
        averaged: Whether averaged weights are scored as well.
    """

    def __init__(self, students: Iterable[str], averaged: bool) -> None:
        super().__init__()
        figures = (*FIGURES, *(("ema_accuracy",) if averaged else ()))
        self.of = nn.ModuleDict(
            {f"student {name}": nn.ModuleDict({figure: MeanMetric() for figure in figures}) for name in students}
        )
        self.teacher = MeanMetric()
        self.counts: dict[int, int] = {}

    def student(self, name: str) -> nn.ModuleDict:
        """The means of a student by figure."""
        return cast(nn.ModuleDict, self.of[f"student {name}"])

    def teach(self, logits: Tensor, labels: Tensor) -> None:
        """Score the teacher, and count the labels: what always giving the commonest one would get."""
        hard = classes_of(labels)
        self.teacher.update((logits.argmax(-1) == hard).float())
        values, counts = torch.unique(hard, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.counts[value] = self.counts.get(value, 0) + count

    def doubts(self, stage: str) -> dict[str, str]:
        """What speaks against the teacher, a sentence each under `chance` or a student's name; empties the counts."""
        rows, commonest = sum(self.counts.values()), max(self.counts.values(), default=0)
        self.counts = {}
        if not rows:
            return {}
        right, chance = float(self.teacher.compute()), commonest / rows
        found = {}
        if right <= chance:
            found["chance"] = (
                f"the teacher is right on {right:.3f} of the {stage} rows, no more than always giving their commonest "
                f"label ({chance:.3f}): look at its classes and their order, and at how its inputs are prepared"
            )
        for key, figures in self.of.items():
            accuracy = float(cast(MeanMetric, cast(nn.ModuleDict, figures)["accuracy"]).compute())
            if accuracy >= right > chance and right < 1:  # none is better than one that is always right
                found[key] = (
                    f"{key} is right on {accuracy:.3f} of the {stage} rows and the teacher on {right:.3f}: a teacher "
                    "that is no better holds its student back; take a stronger one, or train it longer"
                )
        return found


def classes_of(labels: Tensor) -> Tensor:
    """Class of every row, the likeliest one of a distribution."""
    return labels.argmax(-1) if labels.ndim == 2 else labels


def score_rows(logits: Tensor, labels: Tensor | None, teacher: Tensor | None) -> dict[str, Tensor]:
    """Figures of every row that the batch allows.

    Args:
        logits: The student's, shape (rows, classes), float32.
        labels: Class indices (rows,) or distributions (rows, classes); None where there are none.
        teacher: The teacher's logits, whose vocabulary may have another width; None where there are none.
    """
    rows: dict[str, Tensor] = {}
    if labels is not None:
        rows["accuracy"] = (logits.argmax(-1) == classes_of(labels)).float()
        rows["loss"] = F.cross_entropy(logits, labels.float() if labels.ndim == 2 else labels, reduction="none")
    if teacher is not None:
        rows["agreement"] = (logits.argmax(-1) == teacher.argmax(-1)).float()
        log_p, log_q = (F.log_softmax(z, -1) for z in align_vocabularies(logits, teacher))
        parts = torch.where(log_q > -torch.inf, log_q.exp() * (log_q - log_p), torch.zeros_like(log_q))
        rows["kl"] = parts.sum(-1)
    return rows


def warn_of(stage: str, doubts: dict[str, str], told: dict[str, str]) -> None:
    """Warn of what was not told yet of a stage, on one process, and remember it."""
    for key, doubt in doubts.items():
        if f"{stage} {key}" not in told:
            told[f"{stage} {key}"] = doubt
            rank_zero_warn(doubt)
