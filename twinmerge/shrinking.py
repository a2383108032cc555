"""One product with the factors A of all layers that take one tensor: of query, key and value, of gate and up.

Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = Any  # a routed linear layer, whose module imports this one
MANY = 16  # tokens; a product with more of them is no faster when it serves siblings too, and reads its part strided


class Siblings:
    """Layers that take the same tensor, and their factors A as one matrix where those lie one after another in memory.

    Args:
        modules: the layers, each with `experts_down` and `experts_owner`.
    """

    def __init__(self, modules: Sequence[Layer]) -> None:
        self.modules = list(modules)
        ends = torch.tensor([m.experts_down.shape[0] for m in modules]).cumsum(0).tolist()
        self.columns = list(zip([0, *ends[:-1]], ends, strict=True))

    def stacked(self) -> Tensor | None:
        """The factors A of all modules, shape (sum of ranks, n), in the modules' own memory: nothing to go stale.

        None where they are not on one device.

        They are laid anew when they have been moved since, to another device or by a copy of the model.
        """
        downs = [module.experts_down for module in self.modules]
        if len({down.device for down in downs}) > 1:  # offloaded one by one: each by itself
            return None
        first, size = downs[0], downs[0].element_size()
        memory, next_at = first.untyped_storage().data_ptr(), first.data_ptr()
        for down in downs:
            if down.data_ptr() != next_at or down.untyped_storage().data_ptr() != memory or not down.is_contiguous():
                return self._laid_anew()
            next_at += down.numel() * size
        return torch.as_strided(first, (self.columns[-1][1], first.shape[1]), (first.shape[1], 1))

    def _laid_anew(self) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():  # parameters that a later training may use
            whole = torch.cat([module.experts_down.detach() for module in self.modules]).contiguous()
            for module, (start, end) in zip(self.modules, self.columns, strict=True):
                module.experts_down.data = whole[start:end]
        return whole


def is_quick(module: Layer, x: Tensor) -> bool:
    """Whether `quick_linear` serves this call: no gradient is wanted, and every row has its own whole inputs."""
    up, down, bias = module.experts_up, module.experts_down, module.experts_bias
    m, (rank, n) = up.shape[0], down.shape
    rows = module.mixture.row().shape[0]
    tokens = x.numel() // n // rows  # of one weight vector; more than this and merging the matrix costs less
    return (
        rank > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(x.device.type)  # it does not reach in-place products
        and x.dim() > 1
        and (rows == 1 or x.shape[0] >= rows)
        and tokens * (m + n) <= m * n
        and x.dtype == module.weight.dtype == down.dtype == up.dtype
        and (bias is None or bias.dtype == x.dtype)
    )


class _Shrunk:
    """x A^T, scaled by the mixture in use, for layers that take one tensor: the first that sees it serves all of them.

    Args:
        modules: the layers.
        down: their factors A, one after another, shape (sum of ranks, n).
        spread: the weight of every rank for every input, shape (inputs or 1, 1, ..., sum of ranks).
        places: where the factors lie in memory.
    """

    def __init__(self, modules: Sequence[Layer], down: Tensor, spread: Tensor, places: list[int]) -> None:
        self.modules, self.down, self.spread, self.places = modules, down, spread, places
        self._of: tuple[Tensor, int | None, Tensor] | None = None

    def __call__(self, module: Layer, x: Tensor) -> Tensor:
        """The product for an input of shape (inputs, ..., n), for a module of them: (inputs, ..., sum of ranks)."""
        if len(self.modules) == 1:
            return F.linear(x, self.down).mul_(self.spread)
        version = None if x.is_inference() else x._version
        found = self._of
        if found is None or found[0] is not x or found[1] != version:
            found = self._of = (x, version, F.linear(x, self.down).mul_(self.spread))
        if module is self.modules[-1]:
            self._of = None
        return found[2]


def _places(modules: Sequence[Layer]) -> list[int]:
    """Where the factors A lie in memory: a model that was moved, copied over or loaded anew is planned anew."""
    return [module.experts_down.data_ptr() for module in modules]


def _shrunk(module: Layer, x: Tensor) -> _Shrunk:
    """The product that a layer shares with its siblings, kept for them while the mixture is in use."""
    kept, group = module.mixture.kept, cast("Siblings | None", module.siblings)
    if group is None or module not in group.modules:  # the latter: a copy that only passes through
        return _Shrunk((module,), module.experts_down, _spread(x, (module,)), _places((module,)))
    key = (id(group), x.shape, x.dtype, torch.is_inference_mode_enabled())
    places, found = _places(group.modules), cast("_Shrunk | None", kept.get(key))
    if found is None or found.modules is not group.modules or found.places != places:
        stacked, modules = group.stacked(), cast("Sequence[Layer]", group.modules)
        if stacked is None:  # offloaded siblings
            stacked, modules = module.experts_down, (module,)
        found = _Shrunk(modules, stacked, _spread(x, modules), _places(modules))
        if modules is group.modules:
            kept[key] = found
    return found


class Plan:
    """A quick call of one layer under the mixture in use, with all that does not change from one token to the next.

    Generation calls a layer once a token with inputs of one shape: what its first call found out is kept as long as the
    mixture is in use. The factors are views of the layer's own memory, so that changes of their numbers are seen.

    Args:
        module: a routed linear layer.
        x: shape (inputs, ..., n), as many inputs as the mixture has rows or a multiple, or one row for all; a call that
            `is_quick`.
    """

    def __init__(self, module: Layer, x: Tensor) -> None:
        self.module, self.shrunk, up = module, _shrunk(module, x), module.experts_up
        self.shape, self.dtype, self.inference = x.shape, x.dtype, torch.is_inference_mode_enabled()
        self.turned, self.place = up.t(), up.data_ptr()
        modules, group = self.shrunk.modules, module.siblings
        columns: tuple[int, int] = (0, up.shape[1]) if len(modules) == 1 else group.columns[modules.index(module)]
        self.start, self.end = columns
        self.weights = _weights(module, x)

    def serves(self, x: Tensor) -> bool:
        """Whether a call is like the one that was planned."""
        return (
            x.shape == self.shape
            and x.dtype is self.dtype
            and torch.is_inference_mode_enabled() is self.inference
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled(x.device.type)
            and self.module.experts_up.data_ptr() == self.place
            and _places(self.shrunk.modules) == self.shrunk.places
        )

    def add(self, x: Tensor, base: Tensor) -> Tensor:
        """The mixture is added to what the stock layer gave, in place.

        Args:
            x: shape (inputs, ..., n).
            base: what the stock layer makes of it, shape (inputs, ..., m).
        """
        mine = self.shrunk(self.module, x)[..., self.start : self.end]
        return _added(base, mine, self.turned, self.weights, self.module.experts_bias)


def _added(base: Tensor, shrunk: Tensor, up: Tensor, weights: Tensor | None, bias: Tensor | None) -> Tensor:
    """The stock layer's output plus the factors B and the mixed bias, in place."""
    base, (rank, width) = base.contiguous(), up.shape
    flat = base.view(-1, width).addmm_(shrunk.reshape(-1, rank), up)
    if weights is not None and bias is not None:
        if weights.shape[0] == flat.shape[0]:
            flat.addmm_(weights, bias)
        else:
            flat.view(weights.shape[0], -1, width).add_((weights @ bias)[:, None])
    return base


def quick_linear(module: Layer, x: Tensor, base: Tensor) -> Tensor:
    """The routed linear layer where `is_quick`, by a plan that later calls use too, see `planned`.

    Args:
        module: a routed linear layer.
        x: shape (inputs, ..., n).
        base: what the stock layer makes of it, shape (inputs, ..., m).
    """
    if x.numel() > MANY * x.shape[-1]:  # no siblings, and nothing worth keeping
        mine = F.linear(x, module.experts_down).mul_(_spread(x, (module,)))
        return _added(base, mine, module.experts_up.t(), _weights(module, x), module.experts_bias)
    plan, layout = Plan(module, x), module.layout
    if layout is None or not next(iter(layout.inputs.values()), 0):  # else it was given another tensor than x
        module.mixture.kept[id(module)] = plan
    return plan.add(x, base)


def planned(module: Layer, x: Tensor) -> Plan | None:
    """The plan of a layer for a call like its last one under the mixture in use."""
    plan = cast("Plan | None", module.mixture.found(id(module)))
    return plan if plan is not None and plan.module is module and plan.serves(x) else None


def _weights(module: Layer, x: Tensor) -> Tensor | None:
    """The weights of the experts' biases, where there are any."""
    return None if module.experts_bias is None else cast(Tensor, module.mixture.row().to(x.dtype))


def _spread(x: Tensor, modules: Sequence[Layer]) -> Tensor:
    """The weight of every rank for every input, once for all layers with these ranks: (inputs or 1, 1, ..., ranks)."""
    mixture = modules[0].mixture
    kept = mixture.kept
    ranks = tuple(module.experts_ranks for module in modules)
    key = (ranks, x.shape[0], x.dim(), x.dtype, x.device, torch.is_inference_mode_enabled())
    spread = kept.get(key)
    if spread is None:
        row = mixture.row()
        share = 1 if row.shape[0] == 1 else mixture.share(x.shape[0])
        spread = row[:, torch.cat([module.experts_owner for module in modules])].to(x.dtype).repeat_interleave(share, 0)
        spread = kept[key] = spread.reshape(-1, *[1] * (x.dim() - 2), spread.shape[-1])
    return cast(Tensor, spread)


def find_siblings(model: nn.Module, kind: type, run: Any, inputs: Mapping[str, object]) -> None:
    """Group the factored layers that took one tensor in a forward, by their attribute `siblings`.

    Args:
        model: a twin.
        kind: of the layers.
        run: calls the model on inputs.
        inputs: a tiny batch.
    """
    taken: dict[tuple[int, int], list[Layer]] = {}
    alive: list[Tensor] = []  # so that no two of them have one address
    counts: dict[int, int] = {}

    def note(module: Layer, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        counts[id(module)] = counts.get(id(module), 0) + 1
        if isinstance(x, Tensor):
            alive.append(x)
            taken.setdefault((id(x), x._version), []).append(module)

    modules = [module for module in model.modules() if isinstance(module, kind)]
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            run(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for together in taken.values():
        downs = [module.experts_down for module in together]
        once = all(counts[id(module)] == 1 for module in together)  # a layer used twice has no one place
        first = all(not next(iter(getattr(m.layout, "inputs", {}).values()), 0) for m in together)  # else x is turned
        alike = len({(down.dtype, down.device, down.shape[1]) for down in downs}) == 1
        tied = len({id(down) for down in downs}) < len(downs)
        if len(together) > 1 and once and first and alike and not tied and all(down.shape[0] for down in downs):
            group = Siblings(together)
            for module in together:
                module.siblings = group
