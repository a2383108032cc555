"""The losses that are explained, and how sure a model is, from its logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["entropy", "losses"]


def losses(logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Zero-one, Brier and log loss of every answer.

    Args:
        logits: Shape (answers, classes).
        truth: The right class of each, shape (answers,).

    Returns:
        By `zero_one` (0 or 1), `brier` (half the squared distance, from 0 to 1) and `log` (in nats), shape (answers,).

    >>> found = losses(torch.zeros(1, 2), torch.tensor([1]))
    >>> [round(float(value), 4) for value in found.values()]
    [1.0, 0.25, 0.6931]
    """
    chance = logits.softmax(-1)
    own = chance.gather(-1, truth[:, None])[:, 0]
    return {
        "zero_one": (logits.argmax(-1) != truth).to(logits.dtype),
        "brier": (chance.square().sum(-1) - 2 * own + 1) / 2,
        "log": F.cross_entropy(logits, truth, reduction="none"),
    }


def entropy(logits: Tensor) -> Tensor:
    """Entropy of every answer's probabilities as a share of the largest possible one, shape (answers,).

    Args:
        logits: Shape (answers, classes), at least two classes.

    >>> [round(float(value), 4) for value in entropy(torch.tensor([[0.0, 0.0], [50.0, 0.0]]))]
    [1.0, 0.0]
    """
    found: Tensor = torch.special.entr(logits.softmax(-1)).sum(-1)
    return found / math.log(logits.shape[-1])
