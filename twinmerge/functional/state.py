"""The frame every static merge method shares: checks, working precision and one loop over the tensors."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from twinmerge.functional.blocks import (
    Block,
    OutOfCore,
    Prepare,
    Rule,
    State,
    Step,
    Tensors,
    in_memory,
    merged_blocks,
    working_dtype,
)

__all__ = ["State", "check_states", "merge_blocks", "merge_state", "unchanged", "working_dtype"]


def merge_blocks(pretrained: State, experts: Sequence[State], prepare: Prepare) -> dict[str, Tensor]:
    """Apply a rule to every floating point tensor of a model and its experts, block by block.

    Args:
        pretrained: Base weights by name; one that lies in files is merged into files.
        experts: At least one state dict of the same names and shapes.
        prepare: Called once with all tensors; returns the rule, see :mod:`twinmerge.functional.blocks`.

    Returns:
        Merged weights by name, each in the type of the base tensor; integer and boolean buffers are the base's, and so
        is what no expert changed, which costs nothing.

    Raises:
        ValueError: If there is no expert, names or shapes differ, or a weight is NaN or infinite.
    """
    if isinstance(pretrained, OutOfCore):
        return pretrained.merge(experts, prepare)
    check_states(pretrained, experts)
    model = in_memory(pretrained, experts)
    rule = prepare(model)
    merged = {n: base.detach().clone(memory_format=torch.contiguous_format) for n, base in pretrained.items()}
    for tensors in model:
        flat, place = merged[tensors.name].view(-1), 0
        for block in merged_blocks(tensors, rule):
            flat[place : place + block.numel()] = block.reshape(-1)
            place += block.numel()
    return merged


def merge_state(
    pretrained: State, experts: Sequence[State], combine: Callable[[str, Tensor, Iterator[Tensor]], Tensor]
) -> dict[str, Tensor]:
    """Apply one formula to every floating point tensor of a model and its experts, a whole tensor at a time.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        combine: Called with the name, the base tensor and the experts' tensors, all in float32 (float64 where any of
            them is) on the base tensor's device; returns the merged tensor.

    Returns:
        Merged weights by name, each in the type of the base tensor; integer and boolean buffers are the base's, and so
        is what no expert changed, which costs nothing.

    Raises:
        ValueError: If there is no expert, names or shapes differ, or a weight is NaN or infinite.
    """

    def rule(tensors: Tensors) -> Step:
        name, whole = tensors.name, tensors.whole()
        return slices_of(combine(name, whole.base, iter(whole.experts)))

    return merge_blocks(pretrained, experts, each(rule))


def each(rule: Rule) -> Prepare:
    """A rule that needs nothing of the whole model."""
    return lambda _: rule


def slices_of(result: Tensor) -> Step:
    """The blocks of a tensor that was made as a whole."""
    flat = result.reshape(-1)

    def step(block: Block) -> Tensor:
        return flat[block.start : block.start + block.base.numel()].view(block.base.shape)

    return step


def unchanged(base: Tensor, tensor: Tensor) -> bool:
    """Whether an expert's tensor is the base's, value by value."""
    kind = torch.promote_types(base.dtype, tensor.dtype)
    return torch.equal(base.detach().to(kind), tensor.detach().to(base.device, kind))


def check_states(pretrained: State, experts: Sequence[State]) -> None:
    """Refuse experts that cannot be merged with their base.

    Args:
        pretrained: Base weights by name.
        experts: State dicts of the same names and shapes.

    Raises:
        ValueError: If there is no expert, names or shapes differ, or a weight is NaN or infinite.
    """
    if not experts:
        raise ValueError("there is no expert to merge: give at least one state dict fine-tuned from the pretrained one")
    for name, base in pretrained.items():
        _check_finite(base, name, "the pretrained model")
    for index, expert in enumerate(experts):
        if expert.keys() != pretrained.keys():
            odd = min(expert.keys() ^ pretrained.keys())
            place = "which the pretrained model lacks" if odd in expert else "present in the pretrained model"
            raise ValueError(
                f"expert {index} {'has' if odd in expert else 'lacks'} the tensor '{odd}' {place}: "
                "give experts of the same architecture, task heads left out"
            )
        for name, tensor in expert.items():
            if tensor.shape != pretrained[name].shape:
                raise ValueError(
                    f"expert {index} has the tensor '{name}' of shape {tuple(tensor.shape)}, but the base model's "
                    f"is {tuple(pretrained[name].shape)}: give experts of the same architecture and vocabulary"
                )
            _check_finite(tensor, name, f"expert {index}")


def _check_finite(tensor: Tensor, name: str, owner: str) -> None:
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(
            f"the tensor '{name}' of {owner} contains NaN or infinite values: only finite weights can be merged"
        )
