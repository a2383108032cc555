"""Task arithmetic: the base plus a scaled sum of task vectors."""

from collections.abc import Sequence

from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.weights import Setting, setting_at, settings_at


def task_arithmetic(
    pretrained: State,
    experts: Sequence[State],
    *,
    scale: Setting = 0.3,
    weights: Setting | Sequence[Setting] = 1.0,
) -> dict[str, Tensor]:
    r"""Base plus the scaled sum of task vectors, :math:`\theta = \theta_0 + \lambda \sum_t w_t (\theta_t - \theta_0)`.

    Args:
        pretrained: Base weights :math:`\theta_0` by name.
        experts: At least one state dict of the same names and shapes.
        scale: Coefficient :math:`\lambda`; 0 returns the base, 1 adds the task vectors whole. It may differ by layer
            and by name, see :mod:`twinmerge.functional.weights`.
        weights: :math:`w_t`, one for all experts, or a list with one each; each may differ likewise.

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

    def rule(tensors: Tensors) -> Step:
        factor, shares = setting_at(scale, tensors), settings_at(weights, tensors)

        def step(block: Block) -> Tensor:
            vectors = block.vectors
            total = vectors[0].mul_(shares[0])
            for vector, share in zip(vectors[1:], shares[1:], strict=True):
                total.add_(vector, alpha=share)
            return total.mul_(factor).add_(block.base)

        return step

    return merge_blocks(pretrained, experts, each(rule))
