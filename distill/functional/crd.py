"""Contrastive representation distillation: tell the teacher's embedding of a sample from those of other samples."""

import torch
from torch import Tensor

from distill.functional.checks import check_finite


def crd(positive: Tensor, negative: Tensor, items: int) -> Tensor:
    r"""Noise-contrastive loss of one positive against K negatives a row.

    :math:`-\frac1B \sum_b [\log \frac{h_b}{h_b + K/M} + \sum_k \log \frac{K/M}{h_{bk} + K/M}]` with the scores
    :math:`h = exp(\langle e_s, e_t \rangle / \tau) / Z` and M items in the memory: the noise is uniform over them.

    Args:
        positive: Log scores log h of the true pairs, shape (batch,).
        negative: Log scores of the drawn pairs, shape (batch, negatives).
        items: Size of the memory, M, at least 1.

    Returns:
        A scalar above 0.

    Raises:
        ValueError: If the shapes do not fit or the memory is empty.

    Example:
        >>> import torch
        >>> crd(torch.zeros(1), torch.zeros(1, 1), items=1)  # 2 log 2
        tensor(1.3863)

    Reference:
        Tian, Krishnan and Isola (2020), "Contrastive representation distillation", arXiv 1910.10699, equations 9 to 19.
    """
    if positive.ndim != 1 or negative.ndim != 2 or len(positive) != len(negative) or 0 in negative.shape:
        raise ValueError(
            f"scores have shapes {tuple(positive.shape)} and {tuple(negative.shape)}, but must be (batch,) and "
            "(batch, negatives) with at least one of each"
        )
    if items < 1:
        raise ValueError(f"the memory has {items} items; it needs at least 1")
    check_finite(positive, negative, "scores")
    log_noise = torch.log(positive.new_tensor(negative.shape[1] / items))
    of_positive = positive - torch.logaddexp(positive, log_noise)
    of_negative = log_noise - torch.logaddexp(negative, log_noise)
    return -(of_positive + of_negative.sum(-1)).mean()
