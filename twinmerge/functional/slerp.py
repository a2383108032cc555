"""SLERP: along the great circle between two models instead of the straight line."""

import math
from collections.abc import Sequence

from torch import Tensor

from twinmerge.functional.blocks import State, Step, Tensors
from twinmerge.functional.inner_products import combination, gram
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.weights import Setting, setting_at

_STRAIGHT = 0.9995  # of the cosine: from here on the arc is a line


def slerp(pretrained: State, experts: Sequence[State], *, t: Setting = 0.5) -> dict[str, Tensor]:
    r"""Spherical interpolation, :math:`(\sin((1-t)\omega)\, a + \sin(t\omega)\, b) / \sin\omega`, tensor by tensor.

    Args:
        pretrained: Base weights by name; takes no part beside giving names and types.
        experts: Two state dicts of the same names and shapes, a and b.
        t: 0 gives the first, 1 the second. It may differ by layer and by name, see
            :mod:`twinmerge.functional.weights`.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If there are not two experts, names or shapes differ, or a weight is NaN or infinite.

    Reference:
        Shoemake (1985), "Animating rotation with quaternion curves", section 3.3.
    """
    if len(experts) != 2:
        raise ValueError(f"SLERP lies between two models and got {len(experts)}: give two, or use multi_slerp")

    def rule(tensors: Tensors) -> Step:
        place = setting_at(t, tensors)
        products = gram(tensors, "origin")
        size = products.diagonal().sqrt().clamp(min=1e-300)
        cosine = max(-1.0, min(1.0, float(products[0, 1] / (size[0] * size[1]))))
        if abs(cosine) > _STRAIGHT:
            shares = [1 - place, place]
        else:
            angle = math.acos(cosine)
            shares = [math.sin((1 - place) * angle) / math.sin(angle), math.sin(place * angle) / math.sin(angle)]
        return lambda block: combination(block, shares, "origin")

    return merge_blocks(pretrained, experts, each(rule))
