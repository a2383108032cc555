"""The loss of the labels: cross-entropy or one sigmoid a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.arguments import checked
from distill.functional.checks import NOTHING, check_rows
from gapbridge.arguments import ProperShare

if TYPE_CHECKING:
    from distill.regimes import Regime


def with_hard(terms: Mapping[str, object], regime: Regime) -> Mapping[str, object]:
    """Losses of a student, with the regime's loss of the labels where the terms do not say another.

    Args:
        terms: As of `distill.losses.DistillLoss`.
        regime: Of the training.
    """
    given = terms.get("hard")
    if not isinstance(given, Mapping) or "loss" in given:
        return terms
    hard = {"kind": regime.hard, "reduction": regime.hard_reduction, "smoothing": regime.smoothing}
    return {**terms, "hard": {**hard, **given}}


class HardLoss(nn.Module):
    """Loss of the labels.

    Args:
        kind: ce, cross-entropy; or bce, one sigmoid a class.
        reduction: For bce, mean over batch and classes as in the official code, which makes the term about as many
            times smaller as there are classes; or sum_classes.
        smoothing: Label smoothing of class indices; mixed labels are smoothed where they are mixed.
    """

    @checked
    def __init__(
        self,
        kind: Literal["ce", "bce"] = "ce",
        reduction: Literal["mean", "sum_classes"] = "mean",
        smoothing: ProperShare = 0.0,
    ) -> None:
        super().__init__()
        self.kind, self.reduction, self.smoothing = kind, reduction, smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (batch, classes) with labels as in `Term`; rows labelled -100 do not count.

        Raises:
            ValueError: If logits are NaN or infinite where their labels give a probability.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        counted = labels.sum() if labels.is_floating_point() else (labels >= 0).all() / 1.0 - 1
        if not bool((logits.detach().sum() + counted).isfinite()) or (labels.ndim == 1 and bool(counted < 0)):
            logits, labels = self._counted(logits, labels)
            if not len(labels):
                return logits.sum()
        if self.kind == "ce":
            smoothing = self.smoothing if labels.ndim == 1 else 0.0
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        from timm.loss import BinaryCrossEntropy

        loss: Tensor = BinaryCrossEntropy(self.smoothing, sum_classes=self.reduction == "sum_classes")(logits, labels)
        return loss

    def _counted(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that count, their masked classes finite."""
        if labels.ndim == 1:
            logits, labels = logits[labels != -100], labels[labels != -100]
        check_rows(logits, "student")
        classes = logits.shape[1]
        mass = (
            labels if labels.ndim == 2 else F.one_hot(labels, classes) * (1 - self.smoothing) + self.smoothing / classes
        )
        if len(wrong := (logits.isneginf() & ~(mass == 0)).nonzero()):
            raise ValueError(
                f"the student masks class {int(wrong[0, 1])} of row {int(wrong[0, 0])}, to which the label or its "
                "smoothing gives a probability, so the loss is infinite: label with classes that are not masked, "
                "without smoothing"
            )
        return logits.clamp(min=NOTHING), labels
