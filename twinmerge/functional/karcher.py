"""Karcher mean: the point on the sphere whose squared distances to the models' directions add up to the least."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import State, Step, Tensors
from twinmerge.functional.inner_products import Around, combination, gram
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.weights import Setting, shares_at


def karcher(
    pretrained: State,
    experts: Sequence[State],
    *,
    weights: Setting | Sequence[Setting] = 1.0,
    around: Around = "origin",
    iterations: int = 10,
    tolerance: float = 1e-5,
) -> dict[str, Tensor]:
    r"""Riemannian mean of the directions at the mean length, tensor by tensor.

    Every step goes from the mean m along :math:`\sum_t w_t \log_m(u_t)`. All of them lie in the span of the
    directions u, so that their inner products, read once, are all that is needed.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        weights: Of the experts; one for all, or a list with one each, which may differ by layer and by name.
        around: Take directions from the origin, as of weights, or from the base, as of task vectors.
        iterations: At most so many steps.
        tolerance: Shorter steps end it.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If the weights add up to 0, there is no expert, names or shapes differ, or a weight is NaN or
            infinite.

    Reference:
        Karcher (1977), "Riemannian center of mass and mollifier smoothing"; Buss and Fillmore (2001), "Spherical
        averages", algorithm A1.
    """

    def rule(tensors: Tensors) -> Step:
        shares = torch.tensor(shares_at(weights, tensors), dtype=torch.float64)
        products = gram(tensors, around)
        size = products.diagonal().sqrt()
        used = size > 1e-5
        if not used.any():
            return lambda block: combination(block, [0.0] * tensors.experts, around)
        unit = torch.where(used, 1 / size.clamp(min=1e-300), 0.0)
        cosines = products * unit[:, None] * unit[None, :]
        mean = _mean(cosines, torch.where(used, shares, 0.0) / shares[used].sum(), iterations, tolerance)
        return lambda block: combination(block, (mean * unit * float(shares @ size)).tolist(), around)

    return merge_blocks(pretrained, experts, each(rule))


def _mean(cosines: Tensor, shares: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Coefficients of the mean in the directions whose cosines are given."""

    def length(coefficients: Tensor) -> float:
        return math.sqrt(max(0.0, float(coefficients @ cosines @ coefficients)))

    mean = shares.clone()
    if length(mean) < tolerance:
        mean = torch.zeros_like(shares).index_fill_(0, shares.nonzero()[0], 1.0)
    mean = mean / length(mean)
    for _ in range(iterations):
        step = torch.zeros_like(mean)
        for index in shares.nonzero().flatten().tolist():
            cosine = max(-1.0, min(1.0, float(cosines[index] @ mean)))
            angle = math.acos(cosine)
            if angle < tolerance:
                continue
            pull = float(shares[index]) * angle / math.sin(angle)
            step[index] += pull
            step -= pull * cosine * mean
        size = length(step)
        if size < tolerance:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean = mean / length(mean)
    return mean
