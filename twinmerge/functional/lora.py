"""Exact low-rank form of a weighted sum of LoRA products, without ever building the dense matrix."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from twinmerge.functional.factorize import LowRank


def lora_low_rank(terms: Sequence[tuple[float, Tensor, Tensor]], rank: int) -> LowRank:
    r"""Truncated SVD of :math:`\sum_j c_j B_j A_j` by thin QR of both stacks and one small SVD.

    With :math:`[c_1 B_1, \dots] = Q_B R_B` and :math:`[A_1; \dots]^T = Q_A R_A`, the sum is
    :math:`Q_B (R_B R_A^T) Q_A^T`, and the SVD of the small core gives that of the sum. An exclusive LoRA expert,
    :math:`B_t A_t - \lambda \sum_j B_j A_j`, is the case :math:`c_t = 1 - \lambda`, :math:`c_j = -\lambda`. Merging
    the B's and the A's apart is a different and wrong thing: it adds cross terms :math:`B_i A_j`.

    Args:
        terms: Triples (c_j, B_j of shape (m, r_j), A_j of shape (r_j, n)); every scaling (alpha / r) belongs in c_j.
            The ranks r_j may differ.
        rank: Rank to keep, between 1 and min(m, n). The result has fewer columns where the sum of the r_j is smaller.

    Returns:
        A :class:`~twinmerge.functional.factorize.LowRank` of rank min(rank, m, n, sum of r_j), in float32 (float64
        when all factors are), route "product". The work is done in float64.

    Raises:
        ValueError: If there is no term, the shapes disagree, a value is not finite or the rank is out of range.

    Example:
        >>> B, A = torch.eye(4)[:, :2], torch.ones(2, 3)
        >>> low = lora_low_rank([(0.5, B, A), (-0.5, B, A), (2.0, B, A)], rank=2)
        >>> torch.allclose(low.dense(), 2 * B @ A, atol=1e-6)
        True

    Reference:
        Lu et al. (2024), "Twin-Merging", arXiv 2406.15479, appendix A (the product form).
    """
    if not terms:
        raise ValueError("there is no LoRA term to add: give at least one triple (coefficient, B, A)")
    rows, columns = terms[0][1].shape[0], terms[0][2].shape[-1]
    for index, (coefficient, B, A) in enumerate(terms):
        if B.dim() != 2 or A.dim() != 2 or B.shape[0] != rows or A.shape[1] != columns or B.shape[1] != A.shape[0]:
            raise ValueError(
                f"LoRA term {index} has B of shape {tuple(B.shape)} and A of shape {tuple(A.shape)}, but the sum needs "
                f"B of shape ({rows}, r) and A of shape (r, {columns}) with the same r"
            )
        if not (math.isfinite(coefficient) and B.isfinite().all() and A.isfinite().all()):
            raise ValueError(
                f"LoRA term {index} contains NaN or infinite values, and only finite weights can be merged"
            )
    if isinstance(rank, bool) or not 1 <= rank <= min(rows, columns):
        raise ValueError(
            f"the rank is {rank}, but a matrix of shape {(rows, columns)} takes a rank from 1 to {min(rows, columns)}"
        )
    Q_B, R_B = torch.linalg.qr(torch.cat([coefficient * B.detach().double() for coefficient, B, _ in terms], 1))
    Q_A, R_A = torch.linalg.qr(torch.cat([A.detach().double() for _, _, A in terms]).T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)

    total = float(S.square().sum())
    residual = math.sqrt(float(S[rank:].square().sum()) / total) if total > 0 else 0.0
    root = S[:rank].sqrt()
    dtype = torch.float64 if all(B.dtype == A.dtype == torch.float64 for _, B, A in terms) else torch.float32
    up, down = Q_B @ (U[:, :rank] * root), root[:, None] * (Vh[:rank] @ Q_A.T)
    return LowRank(up.to(dtype), down.to(dtype), residual, "product")
