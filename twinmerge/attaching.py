"""Attach experts to a stock model: which module is routed how, tied weights, and the checks of names and shapes.

Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from .layouts import Run, escaping, trace
from .mixture import UNTRACED, Difference, Layout, Mixture
from .routed_images import RoutedBatchNorm, RoutedConv, RoutedGroupedConv, image_kind
from .routed_layers import (
    FactoredLayer,
    RoutedAny,
    RoutedConv1D,
    RoutedEmbedding,
    RoutedLayer,
    RoutedLinear,
    RoutedNorm,
    routed_class,
    stored,
)
from .timm_models import CalledTimm, RoutedPositions


class UnroutableError(ValueError):
    """A model was loaded in a way in which it cannot be routed; the message is one sentence with the way out."""


@dataclass
class Traced:
    """A tiny batch that a stock model was run on.

    Attributes:
        run: calls a model on inputs.
        inputs: of two rows.
    """

    run: Run
    inputs: Mapping[str, Tensor]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Running means and variances by name: what training changes in a model beside its parameters."""
    found = model.named_buffers(remove_duplicate=False)
    return {name: b for name, b in found if name.rpartition(".")[2] in ("running_mean", "running_var")}


def attach_experts(
    model: nn.Module, mixture: Mixture, experts: Sequence[Mapping[str, Difference]], traced: Traced | None = None
) -> None:
    """Route every module that one of the experts changes, in place; names and differences as in `attach`.

    Args:
        model: the stock model.
        mixture: of the model.
        experts: per task, parameter or running statistic -> factors or difference.
        traced: what decides which module is routed for a parameter; None takes the one that holds it, and leaves where
            its inputs lie to the first forward.

    Raises:
        ValueError: for a parameter that the model does not have or that cannot differ per input, or a wrong shape.
    """
    aliases: dict[int, list[str]] = {}
    for name, parameter in (*model.named_parameters(remove_duplicate=False), *statistics(model).items()):
        aliases.setdefault(id(parameter), []).append(name)
    tied = {name: names for names in aliases.values() for name in names}
    given: dict[str, list[Difference | None]] = {}
    for name in sorted({n for expert in experts for n in expert}):
        if name not in tied:
            raise ValueError(f"the experts change parameter '{name}', which {type(model).__name__} does not have.")
        if not any(other in given for other in tied[name]):
            given[name] = [next((e[n] for n in tied[name] if e.get(n) is not None), None) for e in experts]
    for name in given:
        _refuse_quantised(model, name)
    wanted = {name: [_unit(model, n) for n in tied[name]] for name in given}
    layouts: dict[str, Layout | str] = {}
    if traced is not None:
        layouts = _fit(model, wanted, traced)
    units: dict[str, dict[str, list[Difference | None]]] = {}
    for name, places in wanted.items():
        # A module that only passes a tied parameter on to one inside it leaves the routing to that one.
        places[:] = [p for p in places if not any(q[0].startswith(f"{p[0]}.") for q in places)]
        for unit, leaf in places:
            units.setdefault(unit, {})[leaf] = _as_stored(model, unit, leaf, given[name])
    for unit, leaves in units.items():
        attach_layer(model.get_submodule(unit), mixture, leaves)
        found = layouts.get(unit, UNTRACED)
        cast(RoutedLayer, model.get_submodule(unit)).layout = UNTRACED if isinstance(found, str) else found
    for places in wanted.values():
        _tie([(model.get_submodule(unit), leaf) for unit, leaf in places])


def refuse_spread(model: nn.Module) -> None:
    """Refuse a model that accelerate moves between places while it runs.

    Raises:
        UnroutableError: when its device_map has several places.
    """
    places = sorted({str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(places) > 1:
        raise UnroutableError(
            f"the model is spread over {', '.join(places)} by its device_map, and routed layers cannot be moved while "
            "they run; load it on one device, or serve the folder by vLLM, which splits models over GPUs."
        )


def _refuse_quantised(model: nn.Module, name: str) -> None:
    value = stored(model, name)
    plain = type(value) in (Tensor, nn.Parameter) and not hasattr(value, "quant_state")
    if not plain or not value.is_floating_point() or value.element_size() == 1:
        kind = str(value.dtype).removeprefix("torch.") if plain else type(value).__name__
        raise UnroutableError(
            f"'{name}' of {type(model).__name__} is quantised ({kind}), and no difference can be added to it; load the "
            "shared model in float32 or bfloat16, without quantization_config, or serve the folder by vLLM, whose "
            "adapters stand beside a quantised base."
        )


def _fit(model: nn.Module, wanted: dict[str, list[tuple[str, str]]], traced: Traced) -> dict[str, Layout | str]:
    """Move every place up to a module whose inputs and outputs can be told apart by rows and that sees all its uses."""
    parts = [unit.split(".") for places in wanted.values() for unit, _ in places]
    names = {".".join(p[:depth]) for p in parts for depth in range(1, len(p) + 1)}
    layouts = trace(model, traced.run, traced.inputs, names)

    def climb(name: str, index: int, reason: str) -> None:
        unit, leaf = wanted[name][index]
        above, _, last = unit.rpartition(".")
        if not above:
            raise ValueError(
                f"parameter '{name}' of {type(model).__name__} cannot differ per input ({reason}): no part that holds "
                "it would see its experts; freeze it in the experts, or give the twin one row of router weights."
            )
        wanted[name][index] = (above, f"{last}.{leaf}")

    while True:
        for name, places in wanted.items():
            for index in range(len(places)):
                while reason := unfit(_kind(model, *places[index]), layouts.get(places[index][0])):
                    climb(name, index, reason)
        units: dict[str, list[str]] = {}
        for places in wanted.values():
            for unit, leaf in places:
                units.setdefault(unit, []).append(leaf)
        escaped = escaping(model, traced.run, traced.inputs, units)
        if not escaped:
            return layouts
        for name, places in wanted.items():
            for index, (unit, leaf) in enumerate(list(places)):
                if f"{unit}.{leaf}" in escaped:
                    climb(name, index, "its weight is read outside of the module that holds it")


def _kind(model: nn.Module, unit: str, leaf: str) -> type[RoutedLayer]:
    return layer_kind(model.get_submodule(unit)) if "." not in leaf else RoutedAny


def unfit(kind: type[RoutedLayer], layout: Layout | str | None) -> str | None:
    """Why a module of this layout cannot be routed by this kind; None when it can, or is never reached."""
    if layout is None or isinstance(layout, str):
        return layout
    if kind in (RoutedAny, RoutedPositions):
        shared = [place for place, dim in layout.outputs.items() if dim is None and f"out {place}" not in layout.single]
        if shared or all(dim is None for dim in layout.inputs.values()):
            return "what its module takes or returns is the same for all inputs"
        return None
    place, along = next(iter(layout.inputs.items()), ("", None))
    if along is None and not (kind is RoutedEmbedding and f"in {place}" in layout.single):
        return "its module is used on what all inputs share"
    if along and kind in (RoutedConv, RoutedGroupedConv, RoutedBatchNorm):
        return "its module takes the inputs along another dimension than the first"
    return None


def _unit(model: nn.Module, name: str) -> tuple[str, str]:
    """The module that holds a parameter, or one around it that reads it itself, and the parameter's name within it."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        module, child = model.get_submodule(".".join(parts[:depth])), parts[depth]
        # torch's attention reads the weights of its parts; a list of experts is called on a choice of the tokens.
        listed = child == "experts" and isinstance(getattr(module, child), nn.ModuleList | nn.ModuleDict)
        if isinstance(module, nn.MultiheadAttention) or listed:
            return ".".join(parts[:depth]), ".".join(parts[depth:])
    if len(parts) == 1:
        raise ValueError(
            f"parameter '{name}' is not used along the batch and cannot differ per input; freeze it in the experts."
        )
    return ".".join(parts[:-1]), parts[-1]


def _as_stored(model: nn.Module, unit: str, leaf: str, differences: list[Difference | None]) -> list[Difference | None]:
    """Factors of a transposed weight, turned round where the fallback will multiply them into the stored layout."""
    holder = model.get_submodule(f"{unit}.{leaf}".rpartition(".")[0])
    if not isinstance(holder, Conv1D) or ("." not in leaf and layer_kind(holder) is RoutedConv1D):
        return differences
    return [(d[1].t(), d[0].t()) if isinstance(d, tuple) else d for d in differences]


def _tie(places: list[tuple[nn.Module, str]]) -> None:
    """Let modules with a tied parameter share its factors, so that they are stored and trained once."""
    factored = [(module, leaf) for module, leaf in places if isinstance(module, FactoredLayer)]
    for module, leaf in factored[1:]:
        first = factored[0][0]
        if leaf == "bias":
            module.experts_bias = first.experts_bias
        else:
            module.experts_up, module.experts_down = first.experts_up, first.experts_down


def rms_epsilon(module: nn.Module) -> float | None:
    """The epsilon of a module that computes x / sqrt(mean(x^2) + epsilon) * weight, found by trial; else None."""
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    named = dict(module.named_parameters())
    if not isinstance(epsilon, float) or set(named) != {"weight"} or named["weight"].dim() != 1:
        return None
    width = named["weight"].shape[0]
    scale = torch.linspace(0.5, 2.0, width)
    x = torch.linspace(-1.0, 2.0, 2 * width).reshape(2, width) * epsilon**0.5  # small enough for epsilon to matter
    try:
        y = functional_call(module, {"weight": scale}, (x,))
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None
    wanted = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * scale
    same = isinstance(y, Tensor) and y.shape == x.shape and torch.allclose(y.float(), wanted, rtol=1e-3)
    return epsilon if same else None


def layer_kind(module: nn.Module) -> type[RoutedLayer]:
    """The routed class that serves a stock module; a subclass with a forward of its own is not taken for its base."""
    forward = type(module).forward
    if isinstance(module, CalledTimm):
        return RoutedPositions
    if forward is nn.Linear.forward:
        return RoutedLinear
    if forward is Conv1D.forward:
        return RoutedConv1D
    if forward is nn.Embedding.forward and cast(nn.Embedding, module).max_norm is None:
        return RoutedEmbedding
    if (kind := image_kind(module)) is not None:
        return kind
    return RoutedNorm if rms_epsilon(module) is not None else RoutedAny


def attach_layer(
    module: nn.Module, mixture: Mixture, differences: Mapping[str, Sequence[Difference | None]]
) -> RoutedLayer:
    """Turn a stock module into its routed kind, in place: same parameters and names, still an instance of its class.

    Args:
        module: any module.
        mixture: of the model.
        differences: parameter name within the module -> one (up, down), difference or None per expert.

    Returns:
        The same object, now of its routed class.

    Raises:
        ValueError: for a difference of another shape than its parameter, or a module whose forward is replaced.
    """
    if "forward" in vars(module):
        raise ValueError(
            f"a {type(module).__name__} has had its forward replaced (accelerate's device_map does that) and cannot be "
            "routed; load the model without it."
        )
    stock = {name: stored(module, name) for name in differences}
    kind = layer_kind(module)
    if kind is not RoutedPositions and not set(differences) <= {
        "weight",
        "bias",
        *(("running_mean", "running_var") if kind is RoutedBatchNorm else ()),
    }:
        kind = RoutedAny
    epsilon = rms_epsilon(module) or getattr(module, "eps", None)
    module.__class__ = routed_class(kind, type(module))  # type: ignore[arg-type]  # a class has a hash
    module.mixture = mixture  # type: ignore[assignment]
    made = cast(RoutedLayer, module)
    routed = cast(Any, made)  # each kind attaches differences of its own form
    if issubclass(kind, RoutedAny):
        paired = {name: _paired(ds, stock[name]) for name, ds in differences.items()}
        dense = {name: _stacked(differences, name, stock[name]) for name, pair in paired.items() if pair is None}
        routed.attach(dense, {name: pair for name, pair in paired.items() if pair is not None})
        return made
    bias = _stacked(differences, "bias", stock.get("bias"))
    if issubclass(kind, RoutedNorm):
        routed.attach(epsilon, _stacked(differences, "weight", stock.get("weight")), bias)
        return made
    if kind is RoutedBatchNorm:
        names = ("weight", "bias", "running_mean", "running_var")
        routed.attach(*(_stacked(differences, name, stock.get(name)) for name in names))
        return made
    experts = len(next(iter(differences.values())))
    transposed = kind is RoutedConv1D
    pairs = [_factors(d, routed.weight, transposed) for d in differences.get("weight", [None] * experts)]
    routed.attach([up for up, _ in pairs], [down for _, down in pairs], bias)
    return made


def _stacked(differences: Mapping[str, Sequence[Difference | None]], name: str, like: Tensor | None) -> Tensor | None:
    """One parameter's differences as (experts, *shape), or None when no expert has any."""
    if like is None:
        return None
    made = []
    for difference in differences[name]:
        dense = torch.zeros_like(like) if difference is None else difference
        dense = torch.matmul(*dense) if isinstance(dense, tuple) else dense
        made.append(_checked(dense, like).detach().reshape(like.shape).to(like))
    return torch.stack(made).detach()


def _paired(differences: Sequence[Difference | None], like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Factors of all experts padded to one rank and stacked, where every difference is a pair and that is smaller."""
    pairs = [d for d in differences if d is not None]
    if not pairs or not all(isinstance(d, tuple) for d in pairs):
        return None
    rank = max(down.shape[-2] for _, down in pairs)
    m, n = pairs[0][0].shape[-2], pairs[0][1].shape[-1]
    if rank * (m + n) >= m * n:
        return None
    up = like.new_zeros(len(differences), *pairs[0][0].shape[:-1], rank)
    down = like.new_zeros(len(differences), *pairs[0][1].shape[:-2], rank, n)
    for index, pair in enumerate(differences):
        if pair is not None:
            _checked(pair[0][..., :1] @ pair[1][..., :1, :], like)
            up[index, ..., : pair[0].shape[-1]], down[index, ..., : pair[1].shape[-2], :] = pair
    return up.detach(), down.detach()


def _factors(difference: Difference | None, weight: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    m, n = (weight.shape[1], weight.shape[0]) if transposed else (weight.shape[0], weight[0].numel())
    if difference is None:
        return weight.new_zeros(m, 0), weight.new_zeros(0, n)
    if not isinstance(difference, tuple):
        dense = _checked(difference, weight)
        dense = dense.t() if transposed else dense.reshape(m, n)
        eye = torch.eye(min(m, n))  # a dense difference is its own factor beside an identity
        difference = (eye, dense) if m < n else (dense, eye)
    up, down = difference
    if (up.shape[0], down.shape[1]) != (m, n) or up.shape[1] != down.shape[0]:
        raise ValueError(
            f"an expert has factors of shapes {tuple(up.shape)} and {tuple(down.shape)}, but the weight takes ({m}, r) "
            f"and (r, {n}); give experts of the same architecture."
        )
    return up.to(weight).detach(), down.to(weight).detach()


def _checked(difference: Tensor, like: Tensor) -> Tensor:
    if difference.numel() != like.numel():
        raise ValueError(
            f"an expert has a difference of shape {tuple(difference.shape)} for a parameter of shape "
            f"{tuple(like.shape)}; give experts of the same architecture."
        )
    return difference


def register_states(kind: Any) -> None:
    """Tell transformers, which goes by the class's name, which states the forward of a class made here can return."""
    known = cast("dict[str, Any]", getattr(transformers.modeling_utils, "_CAN_RECORD_REGISTRY", {}))
    dict.__setitem__(known, str(kind), getattr(kind, "_can_record_outputs", None))
