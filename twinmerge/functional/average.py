"""Weight averaging: the mean of the experts, all alike or by weights."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.weights import Setting, settings_at, shares_at


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

    def rule(_: Tensors) -> Step:
        return lambda block: reduce(torch.add, block.experts) / len(block.experts)

    return merge_blocks(pretrained, experts, each(rule))


def linear(
    pretrained: State,
    experts: Sequence[State],
    *,
    weights: Setting | Sequence[Setting] = 1.0,
    normalize: bool = True,
) -> dict[str, Tensor]:
    r"""Weighted sum of the experts, :math:`\theta = \sum_t w_t \theta_t / \sum_t w_t`.

    Args:
        pretrained: Base weights by name; gives the names, the types and the integer buffers, and no weight.
        experts: At least one state dict of the same names and shapes.
        weights: One for all experts, or a list with one each; each may differ by layer and by name, see
            :mod:`twinmerge.functional.weights`.
        normalize: Divide by the sum of the weights.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: As :func:`average`, and for weights that add up to zero.

    Example:
        >>> import torch
        >>> linear({"w": torch.zeros(1)}, [{"w": torch.ones(1)}, {"w": torch.zeros(1)}], weights=[3.0, 1.0])
        {'w': tensor([0.7500])}

    Reference:
        Wortsman et al. (2022), "Model soups", arXiv 2203.05482, with weights as in its section 3.
    """

    def rule(tensors: Tensors) -> Step:
        shares = (shares_at if normalize else settings_at)(weights, tensors)
        return lambda block: weighted(block, shares)

    return merge_blocks(pretrained, experts, each(rule))


def weighted(block: Block, weights: Sequence[float]) -> Tensor:
    """The sum of the experts' blocks by weights."""
    merged = torch.zeros_like(block.base)
    for expert, weight in zip(block.experts, weights, strict=True):
        merged.add_(expert, alpha=weight)
    return merged
