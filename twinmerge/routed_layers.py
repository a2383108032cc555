"""Routed layers: each keeps its stock class, parameter names and shared weights, and adds every expert's factors.

A layer given mixture weights w computes what the stock layer would with weights W + sum_t w_t up_t down_t, for the
whole batch at once and a different w per input. Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import KeyPath, keystr, tree_flatten_with_path, tree_map_with_path, tree_unflatten

from .mixture import UNTRACED, Layout, Mixture
from .shrinking import Siblings, is_quick, planned, quick_linear

# What attach adds to a module; everything else is the stock module's own.
ADDED = frozenset(
    {"experts_up", "experts_down", "experts_owner", "experts_bias", "experts_weight", "experts_epsilon", "siblings"}
    | {"experts_dense", "experts_ups", "experts_downs", "experts_mean", "experts_var", "mixture", "layout"}
    | {"experts_ranks"}
)


class RoutedLayer(nn.Module):
    """What all routed layers share: the mixture, and the stock forward whenever no mixture is in use.

    Attributes:
        layout: where the inputs of a batch lie in this module's tensors, as `trace` found; None: along their first
            dimension.
    """

    mixture: Mixture
    layout: Layout | None = None
    routed: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stock forward without a mixture, routed forward with one."""
        weights = self.mixture.weights
        if weights is None:
            return super().forward(*args, **kwargs)
        if self.layout is None or weights.shape[0] == 1:
            return self.routed(*args, **kwargs)
        _reached(self, self.layout)
        along = next(iter(self.layout.inputs.values()))  # these layers take one tensor
        if not along:
            return self.routed(*args, **kwargs)
        x = args[0] if args else next(iter(kwargs.values()))
        return self.routed(x.movedim(along, 0)).movedim(0, along)

    def __reduce__(self) -> tuple[object, ...]:  # the class is made at run time, so pickle must be told how
        return _blank, type(self).__bases__, self.__dict__


def _reached(module: nn.Module, layout: Layout) -> None:
    if layout is UNTRACED or not layout.inputs:
        raise ValueError(
            f"a {type(module).__name__} is reached by a forward in which nobody checked where its inputs lie; give one "
            "row of router weights, or pass the inputs by name to the twin's own forward first."
        )


class FactoredLayer(RoutedLayer):
    """A layer whose matrix differs per expert by up_t @ down_t; factors of all experts are stacked along the rank.

    Attributes:
        experts_up: shape (m, R), R the sum of the experts' ranks.
        experts_down: shape (R, n).
        experts_ranks: the rank of each expert.
        experts_owner: shape (R,), the expert each rank belongs to.
        experts_bias: shape (experts, m), or None.
    """

    experts_ranks: tuple[int, ...]
    experts_up: nn.Parameter
    experts_down: nn.Parameter
    experts_owner: Tensor
    experts_bias: nn.Parameter | None
    siblings: Siblings | None

    def attach(self, ups: Sequence[Tensor], downs: Sequence[Tensor], bias: Tensor | None) -> None:
        """Stack one (up, down) pair per expert, in task order; a pair of rank 0 stands for an unchanged expert."""
        self.experts_ranks = tuple(down.shape[0] for down in downs)
        owner = [t for t, rank in enumerate(self.experts_ranks) for _ in range(rank)]
        self.experts_up = nn.Parameter(torch.cat(list(ups), dim=1).contiguous())
        self.experts_down = nn.Parameter(torch.cat(list(downs), dim=0).contiguous())
        owners = torch.tensor(owner, dtype=torch.long, device=self.experts_up.device)
        self.register_buffer("experts_owner", owners, persistent=False)
        self.experts_bias, self.siblings = None if bias is None else nn.Parameter(bias), None

    def spread(self) -> Tensor:
        """The router weights laid out along the stacked rank: shape (rows, R)."""
        return self.mixture.row()[:, self.experts_owner]

    def mixed_bias(self) -> Tensor | None:
        """The bias differences of the mixture, shape (rows, m)."""
        bias = self.experts_bias
        return None if bias is None else self.mixture.row().to(bias.dtype) @ bias


class RoutedLinear(FactoredLayer):
    """y = x W^T + b + ((x down^T) * w) up^T + w delta_b, exact for any mixture and any batch."""

    transposed = False  # Conv1D of GPT-2 keeps its weight as (in, out)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As any routed layer; what a call found out serves all further ones like it."""
        if len(args) == 1 and (plan := planned(self, args[0])) is not None:
            return plan.add(args[0], super(RoutedLayer, self).forward(args[0]))
        return super().forward(*args, **kwargs)

    def routed(self, x: Tensor) -> Tensor:
        """Factored, or materialised per weight vector when its tokens pay for that: tokens > mn / (m + n)."""
        m, n = self.experts_up.shape[0], self.experts_down.shape[1]
        if is_quick(self, x):
            return quick_linear(self, x, super(RoutedLayer, self).forward(x))
        flat = self.mixture.grouped(x).flatten(1, -2)  # (rows or 1, tokens of one weight vector, n)
        materialise = flat.shape[1] * (m + n) > m * n
        y = self._materialised(flat) if materialise else self._factored(x, flat)
        bias = self.mixed_bias()
        if bias is not None:
            y = y + bias[:, None]
        return y.reshape(-1, *x.shape[1:-1], m)

    def _factored(self, x: Tensor, flat: Tensor) -> Tensor:
        base = cast(Tensor, super(RoutedLayer, self).forward(x)).reshape(*flat.shape[:2], -1)
        if not self.experts_down.shape[0]:  # only biases differ
            return base
        z = F.linear(flat, self.experts_down)
        z = z * self.spread().to(z.dtype)[:, None]
        up, shape = self.experts_up.t(), (*z.shape[:2], base.shape[-1])
        base, z = base.expand(shape).contiguous().view(-1, shape[-1]), z.reshape(-1, z.shape[-1])
        # Without autograd (and autocast, which does not reach in-place calls) the sum needs no memory of its own.
        if torch.is_grad_enabled() or not base.dtype == z.dtype == up.dtype:
            return torch.addmm(base, z, up).reshape(shape)
        return base.addmm_(z, up).reshape(shape)

    def _materialised(self, flat: Tensor) -> Tensor:
        weight = cast(Tensor, self.weight)
        spread = self.spread().to(self.experts_up.dtype)
        merged = torch.matmul(self.experts_up * spread[:, None], self.experts_down)
        merged = merged + (weight.t() if self.transposed else weight)
        if merged.shape[0] == 1:
            return F.linear(flat, merged[0], cast("Tensor | None", self.bias))
        y = torch.matmul(flat, merged.transpose(1, 2))
        return y if self.bias is None else y + cast(Tensor, self.bias)


class RoutedConv1D(RoutedLinear):
    """`RoutedLinear` for the transposed weight of transformers' Conv1D."""

    transposed = True


class RoutedEmbedding(FactoredLayer):
    """E[ids] + (up[ids] * w) down; a tied output head shares the same factors as a `RoutedLinear`."""

    def routed(self, ids: Tensor) -> Tensor:
        """Ids of shape (count or 1, ...) to vectors of shape (count, ..., width)."""
        base = self.mixture.grouped(cast(Tensor, super(RoutedLayer, self).forward(ids)))
        picked = self.mixture.grouped(F.embedding(ids, self.experts_up))
        spread = self.spread().to(picked.dtype)
        delta = (picked * spread.reshape(-1, *[1] * ids.dim(), spread.shape[1])) @ self.experts_down
        return (base + delta).flatten(0, 1)


class RoutedNorm(RoutedLayer):
    """Layer or RMS norm with per-input scale and shift: normalise(x) * (gamma + w delta_gamma) + (beta + w delta_beta).

    Attributes:
        experts_weight: shape (experts, width), or None.
        experts_bias: shape (experts, width), or None.
    """

    experts_epsilon: float
    experts_weight: nn.Parameter | None
    experts_bias: nn.Parameter | None

    def attach(self, epsilon: float, weight: Tensor | None, bias: Tensor | None) -> None:
        """Keep the differences of scale and shift, each of shape (experts, width)."""
        self.experts_epsilon = epsilon
        self.experts_weight = None if weight is None else nn.Parameter(weight)
        self.experts_bias = None if bias is None else nn.Parameter(bias)

    def routed(self, x: Tensor) -> Tensor:
        """Activations of shape (count or 1, ..., width)."""
        gamma, beta = cast(Tensor, self.weight), cast("Tensor | None", getattr(self, "bias", None))
        gamma = self._mixed(gamma, self.experts_weight, x.dim())
        if not isinstance(self, nn.LayerNorm):
            wide = x if x.dtype == torch.float64 else x.float()
            scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.experts_epsilon)
            return (self.mixture.grouped(scaled.to(x.dtype)) * gamma).flatten(0, 1)
        y = self.mixture.grouped(F.layer_norm(x, self.normalized_shape, eps=self.experts_epsilon))
        if beta is None:
            return (y * gamma).flatten(0, 1)
        return torch.addcmul(self._mixed(beta, self.experts_bias, x.dim()), y, gamma).flatten(0, 1)

    def _mixed(self, stock: Tensor, differences: Tensor | None, dims: int) -> Tensor:
        if differences is None:
            return stock
        mixed = stock + self.mixture.row().to(differences.dtype) @ differences
        return mixed.reshape(-1, *[1] * (dims - 1), mixed.shape[-1])


def with_statistics(model: nn.Module) -> list[nn.Module]:
    """The modules that keep running means or variances of their own: batch norms, and timm's EvoNorms."""
    return [
        module
        for module in model.modules()
        if any(module._buffers.get(name) is not None for name in ("running_mean", "running_var"))
    ]


class RoutedAny(RoutedLayer):
    """The fallback, exact for any module: its parameters are merged for each row and its inputs taken row by row.

    It serves fused three-dimensional experts, torch's attention, attention with relative positions and modules of a
    user's own. Without a layout, the first tensor argument has the inputs along its first
    dimension; further ones too, or a first dimension of 1, or they are vectors (positions), which all rows share.

    Attributes:
        experts_dense: parameter name -> differences (experts, *shape), of kernels (experts, channels, the rest).
        experts_ups: parameter name -> left factors (experts, ..., m, r).
        experts_downs: parameter name -> right factors (experts, ..., r, n); the product, in the parameter's shape, is
            the difference.
    """

    def attach(self, dense: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Keep the differences of each parameter (dots in names become slashes)."""
        # Torch takes five dimensions for a video, which channels_last does not know.
        self.experts_dense = _parameters({name: d.flatten(2) if d.dim() == 5 else d for name, d in dense.items()})
        self.experts_ups = _parameters({name: up for name, (up, _) in factors.items()})
        self.experts_downs = _parameters({name: down for name, (_, down) in factors.items()})
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """The mode, but for running statistics, which are used and not moved, as in `RoutedBatchNorm`."""
        super().train(mode)
        for module in with_statistics(self):
            module.training = False
        return self

    def differences(self, row: Tensor) -> dict[str, Tensor]:
        """Parameter name -> sum over experts of row[t] times its difference, flat in the parameter's order."""
        return {name: value[0] for name, value in self.all_differences(row[None]).items()}

    def all_differences(self, rows: Tensor) -> dict[str, Tensor]:
        """The same for several rows of weights, each difference with the rows along a further first dimension."""
        mixed = {}
        for name, delta in self.experts_dense.items():
            mixed[name] = torch.tensordot(rows.to(delta), delta, dims=1)
        for name, up in self.experts_ups.items():
            mixed[name] = torch.einsum("bt,t...mr,t...rn->b...mn", rows.to(up), up, self.experts_downs[name])
        return {name.replace("/", "."): value for name, value in mixed.items()}

    def forward(self, *args: object, **kwargs: object) -> object:
        """Stock forward without a mixture."""
        if self.mixture.weights is None:
            return super(RoutedLayer, self).forward(*args, **kwargs)
        return self.routed(*args, **kwargs)

    def routed(self, *args: object, **kwargs: object) -> object:
        """Any call whose tensors can be taken apart by inputs.

        Raises:
            ValueError: when they cannot.
        """
        weights = self.mixture.row()
        if weights.shape[0] == 1:
            return self._call(weights, args, kwargs)
        found, spec = tree_flatten_with_path((args, kwargs))
        dims = {keystr(path): self._dimension(keystr(path), leaf, found) for path, leaf in found}
        outputs = []
        for i, row in enumerate(weights[:, None]):

            def mine(path: KeyPath, leaf: Any, i: int = i) -> object:
                along = dims[keystr(path)]
                if along is None:
                    return leaf
                each = self.mixture.share(leaf.shape[along])
                return leaf.narrow(along, i * each, each)

            part = tree_unflatten([mine(path, leaf) for path, leaf in found], spec)
            outputs.append(self._call(row, *part))
        known = {} if self.layout is None else self.layout.outputs

        def joined(path: KeyPath, *parts: Any) -> object:
            if not isinstance(parts[0], Tensor):
                return parts[0]
            return torch.cat(parts, dim=known.get(keystr(path)) or 0)  # what all share becomes one a row

        return tree_map_with_path(joined, *outputs)

    def _dimension(self, place: str, leaf: object, found: list[tuple[KeyPath, object]]) -> int | None:
        """The dimension of an argument along which the inputs lie."""
        tensors = [t for _, t in found if isinstance(t, Tensor) and t.dim()]
        if "Cache" in type(leaf).__name__ or not tensors:
            raise ValueError(
                f"{type(self).__name__} cannot be routed per input: it takes a cache, or no tensor at all; freeze it "
                "in the experts, give one row of router weights, or set use_cache=False."
            )
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return None
        if self.layout is not None:
            _reached(self, self.layout)
            if place not in self.layout.inputs:
                raise ValueError(
                    f"{type(self).__name__} cannot be routed per input: its argument {place} was never checked; freeze "
                    "it in the experts, or give one row of router weights."
                )
            along = self.layout.inputs[place]
            return None if along is None or leaf.shape[along] == 1 else along
        count = tensors[0].shape[0]
        if leaf.dim() > 1 and leaf.shape[0] not in (1, count):
            raise ValueError(
                f"{type(self).__name__} cannot be routed per input: beside {count} inputs it takes a tensor of first "
                f"dimension {leaf.shape[0]}; freeze it in the experts, or give one row of router weights."
            )
        return 0 if count > 1 and leaf.shape[0] == count and (leaf.dim() > 1 or leaf is tensors[0]) else None

    def _call(self, row: Tensor, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        merged = {}
        for name, difference in self.differences(row[0]).items():
            stock = stored(self, name)
            merged[name] = stock + difference.reshape(stock.shape)
        stock_class = cast("type[nn.Module]", type(self).__bases__[1])
        with self.mixture.use(row):  # routed layers inside this module still see their row
            return replica(self, merged, stock_class).forward(*args, **kwargs)


def replica(module: nn.Module, changed: Mapping[str, Tensor], kind: type[nn.Module]) -> nn.Module:
    """A module like this one, of class `kind`, with some parameters or buffers changed; nothing is copied.

    Parameters swapped in place for the length of a call would be seen by every other thread.
    """
    made = kind.__new__(kind)
    made.__dict__.update(module.__dict__)
    children, inner = dict(module._modules), {}  # type: ignore[var-annotated]
    for place in ("_parameters", "_buffers"):
        own = dict(getattr(module, place))
        made.__dict__[place] = {k: changed.get(k, v) for k, v in own.items()}
    for name, value in changed.items():
        child, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(child, {})[rest] = value
    for child, values in inner.items():
        part = cast(nn.Module, children[child])
        children[child] = replica(part, values, type(part))
    made.__dict__["_modules"] = children
    return made


def stored(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its dotted name."""
    holder, _, leaf = name.rpartition(".")
    return cast(Tensor, getattr(module.get_submodule(holder), leaf))


def _parameters(tensors: Mapping[str, Tensor]) -> nn.ParameterDict:
    return nn.ParameterDict({name.replace(".", "/"): nn.Parameter(value) for name, value in tensors.items()})


@cache
def routed_class(kind: type[RoutedLayer], stock: type[nn.Module]) -> type[RoutedLayer]:
    """The class of a stock module's routed form."""
    return type(f"Routed{stock.__name__}", (kind, stock), {})


def _blank(kind: type[RoutedLayer], stock: type[nn.Module]) -> RoutedLayer:
    made = routed_class(kind, stock)  # type: ignore[arg-type]  # a class has a hash
    return made.__new__(made)
