"""DELLA: drop small entries of every task vector more often than large ones, rescale, elect signs and average."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.dare import uniform
from twinmerge.functional.election import elected
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.weights import Setting, setting_at, settings_at


def della(
    pretrained: State,
    experts: Sequence[State],
    *,
    drop: float = 0.7,
    spread: float = 0.2,
    scale: Setting = 1.0,
    weights: Setting | Sequence[Setting] = 1.0,
    elect: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Task vectors through MagPrune, then the disjoint mean of the elected sign.

    Of n entries of a row, that of rank r by magnitude (0 the largest) is dropped with probability
    :math:`p - \epsilon/2 + \epsilon\, r / (n - 1)`, and what stays is divided by the probability that it does.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        drop: Mean probability p, in [0, 1).
        spread: :math:`\epsilon`, between the probabilities of a row's largest and smallest entry.
        scale: Coefficient of the merged task vector; 0 returns the base. It may differ by layer and by name.
        weights: Of the experts; one for all, or a list with one each, which may differ by layer and by name.
        elect: Merge by an election of signs as in the paper; else by a sum.
        seed: Seed of the masks; neither the order of the experts nor that of the tensors changes them.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If a probability falls out of [0, 1), there is no expert, names or shapes differ, or a weight is
            NaN or infinite.

    Reference:
        Deep et al. (2024), "DELLA-Merging: reducing interference in model merging through magnitude-based sampling",
        arXiv 2406.11617, section 3.
    """
    if not (spread >= 0 and drop - spread / 2 >= 0 and drop + spread / 2 < 1):
        raise ValueError(
            f"the drop rate is {drop} with a spread of {spread}, but all probabilities must be at least 0 and below 1: "
            "give a smaller spread"
        )

    def rule(tensors: Tensors) -> Step:
        factor, shares = setting_at(scale, tensors), settings_at(weights, tensors)

        def step(block: Block) -> Tensor:
            label = f"{seed}:{tensors.name}:{block.start}:"
            sparse = [_pruned(expert, expert - block.base, drop, spread, label) for expert in block.experts]
            if elect:
                return block.base + factor * elected(sparse, shares)
            total = torch.zeros_like(block.base)
            for vector, share in zip(sparse, shares, strict=True):
                total.add_(vector, alpha=share)
            return block.base + factor * total

        return step

    return merge_blocks(pretrained, experts, each(rule))


def _pruned(expert: Tensor, vector: Tensor, drop: float, spread: float, label: str) -> Tensor:
    rows = vector.reshape(1, -1) if vector.dim() < 2 else vector.flatten(1)
    order = rows.abs().argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(rows).scatter_(
        1, order, torch.arange(rows.shape[1], device=rows.device, dtype=rows.dtype).expand_as(rows).contiguous()
    )
    dropped = (drop - spread / 2) + spread * ranks / max(1, rows.shape[1] - 1)
    kept = uniform(label, expert).view(rows.shape).to(rows.device) >= dropped
    return (rows * kept / (1 - dropped)).view(vector.shape)
