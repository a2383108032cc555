"""Model Stock: as far from the base to the mean of the experts as the angle between them says."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.inner_products import gram
from twinmerge.functional.state import each, merge_blocks


def model_stock(pretrained: State, experts: Sequence[State], *, rows: bool = False) -> dict[str, Tensor]:
    r"""Interpolation between base and mean, :math:`\theta = t\bar\theta + (1 - t)\theta_0`, tensor by tensor.

    With the mean cosine :math:`\cos\omega` between the task vectors of N experts,
    :math:`t = N\cos\omega / (1 + (N - 1)\cos\omega)`.

    Args:
        pretrained: Base weights by name.
        experts: At least two state dicts of the same names and shapes.
        rows: Take an angle for each row of a tensor instead of one for all of it.

    Returns:
        Merged weights by name, in the types of the base; where t has no finite value, the base's.

    Raises:
        ValueError: If there are fewer than two experts, names or shapes differ, or a weight is NaN or infinite.

    Reference:
        Jang et al. (2024), "Model Stock: all we need is just a few fine-tuned models", arXiv 2403.19522, equation 4.
    """
    if len(experts) < 2:
        raise ValueError(f"Model Stock compares experts and got {len(experts)}: give at least two")

    def rule(tensors: Tensors) -> Step:
        if not rows:
            share = _share(gram(tensors, "base")[None])

        def step(block: Block) -> Tensor:
            vectors = block.vectors
            if rows:
                height = 1 if block.base.dim() == 1 else block.base.shape[0]
                flat = torch.stack([vector.reshape(height, -1) for vector in vectors], 1).double()
                ratio = _share(flat @ flat.mT).to(block.base).view(-1, *[1] * (block.base.dim() - 1))
            else:
                ratio = share.to(block.base)
            mean = torch.stack(vectors).mean(0)
            return block.base + (ratio if block.base.dim() > 1 else ratio.view(-1)) * mean

        return step

    return merge_blocks(pretrained, experts, each(rule))


def _share(products: Tensor) -> Tensor:
    """T of each row from its inner products, shape (rows, N, N)."""
    count = products.shape[-1]
    size = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    cosines = products / (size[:, :, None] * size[:, None, :]).clamp(min=1e-6)
    upper = torch.triu_indices(count, count, 1)
    cosine = cosines[:, upper[0], upper[1]].clamp(-1, 1).mean(1)
    below = 1 + (count - 1) * cosine
    lost = below.abs() < 1e-6
    return torch.where(lost, 0.0, count * cosine / torch.where(lost, 1.0, below))
