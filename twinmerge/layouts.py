"""Find out where the inputs of a batch lie in every module's tensors, by running a stock model on them and on each.

Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves
from transformers import PreTrainedModel

from .mixture import Layout, batch_dimension
from .routed_layers import replica, stored

Model = TypeVar("Model", bound=nn.Module)
Value = TypeVar("Value")
Run = Callable[[Any, Mapping[str, Any]], object]
Sides = tuple[dict[str, Tensor], dict[str, Tensor]]  # the tensors that a call takes and those that it returns
Calls = dict[str, list[Sides]]


def probe_inputs(model: PreTrainedModel, rows: int = 2) -> dict[str, Tensor] | None:
    """A tiny batch that the model's forward may take, from its configuration; None where that does not say enough.

    Args:
        model: a transformers model.
        rows: inputs, all different.
    """
    accepted = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    made: dict[str, Tensor] | None = None
    if main == "input_ids":
        try:
            words: object = model.get_input_embeddings().num_embeddings
        except (NotImplementedError, AttributeError):  # embeddings of another kind, such as Canine's
            words = getattr(model.config, "vocab_size", 100)
        if isinstance(words, int):
            config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
            settings = {**model.config.to_dict(), **config.to_dict()}
            special = {v for k, v in settings.items() if k.endswith(("_token_id", "_token_index"))}
            usable = torch.tensor([i for i in range(min(words, 1000)) if i not in special and i > 2] or [0])
            ids = usable[torch.randint(0, len(usable), (rows, 8), generator=generator)]
            made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if "decoder_input_ids" in accepted:
                made["decoder_input_ids"] = usable[torch.randint(0, len(usable), (rows, 5), generator=generator)]
    elif main == "pixel_values":
        config = getattr(model.config, "vision_config", model.config)
        config = getattr(config, "backbone_config", None) or config
        size = _side(model) or getattr(config, "image_size", None) or getattr(config, "input_size", 64)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        made = {main: torch.randn(rows, _channels(model, config), height, width, generator=generator)}
    elif main == "input_values":
        made = {main: torch.randn(rows, 4000, generator=generator)}
    elif main == "input_features":
        bins = getattr(model.config, "num_mel_bins", getattr(model.config, "feature_projection_input_dim", 80))
        made = {
            main: torch.randn(rows, bins, 2 * getattr(model.config, "max_source_positions", 32), generator=generator)
        }
    if made is None:
        return None
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return {
        k: v.to(device=device, dtype=dtype if v.is_floating_point() else v.dtype)
        for k, v in made.items()
        if k in accepted
    }


def _channels(model: PreTrainedModel, config: object) -> int:
    """The channels of a model's images: of one of timm, whose configuration does not say, its first convolution's."""
    told = getattr(config, "num_channels", None)
    if isinstance(told, int):
        return told
    inner = getattr(model, "timm_model", None)
    first = next((m for m in inner.modules() if isinstance(m, nn.Conv2d)), None) if inner is not None else None
    return 3 if first is None else first.in_channels


def _side(model: PreTrainedModel) -> object:
    """Height and width that a model of timm insists on; None where it takes any, or is of another library."""
    inner = getattr(model, "timm_model", None)
    patches = getattr(inner, "patch_embed", None)
    known = getattr(patches, "img_size", None) or getattr(inner, "img_size", None)
    told = getattr(inner, "pretrained_cfg", None) or {}
    return told["input_size"][1:] if known is None and told.get("fixed_input_size") else known


def two_inputs(inputs: Mapping[str, object], main: str) -> dict[str, Any] | None:
    """The first and the last input of a batch, made different; None when its tensors cannot be taken apart by rows."""
    tensors = {k: v for k, v in inputs.items() if isinstance(v, Tensor) and v.dim()}
    first = tensors.get(main, next(iter(tensors.values()), None))
    if first is None or first.shape[0] < 2 or any(v.shape[0] not in (1, first.shape[0]) for v in tensors.values()):
        return None
    pair: dict[str, Any] = {
        k: torch.stack([tensors[k][0], tensors[k][-1]]) if k in tensors and tensors[k].shape[0] > 1 else v
        for k, v in inputs.items()
    }
    if main in pair and torch.equal(pair[main][0], pair[main][1]):
        pair[main] = torch.stack([pair[main][0], pair[main][1].roll(1, -1)])
    return pair


def shadow(model: Model) -> Model:
    """A copy in eval mode that shares the parameters: what a forward changes in the model itself is not kept."""
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, memo).eval()


def variants(inputs: Mapping[str, Value]) -> list[dict[str, Value | Tensor]]:
    """The same inputs without padding and with the last token of each padded: models leave out a mask of ones."""
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < 2:
        return [dict(inputs)]
    padded = torch.ones_like(mask)
    padded[:, -1] = 0
    return [{**inputs, "attention_mask": torch.ones_like(mask)}, {**inputs, "attention_mask": padded}]


def trace(model: nn.Module, run: Run, inputs: Mapping[str, object], names: Iterable[str]) -> dict[str, Layout | str]:
    """The layout of every named module that the forward reaches, or the reason why it has none.

    Args:
        model: left as it is; a twin is run without a mixture.
        run: calls a model on inputs.
        inputs: of two rows, see `two_inputs`; they are run with and without padding.
        names: of modules.
    """
    double, wanted = shadow(model), set(names)
    found: dict[str, Layout | str] = {}
    for given in variants(inputs):
        for name, layout in _trace_once(double, run, given, wanted).items():
            old = found.get(name, layout)
            if isinstance(old, str) or isinstance(layout, str):
                found[name] = old if isinstance(old, str) else layout
            else:
                found[name] = old.joined(layout) or "its inputs lie another way where they are padded"
    return found


def _trace_once(double: nn.Module, run: Run, inputs: Mapping[str, object], wanted: set[str]) -> dict[str, Layout | str]:
    rows = max(v.shape[0] for v in inputs.values() if isinstance(v, Tensor) and v.dim())
    whole = _calls(double, run, inputs, wanted)
    parts = []
    for i in range(rows):
        one = {
            k: v[i : i + 1] if isinstance(v, Tensor) and v.dim() and v.shape[0] == rows else v
            for k, v in inputs.items()
        }
        parts.append(_calls(double, run, one, wanted))
    return {name: _layout(calls, [part.get(name, []) for part in parts]) for name, calls in whole.items()}


def _calls(double: nn.Module, run: Run, inputs: Mapping[str, object], wanted: set[str]) -> Calls:
    calls: Calls = {}
    hooks = []

    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: object, kwargs: object, output: object) -> None:
            calls.setdefault(name, []).append((_tensors((args, kwargs)), _tensors(output)))

        return record

    for name, module in double.named_modules():
        if name in wanted:
            hooks.append(module.register_forward_hook(recorder(name), with_kwargs=True))
    try:
        with torch.no_grad():
            run(double, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _tensors(tree: object) -> dict[str, Tensor]:
    return {keystr(path): leaf for path, leaf in tree_flatten_with_path(tree)[0] if isinstance(leaf, Tensor)}


def _layout(whole: Sequence[Sides], parts: Sequence[Sequence[Sides]]) -> Layout | str:
    """The one layout of all calls of a module."""
    joined: Layout | None = None
    if any(len(part) != len(whole) for part in parts):
        return "it is called once for some of the tokens"
    for index, call in enumerate(whole):
        sides = []
        for side, tensors in enumerate(call):
            dims = {}
            for place, tensor in tensors.items():
                alone = [found for part in parts if (found := part[index][side].get(place)) is not None]
                if len(alone) < len(parts) or any(a.dim() != tensor.dim() for a in alone):
                    return f"it takes {place} only for some inputs"
                try:
                    dims[place] = batch_dimension(tensor, alone)
                except ValueError as error:
                    return f"of {'its arguments' if side == 0 else 'what it returns'}, {place}: {error}"
            sides.append(dims)
        both = [(("in " if side == 0 else "out ") + k, t) for side, ts in enumerate(call) for k, t in ts.items()]
        single = {place for place, t in both if t.dim() and t.shape[0] == 1}
        layout = Layout(sides[0], sides[1], frozenset(single))
        joined = layout if joined is None else joined.joined(layout)
        if joined is None:
            return "its inputs lie another way in each of its calls"
    return joined if joined is not None else "it is never called"


def escaping(model: nn.Module, run: Run, inputs: Mapping[str, object], units: Mapping[str, Iterable[str]]) -> set[str]:
    """Parameters that a forward reads past the modules that are to be routed for them.

    Every unit is run with detached copies of its parameters; what still reaches the output by gradient escapes.

    Args:
        model: left as it is.
        run: calls a model on inputs.
        inputs: any that the model takes.
        units: name of a module -> names within it of the parameters that it is to be routed for.
    """
    double = shadow(model)
    changed = {
        f"{unit}.{leaf}".lstrip("."): stored(double, f"{unit}.{leaf}".lstrip("."))
        for unit in units
        for leaf in units[unit]
    }
    changed = {name: p for name, p in changed.items() if p.is_floating_point() and p.is_leaf}
    for unit, leaves in units.items():
        module = double.get_submodule(unit)
        module.forward = partial(_detached, module, tuple(leaves))
    flags = {p: p.requires_grad for p in (*double.parameters(), *changed.values())}
    try:
        for p in flags:
            p.requires_grad_(False)
        for p in changed.values():
            p.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in the middle of
            own = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
            out = [t for t in tree_leaves(run(double, own)) if isinstance(t, Tensor) and t.requires_grad]
            total = sum((t.float().sum() for t in out), torch.zeros(()))
            if not total.requires_grad:
                return set()
            grads = torch.autograd.grad(total, list(changed.values()), allow_unused=True)
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
    return {name for name, grad in zip(changed, grads, strict=True) if grad is not None}


def _detached(module: nn.Module, leaves: tuple[str, ...], *args: object, **kwargs: object) -> object:
    values = {leaf: stored(module, leaf).detach() for leaf in leaves}
    made = replica(module, values, type(module))
    del made.__dict__["forward"]
    return made.forward(*args, **kwargs)
