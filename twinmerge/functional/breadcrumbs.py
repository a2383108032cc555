"""Model Breadcrumbs: leave out the smallest entries of every task vector, and the largest."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.election import elected
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.thresholds import Smallest, kth_largest
from twinmerge.functional.ties import check_densities
from twinmerge.functional.weights import Setting, setting_at, settings_at


def breadcrumbs(
    pretrained: State,
    experts: Sequence[State],
    *,
    scale: Setting = 0.3,
    density: Setting | Sequence[Setting] = 0.9,
    gamma: float = 0.01,
    weights: Setting | Sequence[Setting] = 1.0,
    elect: bool = False,
    normalize: bool = True,
) -> dict[str, Tensor]:
    """Base plus the scaled sum of task vectors without outliers and without small entries, tensor by tensor.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        scale: Coefficient of the merged task vector; 0 returns the base. It may differ by layer and by name.
        density: Share of each tensor's entries that stays, in (0, 1]; 1 keeps all.
        gamma: Share of the largest entries that is left out; less where the density needs them.
        weights: Of the experts; one for all, or a list with one each, which may differ by layer and by name.
        elect: Merge what is left as TIES does, by an election of signs, instead of by a sum.
        normalize: Of an election, divide by the weights of the entries that agree; else their sum is taken.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If a share is out of range, there is no expert, names or shapes differ, or a weight is NaN or
            infinite.

    Reference:
        Davari and Belilovsky (2023), "Model Breadcrumbs", arXiv 2312.06795, section 3.2.
    """
    check_densities(density)
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma is {gamma}, but the share left out must be at least 0 and below 1, as in 0.01")

    def rule(tensors: Tensors) -> Step:
        factor, shares = setting_at(scale, tensors), settings_at(weights, tensors)
        masks = _masks(tensors, settings_at(density, tensors), gamma)

        def step(block: Block) -> Tensor:
            vectors = [_kept(v, *mask) if mask else v for v, mask in zip(block.vectors, masks, strict=True)]
            if elect:
                return block.base + factor * elected(vectors, shares, normalize=normalize, undecided_up=True)
            total = torch.zeros_like(block.base)
            for vector, share in zip(vectors, shares, strict=True):
                total.add_(vector, alpha=share)
            return block.base + factor * total

        return step

    return merge_blocks(pretrained, experts, each(rule))


def _kept(vector: Tensor, lower: Smallest | None, upper: Smallest) -> Tensor:
    size = vector.abs()
    mask = upper.of(size)
    return vector * (mask if lower is None else mask & ~lower.of(size))


def _masks(tensors: Tensors, densities: Sequence[float], gamma: float) -> list[tuple[Smallest | None, Smallest] | None]:
    """For each expert, the entries that are too small and those that are not too large; None keeps all."""
    size = tensors.numel
    kept = [int(density * size) for density in densities]
    small = [max(0, size - count - int(gamma * size)) for count in kept]
    # The b-th smallest of n is the (n - b + 1)-th largest.
    counts = [[size - b + 1, size - b - k + 1] for b, k in zip(small, kept, strict=True)]
    found = kth_largest(
        lambda: ([vector.abs_() for vector in block.vectors] for block in tensors),
        [[min(max(k, 1), size) for k in row] for row in counts],
        wide=tensors.dtype == torch.float64,
    )
    masks: list[tuple[Smallest | None, Smallest] | None] = []
    for density, below, count, (low, high) in zip(densities, small, kept, found, strict=True):
        lower = Smallest(low, below, size) if below else None
        masks.append(None if density >= 1 else (lower, Smallest(high, below + count, size)))
    return masks
