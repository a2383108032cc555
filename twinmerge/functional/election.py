"""The election of a sign for every parameter, and the sum or mean of what agrees with it."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
    # In float64 the sum does not depend on the order of the experts, and so neither does a close election.
    total = torch.zeros_like(vectors[0], dtype=torch.float64)
    for vector, vote in zip(vectors, votes or weights, strict=True):
        total.add_(vector, alpha=vote)
    sign = total.sign_().to(vectors[0].dtype)
    if undecided_up:
        sign = torch.where(sign == 0, 1.0, sign)
    merged, shares = torch.zeros_like(sign), torch.zeros_like(sign)
    for vector, weight in zip(vectors, weights, strict=True):
        agrees = (vector * (sign if weight >= 0 else -sign) > 0).to(sign.dtype)
        merged.addcmul_(vector, agrees, value=weight)
        if normalize:
            shares.add_(agrees, alpha=weight)
    return merged / torch.where(shares == 0, 1.0, shares) if normalize else merged
