"""FitNet's hint: the student's mapped features approach the teacher's."""

import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import check_finite


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of features of one shape.

    Args:
        student: Features after the regressor (see `distill.hints.FitNetHint`), any shape.
        teacher: Features of the same shape.

    Returns:
        A scalar of at least 0.

    Raises:
        ValueError: If the shapes differ or a number is not finite.

    Example:
        >>> import torch
        >>> hint(torch.tensor([1.0, 3.0]), torch.zeros(2))
        tensor(5.)

    Reference:
        Romero et al. (2015), "FitNets: hints for thin deep nets", arXiv 1412.6550, equation 3.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"features have shapes {tuple(student.shape)} and {tuple(teacher.shape)}, but both must be the teacher's: "
            "map the student's features first"
        )
    check_finite(student, teacher)
    return F.mse_loss(student, teacher)
