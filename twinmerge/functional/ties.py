"""TIES-Merging: trim every task vector, elect a sign for every parameter, average what agrees with it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, Prepare, Rule, State, Step, Tensors
from twinmerge.functional.election import elected
from twinmerge.functional.state import merge_blocks
from twinmerge.functional.thresholds import Largest, at_least, kth_largest
from twinmerge.functional.weights import Setting, setting_at, settings_at

Vectors = Callable[[Tensors, Block], list[Tensor]]  # the task vectors of a block, sparse or not


def ties(
    pretrained: State,
    experts: Sequence[State],
    *,
    scale: Setting = 1.0,
    density: Setting | Sequence[Setting] = 0.2,
    weights: Setting | Sequence[Setting] = 1.0,
    trim: Literal["model", "tensor"] = "model",
    normalize: bool = True,
) -> dict[str, Tensor]:
    r"""Base plus the scaled disjoint mean of trimmed task vectors.

    Trim: of every task vector, taken as a whole, the fraction ``density`` of largest magnitude stays. Elect: the sign
    of the sum, :math:`\gamma = sgn(\sum_t w_t \hat\tau_t)`. Merge: the mean of the entries whose sign is
    :math:`\gamma`, over those entries alone, times ``scale``.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        scale: Coefficient of the merged task vector; 0 returns the base. It may differ by layer and by name, see
            :mod:`twinmerge.functional.weights`.
        density: Fraction kept of every task vector, in (0, 1]; one for all experts, or a list with one each.
        weights: Of the experts in the sum and the mean; one for all, or a list with one each.
        trim: Take the fraction of the whole model, as in the paper, or of each tensor, as mergekit has it: there the
            fraction is cut to a whole number of entries, of equal ones the first are kept, a sum of exactly zero elects
            the positive sign, and the density may differ by layer and by name.
        normalize: Divide by the weights of the entries that agree; else their sum is taken.

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
    check_densities(density)
    plain: Vectors = lambda _, block: block.vectors  # noqa: E731
    if trim == "model":
        return merge_blocks(pretrained, experts, trimmed_model(plain, scale, density, weights, normalize))

    def rule(tensors: Tensors) -> Step:
        factor, shares = setting_at(scale, tensors), settings_at(weights, tensors)
        masks = kept_of_tensor(tensors, settings_at(density, tensors))

        def step(block: Block) -> Tensor:
            vectors = [v if m is None else m.kept(v) for v, m in zip(block.vectors, masks, strict=True)]
            merged = elected(vectors, shares, normalize=normalize, undecided_up=True)
            return merged.mul_(factor).add_(block.base)

        return step

    return merge_blocks(pretrained, experts, lambda _: rule)


def trimmed_model(
    vectors_of: Vectors,
    scale: Setting,
    density: Setting | Sequence[Setting],
    weights: Setting | Sequence[Setting],
    normalize: bool = True,
) -> Prepare:
    """The rule of TIES with one threshold an expert over the whole model, found in passes over its blocks."""

    def prepare(model: Iterable[Tensors]) -> Rule:
        thresholds: list[float] = []

        def rule(tensors: Tensors) -> Step:
            if not thresholds:
                thresholds.extend(_thresholds(model, vectors_of, density))
            factor, shares = setting_at(scale, tensors), settings_at(weights, tensors)

            def step(block: Block) -> Tensor:
                pairs = zip(vectors_of(tensors, block), thresholds, strict=True)
                vectors = [at_least(vector, threshold) for vector, threshold in pairs]
                return elected(vectors, shares, normalize=normalize).mul_(factor).add_(block.base)

            return step

        return rule

    return prepare


def check_densities(density: Setting | Sequence[Setting]) -> None:
    """Refuse a density that keeps nothing, or more than all.

    Raises:
        ValueError: For a number that is not above 0 and at most 1.
    """
    for value in _numbers(density):
        if not 0 < value <= 1:
            raise ValueError(f"the density is {value}, but it must be above 0 and at most 1, as in 0.2")


def _numbers(setting: object) -> Iterator[float]:
    if isinstance(setting, dict):
        for value in setting.values():
            yield from _numbers(value)
    elif isinstance(setting, Sequence):
        for value in setting:
            yield from _numbers(value)
    else:
        yield float(setting)  # type: ignore[arg-type]  # what is left of a setting


def _thresholds(model: Iterable[Tensors], vectors_of: Vectors, density: Setting | Sequence[Setting]) -> list[float]:
    """Smallest magnitude that is kept of each expert: the round(density * size)-th largest of its task vector."""
    tensors = list(model)
    shares = list(density) if isinstance(density, Sequence) else [density] * tensors[0].experts
    if not all(isinstance(share, int | float) for share in shares):
        raise ValueError(f"the density is {density}, but of a whole model it is one number an expert, as in 0.2")
    size = sum(one.numel for one in tensors)
    counts = [[max(1, round(float(share) * size))] for share in shares]  # type: ignore[arg-type]  # numbers, see above

    def parts() -> Iterator[list[Tensor]]:
        for one in tensors:
            for block in one:
                yield [vector.abs_() for vector in vectors_of(one, block)]

    wide = any(one.dtype == torch.float64 for one in tensors)
    return [row[0].value for row in kth_largest(parts, counts, wide=wide)]


def kept_of_tensor(tensors: Tensors, densities: Sequence[float]) -> list[Largest | None]:
    """Which entries of one tensor's task vectors are among the int(density * size) largest; None keeps all."""
    counts = [max(1, int(density * tensors.numel)) for density in densities]
    found = kth_largest(
        lambda: ([vector.abs_() for vector in block.vectors] for block in tensors),
        [[count] for count in counts],
        wide=tensors.dtype == torch.float64,
    )
    return [
        None if density >= 1 else Largest(row[0], count)
        for density, row, count in zip(densities, found, counts, strict=True)
    ]
