"""RegMean: for every linear layer, the weights whose outputs are nearest to the experts' on their own inputs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Stored, Tensors
from twinmerge.functional.matrices import as_matrix, mean_step
from twinmerge.functional.state import each, merge_blocks


def regmean(
    pretrained: State, experts: Sequence[State], *, inputs: Sequence[Mapping[str, Stored]], shrink: float = 0.1
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
        total = _shrunk(found[0], shrink)
        for gram in found[1:]:
            total.add_(_shrunk(gram, shrink))
        lower, failed = torch.linalg.cholesky_ex(total)
        del total
        if not failed.eq(0):
            raise ValueError(f"the Gram matrices of '{tensors.name}' have no inverse: give more inputs, or shrink more")
        # G_t S^-1 is the transpose of S^-1 G_t, as both are symmetric.
        factors = [torch.cholesky_solve(_shrunk(gram, shrink), lower).T.to(tensors.dtype) for gram in found]
        del lower

        def step(block: Block) -> Tensor:
            merged = as_matrix(block.base).clone()  # the factors add up to one, so that differences serve as well
            for vector, factor in zip(block.vectors, factors, strict=True):
                merged.addmm_(as_matrix(vector), factor.to(merged))
            return merged.view(block.base.shape)

        return step

    return merge_blocks(pretrained, experts, each(rule))


def _shrunk(gram: Stored, share: float) -> Tensor:
    """A Gram matrix in float64 with the entries beside its diagonal made smaller."""
    made = gram[:].to(torch.float64, copy=True)
    diagonal = made.diagonal().clone()
    made.mul_(1 - share).diagonal().copy_(diagonal)
    return made
