"""SMILE: tokens find their experts layer by layer, by the size of what an expert's leading directions see of them."""

import torch
from torch import Tensor


def smile_gates(inputs: Tensor, directions: Tensor, *, top_k: int = 1) -> Tensor:
    r"""Weights of the experts of one linear layer for every token.

    :math:`r_t = \|V_t^T x\|_2` with the leading right singular vectors :math:`V_t` of the expert's task matrix;
    :math:`p = softmax(r)`, of which the largest `top_k` stay and are made to add up to one.

    Args:
        inputs: Of the layer, shape (..., n).
        directions: :math:`V_t^T`, shape (T, k, n), orthonormal rows.
        top_k: How many experts a token has, from 1 to T.

    Returns:
        Shape (..., T).

    Raises:
        ValueError: If top_k is out of range.

    Example:
        >>> smile_gates(torch.tensor([0.0, 2.0]), torch.eye(2)[:, None])
        tensor([0., 1.])

    Reference:
        Tang et al. (2024), "SMILE: zero-shot sparse mixture of low-rank experts construction from pre-trained
        foundation models", arXiv 2408.10174, equations 8 to 10.
    """
    if not 1 <= top_k <= len(directions):
        raise ValueError(f"top_k is {top_k}, but there are {len(directions)} experts: give 1 to that many")
    shares = torch.einsum("...n,tkn->...tk", inputs, directions).norm(dim=-1).softmax(-1)
    kept = torch.zeros_like(shares).scatter_(-1, shares.topk(top_k, -1).indices, 1.0) * shares
    gates: Tensor = kept / kept.sum(-1, keepdim=True)
    return gates


def low_rank_sum(inputs: Tensor, gates: Tensor, ups: Tensor, downs: Tensor) -> Tensor:
    r"""What experts add to the output of a linear layer, :math:`\sum_t g_t U_t (V_t x)`.

    Args:
        inputs: Shape (..., n).
        gates: Weights of the experts, shape (..., T).
        ups: Left factors, shape (T, m, k).
        downs: Right factors, shape (T, k, n).

    Returns:
        Shape (..., m).
    """
    inner = torch.einsum("...n,tkn->...tk", inputs, downs) * gates[..., None]
    return torch.einsum("...tk,tmk->...m", inner, ups)
