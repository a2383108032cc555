"""Weight averaging: the mean of the experts."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from twinmerge.functional.state import State, merge_state


def average(pretrained: State, experts: Sequence[State]) -> dict[str, Tensor]:
    r"""Mean of the experts' weights, :math:`\theta = \frac1T \sum_t \theta_t`.

    Args:
        pretrained: Base weights by name; gives the names, the types and the integer buffers.
        experts: At least one state dict of the same names and shapes.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If there is no expert, names or shapes differ, or a weight is NaN or infinite.

    Example:
        >>> import torch
        >>> average({"w": torch.zeros(2)}, [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 2.0])}])
        {'w': tensor([2., 2.])}

    Reference:
        Wortsman et al. (2022), "Model soups", arXiv 2203.05482, the uniform soup of section 2.
    """
    return merge_state(pretrained, experts, lambda _, __, tensors: reduce(torch.add, tensors) / len(experts))
