"""Routed layers: each keeps its stock class, parameter names and shared weights, and adds every expert's factors.

A layer given mixture weights w computes what the stock layer would with weights W + sum_t w_t up_t down_t, for the
whole batch at once and a different w per input. Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

# What attach adds to a module; everything else is the stock module's own.
ADDED = frozenset(
    {"experts_up", "experts_down", "experts_owner", "experts_bias", "experts_weight", "experts_epsilon"}
    | {"experts_dense", "experts_ups", "experts_downs", "experts_plain", "mixture"}
)


class Mixture:
    """The router weights of the batch in flight, shared by every routed layer of one model.

    Attributes:
        weights: shape (rows, experts), each row summing to 1; None means the plain shared expert. One row serves every
            input; otherwise row i belongs to input i, or to k consecutive inputs when k were made of each (beams,
            tokens or windows flattened into the batch).
    """

    def __init__(self) -> None:
        self.weights: Tensor | None = None

    @contextmanager
    def use(self, weights: Tensor | None) -> Iterator[None]:
        """Run the enclosed forwards with these weights (None: with the shared expert alone)."""
        previous, self.weights = self.weights, weights
        try:
            yield
        finally:
            self.weights = previous

    def row(self) -> Tensor:
        """The weights in use, shape (rows, experts)."""
        return cast(Tensor, self.weights)

    def share(self, count: int) -> int:
        """How many of `count` inputs each row serves.

        Raises:
            ValueError: when the inputs cannot be dealt out to the rows.
        """
        rows = self.row().shape[0]
        if count % rows:
            raise ValueError(
                f"{count} inputs cannot share {rows} rows of router weights; give one row, one per input, or a divisor."
            )
        return count // rows

    def grouped(self, x: Tensor) -> Tensor:
        """Inputs (count, ...) as (rows, count / rows, ...); a single input that all rows share as (1, 1, ...)."""
        return x[None] if x.shape[0] == 1 else x.reshape(-1, self.share(x.shape[0]), *x.shape[1:])


class RoutedLayer(nn.Module):
    """What all routed layers share: the mixture, and the stock forward whenever no mixture is in use."""

    mixture: Mixture
    routed: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stock forward without a mixture, routed forward with one."""
        if self.mixture.weights is None:
            return super().forward(*args, **kwargs)
        return self.routed(*args, **kwargs)

    def __reduce__(self) -> Any:  # the class is made at run time, so pickle must be told how
        return _blank, type(self).__bases__, self.__dict__


class FactoredLayer(RoutedLayer):
    """A layer whose matrix differs per expert by up_t @ down_t; factors of all experts are stacked along the rank.

    Attributes:
        experts_up: shape (m, R), R the sum of the experts' ranks.
        experts_down: shape (R, n).
        experts_owner: shape (R,), the expert each rank belongs to.
        experts_bias: shape (experts, m), or None.
    """

    experts_up: nn.Parameter
    experts_down: nn.Parameter
    experts_owner: Tensor
    experts_bias: nn.Parameter | None

    def attach(self, ups: Sequence[Tensor], downs: Sequence[Tensor], bias: Tensor | None) -> None:
        """Stack one (up, down) pair per expert, in task order; a pair of rank 0 stands for an unchanged expert."""
        owner = [t for t, down in enumerate(downs) for _ in range(down.shape[0])]
        self.experts_up = nn.Parameter(torch.cat(list(ups), dim=1).contiguous())
        self.experts_down = nn.Parameter(torch.cat(list(downs), dim=0).contiguous())
        owners = torch.tensor(owner, dtype=torch.long, device=self.experts_up.device)
        self.register_buffer("experts_owner", owners, persistent=False)
        self.experts_bias = None if bias is None else nn.Parameter(bias)

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

    def routed(self, x: Tensor) -> Tensor:
        """Factored, or materialised per weight vector when its tokens pay for that: tokens > mn / (m + n)."""
        m, n = self.experts_up.shape[0], self.experts_down.shape[1]
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


class RoutedConv(FactoredLayer):
    """Ungrouped convolution: R-channel convolution with the input factors, scaled per input, then a 1x1 convolution."""

    def routed(self, x: Tensor) -> Tensor:
        """Images of shape (count or 1, channels, ...)."""
        conv, ones = cast(nn.Conv2d, self), [1] * (x.dim() - 2)
        y = cast(Tensor, super(RoutedLayer, self).forward(x))
        if self.experts_down.shape[0]:
            z = conv._conv_forward(x, self.experts_down.reshape(-1, *conv.weight.shape[1:]), None)
            z = self.mixture.grouped(z) * self.spread().to(z.dtype).reshape(-1, 1, z.shape[1], *ones)
            convolve = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
            y = y + convolve(z.flatten(0, 1), self.experts_up.reshape(*self.experts_up.shape, *ones))
        bias = self.mixed_bias()
        if bias is None:
            return y
        return (self.mixture.grouped(y) + bias.reshape(-1, 1, bias.shape[1], *ones)).flatten(0, 1)


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


class RoutedAny(RoutedLayer):
    """The fallback, exact for any module: its parameters are merged for each row and its inputs taken row by row.

    It serves fused three-dimensional experts, grouped convolutions, torch's attention and modules of a user's own.
    The first tensor argument has the inputs along its first dimension; further ones too, or a first dimension of 1, or
    they are vectors (positions), which all rows share.

    Attributes:
        experts_dense: parameter name -> differences (experts, *shape).
        experts_ups: parameter name -> left factors (experts, ..., m, r).
        experts_downs: parameter name -> right factors (experts, ..., r, n); the product, in the parameter's shape, is
            the difference.
    """

    def attach(self, dense: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Keep the differences of each parameter (dots in names become slashes)."""
        self.experts_dense = _parameters(dense)
        self.experts_ups = _parameters({name: up for name, (up, _) in factors.items()})
        self.experts_downs = _parameters({name: down for name, (_, down) in factors.items()})
        self.experts_plain = False

    def differences(self, row: Tensor) -> dict[str, Tensor]:
        """Parameter name -> sum over experts of row[t] times its difference, flat in the parameter's order."""
        mixed = {}
        for name, delta in self.experts_dense.items():
            mixed[name] = torch.tensordot(row.to(delta), delta, dims=1)
        for name, up in self.experts_ups.items():
            mixed[name] = torch.einsum("t,t...mr,t...rn->...mn", row.to(up), up, self.experts_downs[name])
        return {name.replace("/", "."): value for name, value in mixed.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stock forward without a mixture or inside `routed`."""
        if self.mixture.weights is None or self.experts_plain:
            return super(RoutedLayer, self).forward(*args, **kwargs)
        return self.routed(*args, **kwargs)

    def routed(self, *args: Any, **kwargs: Any) -> Any:
        """Any batch-first call that returns tensors along the batch.

        Raises:
            ValueError: when the arguments cannot be taken apart by rows.
        """
        weights = self.mixture.row()
        if weights.shape[0] == 1:
            return self._call(weights, args, kwargs)
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]
        count = tensors[0].shape[0] if tensors else 0
        odd = {t.shape[0] for t in tensors[1:] if t.dim() > 1} - {1, count}  # vectors beside the inputs are positions
        if odd or not count or any("Cache" in type(leaf).__name__ for leaf in leaves):
            raise ValueError(
                f"{type(self).__name__} cannot be routed per input: beside {count} inputs it takes tensors of first "
                f"dimensions {sorted(odd)} or a cache; freeze it in the experts, or give one row of router weights."
            )
        each, outputs = self.mixture.share(count) if count > 1 else 0, []
        for i, row in enumerate(weights[:, None]):

            def mine(a: Any, part: slice = slice(i * each, (i + 1) * each)) -> Any:
                if not isinstance(a, Tensor) or not a.dim() or a.shape[0] != count or count == 1:
                    return a
                return a[part] if a.dim() > 1 or a is tensors[0] else a

            outputs.append(self._call(row, *tree_map(mine, (args, kwargs))))
        return tree_map(lambda *parts: torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0], *outputs)

    def _call(self, row: Tensor, args: Any, kwargs: Any) -> Any:
        merged = {}
        for name, difference in self.differences(row[0]).items():
            stock = self.get_parameter(name)
            merged[name] = stock + difference.reshape(stock.shape)
        self.experts_plain = True  # routed layers inside this module still see their row
        try:
            with self.mixture.use(row):
                return functional_call(self, merged, args, kwargs)
        finally:
            self.experts_plain = False


def _parameters(tensors: Mapping[str, Tensor]) -> nn.ParameterDict:
    return nn.ParameterDict({name.replace(".", "/"): nn.Parameter(value) for name, value in tensors.items()})


@cache
def routed_class(kind: Any, stock: Any) -> Any:
    """The class of a stock module's routed form."""
    return type(f"Routed{stock.__name__}", (kind, stock), {})


def _blank(kind: Any, stock: Any) -> Any:
    made = routed_class(kind, stock)
    return made.__new__(made)
