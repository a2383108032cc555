"""TIES-Merging: trim every task vector, elect a sign for every parameter, average what agrees with it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gapbridge.arguments import Finite
from twinmerge.functional.state import State, check_states, merge_state, unchanged, working_dtype


def ties(
    pretrained: State, experts: Sequence[State], *, scale: Finite = 1.0, density: float = 0.2
) -> dict[str, Tensor]:
    r"""Base plus the scaled disjoint mean of trimmed task vectors.

    Trim: of every task vector, taken as a whole, the fraction ``density`` of largest magnitude stays. Elect: the sign
    of the sum, :math:`\gamma = sgn(\sum_t \hat\tau_t)`. Merge: the mean of the entries whose sign is :math:`\gamma`,
    over those entries alone, times ``scale``.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        scale: Coefficient of the merged task vector; 0 returns the base.
        density: Fraction kept of every task vector, in (0, 1].

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If the density is out of range, there is no expert, names or shapes differ, or a weight is NaN or
            infinite.

    Example:
        >>> import torch
        >>> experts = [{"w": torch.tensor([1.0, 4.0, 0.1])}, {"w": torch.tensor([2.0, -3.0, 0.2])}]
        >>> ties({"w": torch.zeros(3)}, experts, density=2 / 3)
        {'w': tensor([1.5000, 4.0000, 0.0000])}

    Reference:
        Yadav et al. (2023), "TIES-Merging: resolving interference when merging models", arXiv 2306.01708, algorithm 1.
    """
    if not 0 < density <= 1:
        raise ValueError(f"the density is {density}, but it must be above 0 and at most 1, as in 0.2")
    check_states(pretrained, experts)
    thresholds = [_threshold(pretrained, expert, density) for expert in experts]

    def combine(_: str, base: Tensor, tensors: Iterator[Tensor]) -> Tensor:
        vectors = torch.stack([tensor - base for tensor in tensors])
        for vector, threshold in zip(vectors, thresholds, strict=True):
            vector[vector.abs() < threshold] = 0
        # In float64 the sum does not depend on the order of the experts, and so neither does a close election.
        elected = vectors.sum(0, dtype=torch.float64).sign()
        agrees = (vectors.sign() == elected) & (elected != 0)
        return base + scale * (vectors * agrees).sum(0) / agrees.sum(0).clamp(min=1)

    return merge_state(pretrained, experts, combine)


def _threshold(pretrained: State, expert: State, density: float) -> float:
    """Smallest magnitude that is kept: the round(density * size)-th largest of the whole task vector."""
    sizes = {name: base.numel() for name, base in pretrained.items() if base.is_floating_point()}
    magnitudes = [
        (expert[name].detach().to(base.device, working_dtype(base, expert[name])) - base.detach()).abs().flatten().cpu()
        for name, base in pretrained.items()
        if name in sizes and not unchanged(base, expert[name])
    ]
    flat = torch.cat(magnitudes) if magnitudes else torch.zeros(1)
    kept = max(1, round(density * sum(sizes.values())))
    if kept > len(flat):  # the rest is zero
        return 0.0
    return float(flat.kthvalue(len(flat) - kept + 1).values)
