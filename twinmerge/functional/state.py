"""The frame every static merge method shares: checks, working precision and one loop over the tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def merge_state(
    pretrained: State, experts: Sequence[State], combine: Callable[[str, Tensor, Iterator[Tensor]], Tensor]
) -> dict[str, Tensor]:
    """Apply one formula to every floating point tensor of a model and its experts.

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
    check_states(pretrained, experts)
    merged = {}
    for name, base in pretrained.items():
        if not base.is_floating_point() or all(unchanged(base, expert[name]) for expert in experts):
            merged[name] = base.detach().clone()
            continue
        dtype = working_dtype(base, *(expert[name] for expert in experts))
        tensors = (expert[name].detach().to(base.device, dtype) for expert in experts)
        merged[name] = combine(name, base.detach().to(dtype), tensors).to(base.dtype)
    return merged


def unchanged(base: Tensor, tensor: Tensor) -> bool:
    """Whether an expert's tensor is the base's, value by value."""
    kind = torch.promote_types(base.dtype, tensor.dtype)
    return torch.equal(base.detach().to(kind), tensor.detach().to(base.device, kind))


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Float64 where one of the tensors is, float32 otherwise."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


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
