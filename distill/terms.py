"""What every distillation term is: the contract of a term, and the outputs of networks that it compares."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from distill import functional as L
from distill.errors import DistillError


class Outputs(NamedTuple):
    """What a network says about a batch.

    Attributes:
        logits: Shape (batch, classes).
        features: Pooled features before the classifier, shape (batch, width), where a term needs them.
        maps: Feature maps from fine to coarse, each (batch, channels, height, width), where a term needs them.
        rows: Position of every row in the training set, shape (batch,), where a term needs it.
        head: For language models in chunks, what turns features into logits.
    """

    logits: Tensor
    features: Tensor | None = None
    maps: tuple[Tensor, ...] = ()
    rows: Tensor | None = None
    head: Any = None


class Term(nn.Module):
    """One distillation loss.

    Attributes:
        needs: The field of `Outputs` that it compares.
        epoch: Epochs that have passed, for what changes over them.
    """

    needs: Literal["logits", "features", "maps"] = "logits"
    epoch: float = 0.0

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            student: What the student says.
            teacher: What the teacher says about the same view; no gradient flows into it.
            labels: Class indices (batch,) or label distributions (batch, classes).
        """
        raise NotImplementedError


class LogitTerm(Term):
    """A loss of two matrices of logits.

    Args:
        standardised: Replace every row of both by its z-score first (logit standardisation).
    """

    def __init__(self, standardised: bool = False) -> None:
        super().__init__()
        self.standardised = standardised

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Compare the logits, in float32 at least whatever precision made them."""
        s, t = (z.logits.to(torch.promote_types(z.logits.dtype, torch.float32)) for z in (student, teacher))
        if self.standardised:
            s, t = L.standardise(s), L.standardise(t)
        return self.compare(s, t, labels)

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The loss of two matrices (batch, classes)."""
        raise NotImplementedError


def features_of(outputs: Outputs) -> Tensor:
    """Pooled features of a network.

    Raises:
        DistillError: If it gave none.
    """
    if outputs.features is None:
        raise DistillError("a term compares features, but a network gave logits only; give Outputs with features")
    return outputs.features
