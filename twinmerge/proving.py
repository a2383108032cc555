"""Prove that a model takes a mixture for every input of a batch, on a tiny batch or on the first of its kind.

Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from .attaching import Traced, unfit
from .layouts import Run, escaping, probe_inputs, shadow, trace, two_inputs, variants
from .mixture import UNTRACED, Layout, batch_dimension
from .routed_layers import ADDED, RoutedAny, RoutedLayer

if TYPE_CHECKING:
    from .twin_mixin import TwinMixin


def probe_of(model: PreTrainedModel) -> Traced | None:
    """A tiny batch that this model is known to take; None where none could be made."""
    try:
        inputs = probe_inputs(model)
        if inputs is None or next(model.parameters()).device.type == "meta":
            return None
        with torch.no_grad():
            whole_forward(shadow(model), inputs)
    except Exception:  # whatever a model of any kind says to inputs that it did not expect
        return None
    return Traced(whole_forward, inputs)


def whole_forward(model: PreTrainedModel, inputs: Mapping[str, object]) -> object:
    """The whole forward without a cache; of a twin, the stock model's."""
    known = inspect.signature(model.forward).parameters
    plain = {"use_cache": False} if "use_cache" in known else {}
    return getattr(model, "stock_forward", model)(**plain | dict(inputs))


def body_forward(model: TwinMixin, inputs: Mapping[str, Any]) -> object:
    """The forward of a twin's body alone."""
    main = inputs.get(model.main_input_name)
    rest = {k: v for k, v in inputs.items() if k not in (model.main_input_name, "attention_mask")}
    return model._states(main, inputs.get("attention_mask"), **rest)


def find_layouts(twin: TwinMixin, inputs: Mapping[str, object], run: Run) -> None:
    """Give every routed module that these inputs reach its layout."""
    units = {name: module for name, module in twin.named_modules() if isinstance(module, RoutedLayer)}
    main, way = twin.main_input_name, "freeze it in the experts, or give one row of router weights"
    pair = two_inputs(inputs, main)
    if pair is None:
        raise ValueError(
            f"the rows of {', '.join(sorted(k for k, v in inputs.items() if isinstance(v, Tensor)))} cannot be told "
            "apart by their first dimensions, and each input has its own mixture; give one row of router weights."
        )
    found = trace(twin, run, pair, units)
    for name, new in found.items():
        module = units[name]
        kind = RoutedAny if isinstance(module, RoutedAny) else type(module).__bases__[0]
        reason = unfit(kind, new)
        old = module.layout
        known = old is None or old is UNTRACED or isinstance(new, str)
        both = new if known else cast(Layout, old).joined(cast(Layout, new))
        if reason or both is None:
            reason = reason or "its inputs lie another way than in another forward"
            raise ValueError(f"'{name}' cannot be routed per input: {reason}; {way}.")
        module.layout = cast(Layout, both)
    refuse_escaping(twin, pair, run)


def refuse_escaping(twin: TwinMixin, inputs: Mapping[str, object], run: Run) -> None:
    """Refuse inputs on which a weight is read past the routed module that holds it, which would miss its experts.

    Raises:
        ValueError: with the name of the parameter.
    """
    leaves = {name: mixed_leaves(m) for name, m in twin.named_modules() if isinstance(m, RoutedLayer)}
    if lost := sorted(escaping(twin, run, inputs, leaves)):
        raise ValueError(
            f"'{lost[0]}' is read outside of the part that sees its experts by a forward on such inputs (of this size, "
            "with these options); freeze it in the experts, or give inputs of another size or other options."
        )


def mixed_leaves(module: RoutedLayer) -> list[str]:
    """Names of the stock parameters that a routed module mixes."""
    if isinstance(module, RoutedAny):
        return [name.replace("/", ".") for part in (module.experts_dense, module.experts_ups) for name in part]
    return [name for name, _ in module.named_parameters(recurse=False) if name not in ADDED]


def prove(twin: TwinMixin, inputs: Mapping[str, Tensor]) -> None:
    """Compare a tiny batch with each of its inputs alone, which has one row of weights and nothing to deal out.

    Raises:
        ValueError: when they differ: the model takes its batch apart in a way that no layout describes.
    """
    double, rows = shadow(twin), 2
    ramp = torch.arange(1.0, len(twin.tasks) + 1, device=twin.device)
    weights = torch.stack([ramp.softmax(-1), ramp.flip(0).softmax(-1)])

    def run(given: Mapping[str, object], part: Tensor) -> list[Tensor]:
        with torch.no_grad(), double.mixture.use(part):
            return [t for t in tree_leaves(whole_forward(double, given)) if isinstance(t, Tensor)]

    try:
        for given in variants(inputs):
            whole = run(given, weights)
            alone = [run({k: v[i : i + 1] for k, v in given.items()}, weights[i : i + 1]) for i in range(rows)]
            for index, tensor in enumerate(whole):
                batch_dimension(tensor, [part[index] for part in alone])
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{type(twin).__bases__[1].__name__} cannot take a mixture for every input of a batch ({reason}): it takes "
            "its batch apart in a way of its own; freeze the parts that do so in the experts."
        ) from error
