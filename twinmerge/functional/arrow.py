"""Arrow: tokens find their adapters layer by layer, by the first right singular direction of each."""

import torch
from torch import Tensor


def arrow_gates(inputs: Tensor, prototypes: Tensor, *, top_k: int = 2) -> Tensor:
    r"""Weights of the adapters of one linear layer for every token.

    The logit of an adapter is :math:`|v_t^T x|` with the unit direction :math:`v_t` that its matrix stretches most; the
    sign of a singular vector means nothing. Softmax over the `top_k` largest; the others have no weight.

    Args:
        inputs: Of the layer, shape (..., n).
        prototypes: :math:`v_t`, shape (T, n).
        top_k: How many adapters a token has, from 1 to T.

    Returns:
        Shape (..., T).

    Raises:
        ValueError: If top_k is out of range.

    Example:
        >>> arrow_gates(torch.tensor([0.0, -2.0]), torch.eye(2), top_k=1)
        tensor([0., 1.])

    Reference:
        Ostapenko et al. (2024), "Towards modular LLMs by building and reusing a library of LoRAs", arXiv 2405.11157,
        section 4.2.
    """
    if not 1 <= top_k <= len(prototypes):
        raise ValueError(f"top_k is {top_k}, but there are {len(prototypes)} adapters: give 1 to that many")
    logits = (inputs @ prototypes.T).abs()
    best = logits.topk(top_k, -1)
    return torch.zeros_like(logits).scatter_(-1, best.indices, best.values.softmax(-1))


def prototype_of(up: Tensor, down: Tensor) -> Tensor:
    """The unit direction of inputs that a product stretches most, shape (n,).

    Args:
        up: Left factor, shape (m, k).
        down: Right factor, shape (k, n).
    """
    # The right singular vectors of up @ down by a small decomposition: down^T = Q R, up @ R^T has those of it in Q.
    Q, R = torch.linalg.qr(down.double().T)
    first = torch.linalg.svd(up.double() @ R.T, full_matrices=False)[2][0]
    found: Tensor = Q @ first
    return found.to(down.dtype)
