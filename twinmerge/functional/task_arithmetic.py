"""Task arithmetic: the base plus a scaled sum of task vectors."""

from collections.abc import Sequence

from torch import Tensor

from gapbridge.arguments import Finite
from twinmerge.functional.state import State, merge_state


def task_arithmetic(pretrained: State, experts: Sequence[State], *, scale: Finite = 0.3) -> dict[str, Tensor]:
    r"""Base plus the scaled sum of task vectors, :math:`\theta = \theta_0 + \lambda \sum_t (\theta_t - \theta_0)`.

    Args:
        pretrained: Base weights :math:`\theta_0` by name.
        experts: At least one state dict of the same names and shapes.
        scale: Coefficient :math:`\lambda`; 0 returns the base, 1 adds the task vectors whole.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If there is no expert, names or shapes differ, or a weight is NaN or infinite.

    Example:
        >>> import torch
        >>> task_arithmetic({"w": torch.ones(2)}, [{"w": torch.tensor([3.0, 1.0])}], scale=0.5)
        {'w': tensor([2., 1.])}

    Reference:
        Ilharco et al. (2023), "Editing models with task arithmetic", arXiv 2212.04089, section 2.
    """
    return merge_state(
        pretrained, experts, lambda _, base, tensors: base + scale * sum(tensor - base for tensor in tensors)
    )
