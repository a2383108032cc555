"""Multi-SLERP: the direction of the mean of several models' directions, at their mean length."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import State, Step, Tensors
from twinmerge.functional.inner_products import Around, combination, gram
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.weights import Setting, settings_at, shares_at


def multi_slerp(
    pretrained: State,
    experts: Sequence[State],
    *,
    weights: Setting | Sequence[Setting] = 1.0,
    normalize: bool = True,
    around: Around = "base",
) -> dict[str, Tensor]:
    r"""Barycentre on the sphere, tensor by tensor: :math:`m / \|m\| \cdot \sum_t w_t \|x_t\|`.

    Here :math:`m = \sum_t w_t x_t / \|x_t\|`. The interpolation in the tangent space of m that mergekit adds is zero:
    the weighted tangents of the directions around their own weighted mean cancel.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        weights: Of the experts; one for all, or a list with one each, which may differ by layer and by name.
        normalize: Divide the weights by their sum.
        around: Take the x from the base, as task vectors, or from the origin, as weights.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If the directions cancel, the weights are to be divided by a sum of 0, there is no expert, names or
            shapes differ, or a weight is NaN or infinite.

    Reference:
        Goddard (2024), "Multi-SLERP"; Buss and Fillmore (2001), "Spherical averages", of which it is the first step.
    """

    def rule(tensors: Tensors) -> Step:
        shares = torch.tensor((shares_at if normalize else settings_at)(weights, tensors), dtype=torch.float64)
        products = gram(tensors, around)
        size = products.diagonal().sqrt()
        share_of = shares / (size + 1e-8)
        length = float((share_of @ products @ share_of).clamp(min=0).sqrt())
        if tensors.experts == 1:
            share_of, length, size = torch.ones(1), 1.0, torch.ones(1)
        elif length < 1e-8:
            if tensors.experts > 2 and bool(size.any()):
                raise ValueError(f"the directions of '{tensors.name}' cancel: give other weights")
            share_of, length = shares, float((shares * size).sum()) or 1.0  # two opposite ones: the straight line
        reach = float((shares * size).sum()) / length
        return lambda block: combination(block, (share_of * reach).tolist(), around)

    return merge_blocks(pretrained, experts, each(rule))
