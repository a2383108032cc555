"""SCE: select the entries that vary between experts, calculate weights from them, erase minority signs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.election import elected
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.thresholds import Largest, kth_largest


def sce(
    pretrained: State, experts: Sequence[State], *, select: float = 1.0, scale: float = 1.0, floor: float = 0.0
) -> dict[str, Tensor]:
    r"""Base plus the weighted mean of selected task vectors over the entries of the elected sign.

    Select: the share of a tensor's entries with the largest variance over the experts. Calculate: a weight for each
    expert, :math:`\eta_t \propto \sum_i \hat\tau_{t,i}^2`. Erase: entries whose sign is not that of their sum.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        select: Share of the varying entries of each tensor that stays, in (0, 1].
        scale: Coefficient of the merged task vector; the paper has 1.
        floor: Where the experts' mean squares add up to less than this they weigh alike; mergekit has 1e-6.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If the share is out of range, there is no expert, names or shapes differ, or a weight is NaN or
            infinite.

    Reference:
        Wan et al. (2024), "FuseChat: knowledge fusion of chat models", arXiv 2408.07990, section 3.3.
    """
    if not 0 < select <= 1:
        raise ValueError(f"the share selected is {select}, but it must be above 0 and at most 1, as in 0.1")

    def rule(tensors: Tensors) -> Step:
        made = (_selection(tensors, select), _selection(tensors, select))  # one for the sums, one for the merge
        squares = torch.zeros(tensors.experts, dtype=torch.float64)
        for block in tensors:
            for index, vector in enumerate(_selected(block, made[0])):
                squares[index] += float(vector.double().square().sum())
        total = float(squares.sum())
        alike = total <= floor * tensors.numel or total == 0
        weights = [1 / tensors.experts] * tensors.experts if alike else (squares / total).tolist()

        def step(block: Block) -> Tensor:
            votes = [1.0] * tensors.experts
            merged = elected(_selected(block, made[1]), weights, votes=votes, undecided_up=True)
            return block.base + scale * merged

        return step

    return merge_blocks(pretrained, experts, each(rule))


def _selection(tensors: Tensors, select: float) -> Largest | None:
    """The entries of largest variance; None selects all."""
    if select >= 1 or tensors.experts < 2:
        return None
    varying = sum(int(_variance(block).count_nonzero()) for block in tensors)
    count = max(1, int(varying * select))
    wide = tensors.dtype == torch.float64
    return Largest(kth_largest(lambda: ([_variance(block)] for block in tensors), [[count]], wide=wide)[0][0], count)


def _variance(block: Block) -> Tensor:
    return torch.stack(block.vectors).var(0, unbiased=False)


def _selected(block: Block, selection: Largest | None) -> list[Tensor]:
    if selection is None:
        return block.vectors
    mask = selection.of(_variance(block))
    return [vector.mul_(mask) for vector in block.vectors]
