"""Dense models out of a twin: stock models with a fixed mixture in their weights, and a check of the routing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from gapbridge.arguments import Finite, Positive, check_arguments
from twinmerge.routed_images import RoutedBatchNorm
from twinmerge.routed_layers import (
    ADDED,
    FactoredLayer,
    RoutedAny,
    RoutedConv1D,
    RoutedLayer,
    RoutedNorm,
    stored,
)
from twinmerge.timm_models import call_timm
from twinmerge.twin_checks import TwinChecks
from twinmerge.twin_mixin import TwinMixin


def mixed_differences(twin: nn.Module, row: Tensor) -> dict[str, Tensor]:
    """Sum over experts of row[t] times expert t's difference, in each parameter's own layout.

    Args:
        twin: a routed model, or a part of one.
        row: shape (experts,).

    Returns:
        Parameter (or running statistic) -> difference, float32 (float64 where the factors are).
    """
    return {
        ".".join(filter(None, (name, leaf))): difference.reshape(stored(module, leaf).shape)
        for name, module in twin.named_modules()
        if isinstance(module, RoutedLayer)
        for leaf, difference in _differences(module, row)
    }


def _differences(module: RoutedLayer, row: Tensor) -> Iterator[tuple[str, Tensor]]:
    def wide(stack: Tensor) -> Tensor:
        return stack.detach() if stack.dtype == torch.float64 else stack.detach().float()

    if isinstance(module, FactoredLayer):
        up, down = wide(module.experts_up), wide(module.experts_down)
        merged = (up * row.to(up)[module.experts_owner]) @ down
        yield "weight", merged.t() if isinstance(module, RoutedConv1D) else merged
        if module.experts_bias is not None:
            yield "bias", row.to(up) @ wide(module.experts_bias)
    elif isinstance(module, RoutedNorm):
        for leaf, stack in (("weight", module.experts_weight), ("bias", module.experts_bias)):
            if stack is not None:
                yield leaf, row.to(wide(stack)) @ wide(stack)
    elif isinstance(module, RoutedBatchNorm):
        stacks: tuple[Tensor | None, ...] = (
            module.experts_weight,
            module.experts_bias,
            module.experts_mean,
            module.experts_var,
        )
        for leaf, differences in zip(("weight", "bias", "running_mean", "running_var"), stacks, strict=True):
            if differences is not None:
                yield leaf, row.to(wide(differences)) @ wide(differences)
    elif isinstance(module, RoutedAny):
        yield from ((leaf, wide(difference)) for leaf, difference in module.differences(row).items())


def stock_view(twin: TwinMixin) -> PreTrainedModel:
    """The stock model with the shared expert: its parameters and buffers are the twin's own, not copies.

    Args:
        twin: a routed model; left as it is.
    """
    shared = {name: p for name, p in twin.named_parameters() if not is_routing(name)}
    experts = [p for name, p in twin.named_parameters() if is_routing(name)]
    nothing = nn.Parameter(torch.empty(0), requires_grad=False)
    memo: dict[int, Any] = {id(p): p for p in (*shared.values(), *twin.buffers())}
    memo.update({id(p): nothing for p in experts})
    model = copy.deepcopy(twin, memo)
    for module in model.modules():
        if isinstance(module, RoutedLayer):
            for name in [n for n in ADDED if hasattr(module, n)]:
                delattr(module, name)
            module.__class__ = type(module).__bases__[1]
    for name in ("mixture", "tasks", "router", "heads", "left_out", "_accepted", "_checked"):
        delattr(model, name)
    vars(model).pop("answering", None)
    kinds = type(twin).__mro__
    model.__class__ = kinds[kinds.index(TwinChecks) + 1]
    call_timm(model, called=False)
    return model


def is_routing(name: str) -> bool:
    """Whether a parameter of a twin belongs to its routing: router, heads or experts."""
    parts = name.split(".")
    return parts[0] in ("router", "heads") or not ADDED.isdisjoint(parts)


def densify(twin: TwinMixin, weights: Mapping[str, Finite]) -> PreTrainedModel:
    """A stock model whose weights are the shared expert plus a fixed mixture of the exclusive experts.

    Args:
        twin: a routed model; left as it is.
        weights: task -> coefficient; absent tasks count 0.

    Returns:
        A model in eval mode, on the twin's device and in its type, with parameters of its own.

    Raises:
        ValueError: for a task that the twin does not have, or a coefficient that is no finite number.
    """
    check_arguments(densify, {"weights": weights})
    if unknown := sorted(set(weights) - set(twin.tasks)):
        raise ValueError(f"no expert named {unknown[0]!r}; this twin has {', '.join(twin.tasks)}.")
    differences = mixed_differences(twin, torch.tensor([float(weights.get(t, 0.0)) for t in twin.tasks]))
    model = copy.deepcopy(stock_view(twin))
    changed: set[int] = set()
    for name, difference in differences.items():
        parameter = stored(model, name)
        if id(parameter) not in changed:  # a tied parameter is met under each of its names
            parameter.data = (parameter.data.to(difference.dtype) + difference).to(parameter.dtype)
        changed.add(id(parameter))
    model.requires_grad_(True).eval()
    return model


def _outputs(output: object) -> list[Tensor]:
    return [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]


def check_routing(twin: TwinMixin, tolerance: Positive = 1e-3, **inputs: object) -> float:
    """Compare the routed forward of a batch with a dense merge per input: the proof that no module escapes routing.

    A model whose code reads a weight past the module that holds it would not see its experts; this finds out.

    Args:
        twin: a routed model, in eval mode.
        tolerance: largest accepted difference, relative to the largest output.
        inputs: of the forward; tensors with the batch along their first dimension. Two or three inputs are enough.

    Returns:
        The largest relative difference.

    Raises:
        ValueError: when it is above the tolerance, which must be above 0, or there is no input.
    """
    check_arguments(check_routing, {"tolerance": tolerance})
    count = next((v.shape[0] for v in inputs.values() if isinstance(v, Tensor) and v.dim()), 0)
    if not count:
        raise ValueError("no batch is given to compare on; give the forward's inputs, as input_ids=... of two rows.")
    ranks = torch.arange(1.0, count * len(twin.tasks) + 1).reshape(count, -1)  # a mixture of its own for every input
    weights = (ranks % 7 + ranks % 3).softmax(-1)
    with torch.no_grad():
        routed = _outputs(twin(**inputs, router_weights=weights))
        worst = 0.0
        for i, row in enumerate(weights.tolist()):
            model = densify(twin, dict(zip(twin.tasks, row, strict=True)))
            one = {k: v[i : i + 1] if isinstance(v, Tensor) and v.dim() else v for k, v in inputs.items()}
            for whole, dense in zip(routed, _outputs(model(**one)), strict=True):
                if whole.shape[:1] == (count,) and dense.shape[:1] == (1,):  # others are no rows of the batch
                    worst = max(
                        worst, float((whole[i : i + 1] - dense).abs().max() / dense.abs().max().clamp_min(1e-9))
                    )
    if worst > tolerance:
        raise ValueError(
            f"the routed {type(twin).__name__} differs from a dense merge by {worst:.1e} (accepted: {tolerance:.0e}); "
            "part of it does not see its experts: freeze that part when training them."
        )
    return worst
