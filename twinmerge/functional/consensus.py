"""Consensus merging: only entries that several tasks need, by their TALL masks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.matrices import total
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.weights import Setting, setting_at


def consensus(
    pretrained: State, experts: Sequence[State], *, scale: Setting = 0.3, tall: float = 0.4, least: int = 2
) -> dict[str, Tensor]:
    r"""Base plus the scaled sum of task vectors where enough tasks need it.

    Task t needs an entry where :math:`|\tau_t| \ge \lambda_t |\sum_s \tau_s - \tau_t|`, its TALL mask. Entries that
    fewer than `least` tasks need are selfish or catastrophic and stay the base's.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        scale: Coefficient of the merged task vector; 0 returns the base. It may differ by layer and by name.
        tall: :math:`\lambda_t`, above 0; larger ones make sparser masks.
        least: How many tasks must need an entry, at least 0; 0 is task arithmetic.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If a number is out of range, there is no expert, names or shapes differ, or a weight is NaN or
            infinite.

    Reference:
        Wang et al. (2024), "Localizing task information for improved model merging and compression", arXiv 2405.07813,
        equations 4 and 6.
    """
    if not tall > 0 or least < 0:
        raise ValueError(f"tall is {tall} and least {least}, but they must be above 0 and at least 0, as in 0.4 and 2")

    def rule(tensors: Tensors) -> Step:
        factor = setting_at(scale, tensors)

        def step(block: Block) -> Tensor:
            merged = total(block)
            needs = torch.zeros_like(merged)
            for vector in block.vectors:
                needs.add_(vector.abs() >= tall * (merged - vector).abs())
            return block.base + factor * merged * (needs >= least)

        return step

    return merge_blocks(pretrained, experts, each(rule))
