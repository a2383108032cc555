"""Fisher merging: every parameter weighed by what each expert's data say of it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import Block, State, Step, Stored, Tensors
from twinmerge.functional.state import each, merge_blocks
from twinmerge.functional.weights import Setting, settings_at


def fisher(
    pretrained: State,
    experts: Sequence[State],
    *,
    information: Sequence[Mapping[str, Stored]],
    weights: Setting | Sequence[Setting] = 1.0,
    floor: float = 1e-6,
) -> dict[str, Tensor]:
    r"""Mean by diagonal Fisher information, :math:`\theta = \sum_t w_t F_t\theta_t / \sum_t w_t F_t`.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        information: For each expert, the mean squared gradient of its log-likelihood on its data, by name; at least 0.
        weights: Of the experts; one for all, or a list with one each, which may differ by layer and by name.
        floor: Added to every F, so that what no data decide becomes the plain mean; above 0.

    Returns:
        Merged weights by name, in the types of the base.

    Raises:
        ValueError: If information is missing or negative, the floor is not above 0, names or shapes differ, or a weight
            is NaN or infinite.

    Reference:
        Matena and Raffel (2022), "Merging models with Fisher-weighted averaging", arXiv 2111.09832, equation 4.
    """
    if not floor > 0:
        raise ValueError(f"the floor is {floor}, but it must be above 0, as in 1e-6")
    if len(information) != len(experts):
        raise ValueError(f"there is Fisher information of {len(information)} experts and {len(experts)} are merged")

    def rule(tensors: Tensors) -> Step:
        shares = settings_at(weights, tensors)
        held = [_information(state, tensors) for state in information]

        def step(block: Block) -> Tensor:
            merged, total = torch.zeros_like(block.base), torch.zeros_like(block.base)
            first = block.start // (tensors.columns if len(tensors.shape) > 1 else 1)
            for expert, share, own in zip(block.experts, shares, held, strict=True):
                rows = own[first : first + block.base.shape[0]] if tensors.shape else own[:]
                _check(rows, tensors)
                known = share * (rows.to(block.base).view(block.base.shape) + floor)
                merged.addcmul_(expert, known)
                total.add_(known)
            return merged / total

        return step

    return merge_blocks(pretrained, experts, each(rule))


def _information(state: Mapping[str, Stored], tensors: Tensors) -> Stored:
    found = state.get(tensors.name)
    if found is None or tuple(found.shape) != tensors.shape:
        said = "none" if found is None else f"shape {tuple(found.shape)}"
        raise ValueError(f"the Fisher information of '{tensors.name}' must be of shape {tensors.shape}: got {said}")
    return found


def _check(rows: Tensor, tensors: Tensors) -> None:
    if not (rows.isfinite() & (rows >= 0)).all():
        raise ValueError(
            f"the Fisher information of '{tensors.name}' must be finite and not negative: got {float(rows.min()):g}"
        )
