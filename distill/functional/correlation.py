"""Correlation congruence (CC), in the form that comparisons of distillation losses use."""

from torch import Tensor

from distill.functional.checks import check_features


def correlation(student: Tensor, teacher: Tensor, *, weight: float = 0.02) -> Tensor:
    r"""Products of the embedding errors of neighbouring samples.

    :math:`w \, mean_b \sum_d |e_s - e_t|_{b,d} \, |e_s - e_t|_{b+1,d}`. The paper matches kernel matrices of all pairs;
    its published comparisons, also those of the stronger recipe, use this product of adjacent rows, and so do we.

    Args:
        student: Embeddings, shape (batch, width).
        teacher: Embeddings of the same width (see `distill.hints.CorrelationHint` for the two linear maps).
        weight: Factor of the loss.

    Returns:
        A scalar of at least 0.

    Raises:
        ValueError: If the shapes do not fit or the batch has fewer than 2 rows.

    Example:
        >>> import torch
        >>> correlation(torch.ones(3, 2), torch.zeros(3, 2), weight=1.0)
        tensor(2.)

    Reference:
        Peng et al. (2019), "Correlation congruence for knowledge distillation", arXiv 1904.01802.
    """
    check_features(student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"embeddings have widths {student.shape[1]} and {teacher.shape[1]}; map both to the same width first"
        )
    error = (student - teacher).abs()
    return weight * (error[:-1] * error[1:]).sum(-1).mean()
