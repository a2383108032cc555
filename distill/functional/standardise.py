"""Logit standardisation: remove every row's mean and scale before any logit loss."""

import torch
from torch import Tensor

from distill.functional.checks import NOTHING


def standardise(logits: Tensor, eps: float = 1e-7) -> Tensor:
    r"""Z-score of every row, :math:`(z - mean(z)) / (std(z) + \epsilon)`.

    The student then copies the teacher's ranking and shape but not its range. Use it on both networks' logits before
    `kd` or another logit loss, with a weight several times larger than without (9 in the paper, at temperature 2).

    Args:
        logits: Shape (batch, classes).
        eps: Added to the standard deviation (of n - 1 degrees of freedom).

    Returns:
        Logits of the same shape; a constant row becomes 0 with no gradient. Masked classes (-inf) do not count and stay
            as they are.

    Example:
        >>> import torch
        >>> standardise(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.0000,  0.0000,  1.0000]])

    Reference:
        Sun et al. (2024), "Logit standardization in knowledge distillation", arXiv 2403.01427, algorithm 1.
    """
    masked = logits <= NOTHING  # -inf, or the least number of a type, as many masks have
    live = (~masked).sum(-1, keepdim=True)
    known = logits.masked_fill(masked, 0)
    centred = (known - known.sum(-1, keepdim=True) / live.clamp(min=1)).masked_fill(masked, 0)
    square = centred.square().sum(-1, keepdim=True) / (live - 1).clamp(min=1)
    varies = square > 0
    deviation = torch.where(varies, square, torch.ones_like(square)).sqrt() * varies
    return (centred / (deviation + eps)).masked_fill(masked, -torch.inf)
