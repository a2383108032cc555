"""RegMean: for every linear layer, the weights whose outputs are nearest to the experts' on their own inputs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Tensors
from twinmerge.functional.matrices import as_matrix, mean_step
from twinmerge.functional.state import each, merge_blocks


def regmean(
    pretrained: State, experts: Sequence[State], *, inputs: Sequence[Mapping[str, Tensor]], shrink: float = 0.1
) -> dict[str, Tensor]:
    r"""Least squares merge of linear layers, :math:`W = (\sum_t W_t G_t)(\sum_t G_t)^{-1}`.

    :math:`G_t` is the Gram matrix of a layer's inputs on expert t's data, its entries beside the diagonal shrunk.
    Tensors without Gram matrices get the mean of the experts.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        inputs: For each expert, :math:`X^T X` of the inputs of a layer by the name of its weight, shape (in, in).
        shrink: By what share entries beside the diagonal are made smaller, in (0, 1].

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If Gram matrices are missing for some experts, have another shape or no inverse, or the share is out
            of range; and for experts that differ in names or shapes, or are not finite.

    Reference:
        Jin et al. (2023), "Dataless knowledge fusion by merging weights of language models", arXiv 2212.09849,
        equation 2 and section 4.1.
    """
    if not 0 < shrink <= 1:
        raise ValueError(f"shrink is {shrink}, but it must be above 0 and at most 1, as in 0.1")
    if len(inputs) != len(experts):
        raise ValueError(f"there are Gram matrices of {len(inputs)} experts and {len(experts)} are merged")

    def rule(tensors: Tensors) -> Step:
        found = [of_expert[tensors.name] for of_expert in inputs if tensors.name in of_expert]
        if not found:
            return mean_step(1.0)
        side = tensors.columns
        if len(found) != len(inputs) or any(tuple(gram.shape) != (side, side) for gram in found):
            raise ValueError(f"'{tensors.name}' needs a Gram matrix of shape {(side, side)} of every expert's inputs")
        grams = [gram.double() * (1 - shrink) + torch.diag(gram.double().diagonal()) * shrink for gram in found]
        total = torch.stack(grams).sum(0)
        if not torch.linalg.cholesky_ex(total)[1].eq(0):
            raise ValueError(f"the Gram matrices of '{tensors.name}' have no inverse: give more inputs, or shrink more")
        factors = [
            torch.linalg.solve(total, gram).T for gram in grams
        ]  # (G_t S^-1) = (S^-1 G_t)^T, as both are symmetric

        def step(block: Block) -> Tensor:
            merged = as_matrix(block.base).clone()  # the factors add up to one, so that differences serve as well
            for vector, factor in zip(block.vectors, factors, strict=True):
                merged.addmm_(as_matrix(vector), factor.to(merged))
            return merged.view(block.base.shape)

        return step

    return merge_blocks(pretrained, experts, each(rule))
