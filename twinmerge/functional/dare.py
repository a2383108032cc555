"""DARE: drop most of every task vector at random and rescale the rest, before another method merges them."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from gapbridge.arguments import Seed
from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.state import check_states, each, merge_blocks
from twinmerge.functional.ties import check_densities, trimmed_model
from twinmerge.functional.weights import Setting, setting_at, settings_at


def dare(
    pretrained: State,
    experts: Sequence[State],
    *,
    drop: float = 0.9,
    scale: Setting = 0.3,
    weights: Setting | Sequence[Setting] = 1.0,
    seed: Seed = 0,
) -> dict[str, Tensor]:
    """Task arithmetic over task vectors that went through :func:`drop_and_rescale`.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        drop: Fraction p of every task vector that is dropped, in [0, 1).
        scale: Coefficient of the sum of task vectors. It may differ by layer and by name, see
            :mod:`twinmerge.functional.weights`.
        weights: Of the experts in the sum; one for all, or a list with one each.
        seed: Seed of the masks; neither the order of the experts nor that of the tensors changes them.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If the drop rate is out of range, there is no expert, names or shapes differ, or a weight is NaN or
            infinite.

    Example:
        >>> import torch
        >>> dare({"w": torch.zeros(2)}, [{"w": torch.tensor([1.0, 2.0])}], drop=0.0, scale=0.5)
        {'w': tensor([0.5000, 1.0000])}

    Reference:
        Yu et al. (2024), "Language models are Super Mario", arXiv 2311.03099, section 3.2.
    """
    _check_drop(drop)

    def rule(tensors: Tensors) -> Step:
        factor, shares = setting_at(scale, tensors), settings_at(weights, tensors)

        def step(block: Block) -> Tensor:
            total = torch.zeros_like(block.base)
            for vector, share in zip(_sparse(tensors, block, drop, seed), shares, strict=True):
                total.add_(vector, alpha=share)
            return block.base + factor * total

        return step

    return merge_blocks(pretrained, experts, each(rule))


def dare_ties(
    pretrained: State,
    experts: Sequence[State],
    *,
    drop: float = 0.9,
    scale: Setting = 1.0,
    density: float = 0.2,
    weights: Setting | Sequence[Setting] = 1.0,
    seed: Seed = 0,
) -> dict[str, Tensor]:
    """TIES-Merging over task vectors that went through :func:`drop_and_rescale`.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        drop: Fraction p of every task vector that is dropped, in [0, 1).
        scale: Coefficient of the merged task vector.
        density: Fraction of every task vector that the trimming of TIES keeps, in (0, 1]; it has no effect where the
            drop leaves less than that.
        weights: Of the experts in the sum and the mean; one for all, or a list with one each.
        seed: Seed of the masks; neither the order of the experts nor that of the tensors changes them.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: As :func:`dare` and :func:`~twinmerge.functional.ties.ties`.

    Reference:
        Yu et al. (2024), arXiv 2311.03099, section 4.1 (DARE as a plug-in for TIES-Merging).
    """
    _check_drop(drop)
    check_densities(density)
    vectors = lambda tensors, block: _sparse(tensors, block, drop, seed)  # noqa: E731
    return merge_blocks(pretrained, experts, trimmed_model(vectors, scale, density, weights))


def drop_and_rescale(pretrained: State, experts: Sequence[State], *, drop: float, seed: int) -> list[dict[str, Tensor]]:
    r"""Experts with sparse task vectors, :math:`\theta_0 + m \odot (\theta_t - \theta_0) / (1 - p)`.

    Every entry of the mask m is 1 with probability 1 - p and 0 otherwise.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        drop: p, in [0, 1).
        seed: Seed of the masks. The seed of each block's mask is a digest of it, the tensor's name, the block's place
            and the expert's values, so the mask follows the expert wherever it stands in the list.

    Returns:
        The experts, in order, in float32 (float64 where base or expert is).

    Raises:
        ValueError: If p is out of range, there is no expert, names or shapes differ, or a weight is NaN or infinite.
    """
    _check_drop(drop)
    check_states(pretrained, experts)
    # Promoted first, because merge_blocks hands results back in the type of its base.
    base_state = {name: _promoted(tensor) for name, tensor in pretrained.items()}

    def rule(tensors: Tensors) -> Step:
        return lambda block: block.base + _sparse(tensors, block, drop, seed)[0]

    return [merge_blocks(base_state, [expert], each(rule)) for expert in experts]


def _check_drop(drop: float) -> None:
    if not 0 <= drop < 1:
        raise ValueError(f"the drop rate is {drop}, but it must be at least 0 and below 1, as in 0.9")


def _promoted(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


def _sparse(tensors: Tensors, block: Block, drop: float, seed: int) -> list[Tensor]:
    """The task vectors of a block, each with its mask, rescaled."""
    place = f"{block.start}:" if block.start else ""
    return [_masked(f"{seed}:{tensors.name}:{place}", block.base, expert, drop) for expert in block.experts]


def _masked(label: str, base: Tensor, tensor: Tensor, drop: float) -> Tensor:
    kept = uniform(label, tensor).to(base.device) >= drop
    return (tensor - base) * kept / (1 - drop)


def uniform(label: str, tensor: Tensor) -> Tensor:
    """Random numbers in [0, 1) of a tensor's shape, float32, whose seed is a digest of a label and its values."""
    digest = hashlib.blake2b(label.encode(), digest_size=8)
    digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()) >> 1)
    return torch.rand(tensor.shape, generator=generator)
