"""PCB-Merging: entries weighed by how they stand within their task and against the other tasks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.thresholds import kth_largest
from twinmerge.functional.weights import Setting, setting_at

_CUT = 1e-4  # share of smallest and of largest magnitudes that count as the next one


def pcb(
    pretrained: State, experts: Sequence[State], *, scale: Setting = 1.0, density: float = 0.1
) -> dict[str, Tensor]:
    r"""Base plus the mean of task vectors weighed entry by entry, tensor by tensor.

    With magnitudes cut at their extremes and brought to [0, 1] for each task, n(t), an entry of N tasks has the balance
    :math:`\beta_t = \exp(N n_t^2) \tanh(\tau_t \sum_s \tau_s)`: its importance within the task, and its agreement with
    the others. Balances below the share ``density`` of largest ones are dropped, the others brought to [0, 1], and
    :math:`\tau = \sum_t \beta_t \tau_t / \sum_t \beta_t`.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        scale: Coefficient of the merged task vector; 0 returns the base. It may differ by layer and by name.
        density: Share of the entries of each task that stays, in (0, 1].

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If the density is out of range, there is no expert, names or shapes differ, or a weight is NaN or
            infinite.

    Reference:
        Du et al. (2024), "Parameter competition balancing for model merging", arXiv 2410.02396, section 3, with the
        activations of the authors' code.
    """
    if not 0 < density <= 1:
        raise ValueError(f"the density is {density}, but it must be above 0 and at most 1, as in 0.1")

    def rule(tensors: Tensors) -> Step:
        factor, size, wide = setting_at(scale, tensors), tensors.numel, tensors.dtype == torch.float64
        cut = min(int(_CUT * size), (size - 1) // 2)
        extremes = kth_largest(
            lambda: ([vector.abs_() for vector in block.vectors] for block in tensors),
            [[1 + cut, size - cut]] * tensors.experts,
            wide=wide,
        )
        limits = [(low.value, high.value) for high, low in extremes]
        kept = max(1, int(density * size))
        bounds = [
            (low.value, high.value)
            for high, low in kth_largest(
                lambda: (_balances(block, limits) for block in tensors), [[1, kept]] * tensors.experts, wide=wide
            )
        ]

        def step(block: Block) -> Tensor:
            merged, weights = torch.zeros_like(block.base), torch.zeros_like(block.base)
            for vector, balance, (low, high) in zip(block.vectors, _balances(block, limits), bounds, strict=True):
                share = (balance - low).clamp_(min=0) / (high - low) if high > low else (balance >= high).to(balance)
                merged.addcmul_(vector, share)
                weights.add_(share)
            return block.base + factor * merged / weights.clamp(min=1e-12)

        return step

    return merge_blocks(pretrained, experts, each(rule))


def _balances(block: Block, limits: Sequence[tuple[float, float]]) -> list[Tensor]:
    """The balance of every entry of every task; disagreement counts as none."""
    cut = [v.sign() * v.abs().clamp(low, high) for v, (low, high) in zip(block.vectors, limits, strict=True)]
    together = torch.stack(cut).sum(0)
    found = []
    for vector, (low, high) in zip(cut, limits, strict=True):
        inside = (vector.abs() - low) / (high - low) if high > low else torch.zeros_like(vector)
        balance = (len(cut) * inside.square()).exp_() * (vector * together).tanh_()
        found.append(balance.clamp_(min=0).abs_())  # no zero keeps the sign that its bits would count
    return found
