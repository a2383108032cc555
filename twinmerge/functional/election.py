"""The election of a sign for every parameter, and the sum or mean of what agrees with it."""

from collections.abc import Sequence

import torch
from torch import Tensor

_PIECE = 2**16  # values that are worked on at once: what is held of them stays in a core's cache


def elected(
    vectors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    votes: Sequence[float] | None = None,
    normalize: bool = True,
    undecided_up: bool = False,
) -> Tensor:
    r"""Weighted disjoint mean: over the vectors that have the sign of their weighted sum.

    With :math:`u_t = w_t \tau_t` and :math:`\gamma = sgn(\sum_t u_t)` it is
    :math:`\sum_t [sgn(u_t) = \gamma] u_t / \sum_t [sgn(u_t) = \gamma] w_t`.

    Args:
        vectors: Task vectors, trimmed; of any one shape.
        weights: One each.
        votes: Weights in the election alone, where they are others.
        normalize: Divide by the weights of those that agree.
        undecided_up: A sum of exactly zero elects the positive ones, as in mergekit; else none.

    Returns:
        The merged vector, in the type of the vectors.

    Reference:
        Yadav et al. (2023), arXiv 2306.01708, algorithm 1, steps 2 and 3.
    """
    flat = [vector.reshape(-1) for vector in vectors]
    merged = torch.empty_like(flat[0])
    step = _PIECE if merged.device.type == "cpu" else max(1, len(merged))
    for start in range(0, len(merged), step):
        parts = [vector[start : start + step] for vector in flat]
        sign = _signs(parts, votes or weights, undecided_up)
        merged[start : start + step] = _agreeing(parts, weights, sign, normalize)
    return merged.view(vectors[0].shape)


def _agreeing(vectors: Sequence[Tensor], weights: Sequence[float], sign: Tensor, normalize: bool) -> Tensor:
    merged, shares = torch.zeros_like(sign), torch.zeros_like(sign)
    for vector, weight in zip(vectors, weights, strict=True):
        own = vector * sign
        own = (own if weight >= 0 else own.neg_()).relu_()  # the magnitude of what agrees
        merged.add_(own, alpha=abs(weight))
        if normalize:
            shares.add_(own.sign_(), alpha=weight)
    merged.mul_(sign)
    if not normalize:
        return merged
    if min(weights) > 0:  # where nothing agrees the sum is 0, whatever it is divided by
        return merged.div_(shares.clamp_(min=min(weights)))
    return merged.div_(shares.masked_fill_(shares == 0, 1.0))


def _signs(vectors: Sequence[Tensor], votes: Sequence[float], undecided_up: bool) -> Tensor:
    # In float64 the sum does not depend on the order of the experts, and so neither does a close election.
    total = torch.zeros_like(vectors[0], dtype=torch.float64)
    for vector, vote in zip(vectors, votes, strict=True):
        total.add_(vector.double(), alpha=vote)
    total.sign_()
    return (total.add_(0.5).sign_() if undecided_up else total).to(vectors[0].dtype)
