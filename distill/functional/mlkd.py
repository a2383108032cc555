"""Multi-level logit distillation: instances, batch and classes, each at several temperatures."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import check_temperature, comparable, without_masked
from distill.functional.kd import kd


def multi_temperature(
    student: Tensor, teacher: Tensor, *, temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)
) -> Tensor:
    r"""Mean over temperatures of three alignments of the softened probabilities P, shape (batch, classes).

    Instances: `kd`. Batch: :math:`\frac1B \|P_s P_s^\top - P_t P_t^\top\|^2`. Classes:
    :math:`\frac1C \|P_s^\top P_s - P_t^\top P_t\|^2`. The published method also compares weak and strong views and
    masks unsure rows, which belong to the data and not to this loss.

    Args:
        student: Logits, shape (batch, classes).
        teacher: Logits, shape (batch, classes).
        temperatures: At least one, each above 0.

    Returns:
        A scalar of at least 0.

    Raises:
        ValueError: If shapes do not fit, no temperature is given, or the KL is not defined, see `checks.comparable`. A
            class that both networks mask (-inf) in every row does not count.

    Example:
        >>> import torch
        >>> multi_temperature(torch.eye(3), torch.eye(3))
        tensor(0.)

    Reference:
        Jin, Wang and Lin (2023), "Multi-level logit distillation", CVPR 2023, equations 3 to 8.
    """
    if not temperatures:
        raise ValueError("temperatures is empty; give at least one, as in (2.0, 4.0)")
    for temperature in temperatures:
        check_temperature(temperature)
    student, teacher = without_masked(*comparable(student, teacher, max(temperatures)))
    batch, classes = student.shape
    terms = []
    for temperature in temperatures:
        p, q = F.softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
        among_rows = (p @ p.T - q @ q.T).square().sum() / batch
        among_classes = (p.T @ p - q.T @ q).square().sum() / classes
        terms.append(kd(student, teacher, temperature=temperature) + among_rows + among_classes)
    return torch.stack(terms).mean()
