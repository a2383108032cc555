"""Routed layers: each keeps its stock class, parameter names and shared weights, and adds every expert's factors.

A layer given mixture weights w computes what the stock layer would with weights W + sum_t w_t up_t down_t, for the whole
batch at once and a different w per input. This file travels inside a twin folder beside ``modeling_twin.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map
from transformers.pytorch_utils import Conv1D


class Mixture:
    """The router weights of the batch in flight, shared by every routed layer of one model.

    Attributes:
        weights: shape (rows, experts), each row summing to 1; None means the plain shared expert. One row serves every
            input; otherwise row i belongs to input i, or to k consecutive inputs when k rows were made of each (beams).
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

    def rows(self, count: int) -> Tensor:
        """The weights for an input whose first dimension is `count`: shape (1 or count or rows, experts).

        Raises:
            ValueError: when `count` inputs cannot be dealt out to the rows.
        """
        weights = cast(Tensor, self.weights)
        rows = weights.shape[0]
        if rows in (1, count) or count == 1:
            return weights
        if count % rows:
            raise ValueError(
                f"{count} inputs cannot share {rows} rows of router weights; give one row, one per input, or a divisor."
            )
        return weights.repeat_interleave(count // rows, dim=0)


class RoutedLayer(nn.Module):
    """What all routed layers share: the mixture, and the stock forward whenever no mixture is in use."""

    mixture: Mixture

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stock forward without a mixture, routed forward with one."""
        if self.mixture.weights is None:
            return super().forward(*args, **kwargs)
        return self.routed(*args, **kwargs)


class FactoredLayer(RoutedLayer):
    """A layer whose matrix differs per expert by up_t @ down_t; factors of all experts are stacked along the rank.

    Attributes:
        experts_up: shape (m, R), R the sum of the experts' ranks.
        experts_down: shape (R, n).
        experts_owner: shape (R,), the expert each rank belongs to.
        experts_bias: shape (experts, m), or absent.
    """

    experts_up: nn.Parameter
    experts_down: nn.Parameter
    experts_owner: Tensor
    experts_bias: nn.Parameter | None

    def attach(self, ups: Sequence[Tensor], downs: Sequence[Tensor], bias: Tensor | None) -> None:
        """Stack one (up, down) pair per expert, in task order; a pair of rank 0 stands for an expert without difference."""
        owner = [t for t, down in enumerate(downs) for _ in range(down.shape[0])]
        self.experts_up = nn.Parameter(torch.cat(list(ups), dim=1).contiguous())
        self.experts_down = nn.Parameter(torch.cat(list(downs), dim=0).contiguous())
        self.register_buffer("experts_owner", torch.tensor(owner, dtype=torch.long), persistent=False)
        self.experts_bias = None if bias is None else nn.Parameter(bias)

    def spread(self, count: int) -> Tensor:
        """The router weights laid out along the stacked rank: shape (rows, R)."""
        return self.mixture.rows(count)[:, self.experts_owner]


class RoutedLinear(FactoredLayer):
    """y = x W^T + b + ((x down^T) * w) up^T + w delta_b, exact for any mixture and any batch."""

    transposed = False  # Conv1D of GPT-2 keeps its weight as (in, out)

    def routed(self, x: Tensor) -> Tensor:
        """Factored, or materialised per weight vector when its tokens pay for that: tokens > mn / (m + n)."""
        m, n = self.experts_up.shape[0], self.experts_down.shape[1]
        flat = x.reshape(x.shape[0], -1, n)
        spread = self.spread(x.shape[0]).to(x.dtype)
        if spread.shape[0] > flat.shape[0]:  # one input shared by all rows
            flat = flat.expand(spread.shape[0], -1, -1)
        tokens = flat.shape[1] * (flat.shape[0] if spread.shape[0] == 1 else 1)
        if tokens * (m + n) > m * n:
            y = self._materialised(flat, spread)
        else:
            z = F.linear(flat, self.experts_down) * spread[:, None]
            base = cast(Tensor, super(RoutedLayer, self).forward(flat)).reshape(-1, m)
            z = z.reshape(-1, z.shape[-1])
            # In place where autograd allows: the sum then costs no pass over memory of its own.
            up = self.experts_up.t()
            y = (torch.addmm(base, z, up) if base.requires_grad or z.requires_grad else base.addmm_(z, up)).view(
                *flat.shape[:2], m
            )
        if self.experts_bias is not None:
            bias = (self.mixture.rows(x.shape[0]).to(x.dtype) @ self.experts_bias)[:, None]
            y = y + bias if y.requires_grad or bias.requires_grad else y.add_(bias)
        return y.reshape(flat.shape[0], *x.shape[1:-1], m)

    def _materialised(self, flat: Tensor, spread: Tensor) -> Tensor:
        weight = cast(Tensor, self.weight)
        merged = torch.matmul(self.experts_up * spread[:, None], self.experts_down)
        merged = merged + (weight.t() if self.transposed else weight)
        y = F.linear(flat, merged[0]) if merged.shape[0] == 1 else torch.bmm(flat, merged.transpose(1, 2))
        return y if self.bias is None else y + cast(Tensor, self.bias)


class RoutedConv1D(RoutedLinear):
    """`RoutedLinear` for the transposed weight of transformers' Conv1D."""

    transposed = True


class RoutedEmbedding(FactoredLayer):
    """E[ids] + (up[ids] * w) down; a tied output head shares the same factors as a `RoutedLinear`."""

    def routed(self, ids: Tensor) -> Tensor:
        """Ids of shape (rows or 1, ...) to vectors of shape (rows, ..., width)."""
        base = cast(Tensor, super(RoutedLayer, self).forward(ids))
        picked = F.embedding(ids, self.experts_up)
        spread = self.spread(ids.shape[0]).to(base.dtype)
        return base + (picked * spread.reshape(spread.shape[0], *[1] * (ids.dim() - 1), -1)) @ self.experts_down


class RoutedConv(FactoredLayer):
    """Ungrouped convolution: R-channel convolution with the input factors, scaled per input, then a 1x1 convolution."""

    def routed(self, x: Tensor) -> Tensor:
        """Images of shape (rows, channels, ...)."""
        conv = cast(nn.Conv2d, self)
        ones = [1] * (x.dim() - 2)
        down = self.experts_down.reshape(-1, *conv.weight.shape[1:])
        stock = cast(Tensor, super(RoutedLayer, self).forward(x))
        z = conv._conv_forward(x, down, None) * self.spread(x.shape[0]).to(x.dtype).reshape(-1, down.shape[0], *ones)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
        y = stock + convolve(z, self.experts_up.reshape(*self.experts_up.shape, *ones))
        if self.experts_bias is not None:
            bias = self.mixture.rows(x.shape[0]).to(x.dtype) @ self.experts_bias
            y = y + bias.reshape(*bias.shape, *ones)
        return y


class RoutedNorm(RoutedLayer):
    """Layer or RMS norm with per-input scale and shift: normalise(x) * (gamma + w delta_gamma) + (beta + w delta_beta)."""

    experts_weight: nn.Parameter | None
    experts_bias: nn.Parameter | None

    def routed(self, x: Tensor) -> Tensor:
        """Activations of shape (rows, ..., width)."""
        weights = self.mixture.rows(x.shape[0])
        shape = (weights.shape[0], *[1] * (x.dim() - 2), -1)
        gamma = cast(Tensor, self.weight)
        if self.experts_weight is not None:
            gamma = (gamma + weights.to(gamma.dtype) @ self.experts_weight).reshape(shape)
        if isinstance(self, nn.LayerNorm):
            y = F.layer_norm(x, self.normalized_shape, None, None, self.eps)
            beta = cast(Tensor, self.bias)
            if self.experts_bias is not None:
                beta = (beta + weights.to(beta.dtype) @ self.experts_bias).reshape(shape)
            return torch.addcmul(beta, y, gamma) if beta is not None else y * gamma
        scaled = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + rms_epsilon(self))
        return scaled.to(x.dtype) * gamma


class RoutedAny(RoutedLayer):
    """The universal fallback, exact for any module: its parameters are merged for each row and its inputs taken row by row.

    It serves fused three-dimensional experts, grouped convolutions and layers of a user's own; every tensor argument must
    have the inputs along its first dimension.
    """

    def attach(self, deltas: Mapping[str, Tensor]) -> None:
        """Keep each parameter's differences, stacked as (experts, *shape)."""
        self.experts_delta = nn.ParameterDict({name: nn.Parameter(delta) for name, delta in deltas.items()})

    def routed(self, *args: Any, **kwargs: Any) -> Tensor:
        """Any batch-first module call that returns one tensor."""
        count = next(a.shape[0] for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        weights = cast(Tensor, self.mixture.weights)
        if count != 1 and count % weights.shape[0]:
            weights = self.mixture.rows(count)  # raises, with the reason
        each, parameters = max(count // weights.shape[0], 1), dict(self.named_parameters(recurse=False))
        outputs = []
        with self.mixture.use(None):
            for i, row in enumerate(weights):
                part = slice(i * each, (i + 1) * each) if count > 1 else slice(None)
                args_i, kwargs_i = tree_map(lambda a, s=part: a[s] if isinstance(a, Tensor) else a, (args, kwargs))
                merged = {
                    name: parameters[name] + torch.tensordot(row.to(delta.dtype), delta, dims=1)
                    for name, delta in self.experts_delta.items()
                }
                outputs.append(functional_call(self, merged, args_i, kwargs_i))
        return torch.cat(outputs)


def rms_epsilon(module: nn.Module) -> float | None:
    """The epsilon of an RMS norm that computes x / rms(x) * weight, or None when the module is something else."""
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    named = dict(module.named_parameters())
    if not isinstance(epsilon, float) or set(named) != {"weight"} or named["weight"].dim() != 1:
        return None
    return epsilon if "RMSNorm" in type(module).__name__ and "Gemma" not in type(module).__name__ else None


def layer_kind(module: nn.Module) -> type[RoutedLayer]:
    """The routed class that serves a stock module."""
    if isinstance(module, nn.Linear):
        return RoutedLinear
    if isinstance(module, Conv1D):
        return RoutedConv1D
    if isinstance(module, nn.Embedding) and module.max_norm is None:
        return RoutedEmbedding
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1:
        return RoutedConv
    if isinstance(module, nn.LayerNorm) or rms_epsilon(module) is not None:
        return RoutedNorm
    return RoutedAny


def route_layer(module: nn.Module, mixture: Mixture) -> Any:
    """Turn a stock module into its routed kind, in place: same parameters, same names, still an instance of its class."""
    kind, stock = layer_kind(module), type(module)
    module.__class__ = type(f"Routed{stock.__name__}", (kind, stock), {})
    module.mixture = mixture  # type: ignore[assignment]
    return module


def attach_layer(module: nn.Module, mixture: Mixture, differences: Mapping[str, list[Any]]) -> None:
    """Give one module its experts' differences: leaf name -> one (up, down), difference or None per expert."""
    shapes = {leaf: cast(Tensor, getattr(module, leaf)) for leaf in differences}
    stacks = {leaf: [_dense(d, shapes[leaf]) for d in ds] for leaf, ds in differences.items() if leaf != "weight"}
    routed = route_layer(module, mixture)
    if isinstance(routed, FactoredLayer):
        pairs = [_factors(d, shapes.get("weight", routed.weight), routed) for d in differences.get("weight", [])]
        if not pairs:
            pairs = [_factors(None, routed.weight, routed)] * len(next(iter(differences.values())))
        bias = torch.stack(stacks["bias"]) if "bias" in stacks else None
        routed.attach([up for up, _ in pairs], [down for _, down in pairs], bias)
        return
    if "weight" in differences:
        stacks["weight"] = [_dense(d, shapes["weight"]) for d in differences["weight"]]
    deltas = {leaf: torch.stack(stack) for leaf, stack in stacks.items()}
    if isinstance(routed, RoutedNorm):
        routed.experts_weight = nn.Parameter(deltas["weight"]) if "weight" in deltas else None
        routed.experts_bias = nn.Parameter(deltas["bias"]) if "bias" in deltas else None
    else:
        routed.attach(deltas)


def _dense(difference: Any, like: Tensor) -> Tensor:
    if difference is None:
        return torch.zeros_like(like, requires_grad=False)
    dense = torch.matmul(*difference) if isinstance(difference, tuple) else difference
    return dense.reshape(like.shape).to(like)


def _factors(difference: Any, weight: Tensor, layer: FactoredLayer) -> tuple[Tensor, Tensor]:
    transposed = isinstance(layer, RoutedConv1D)
    m, n = (weight.shape[1], weight.shape[0]) if transposed else (weight.shape[0], weight[0].numel())
    if difference is None:
        return weight.new_zeros(m, 0), weight.new_zeros(0, n)
    if not isinstance(difference, tuple):
        dense = difference.t() if transposed else difference.reshape(m, n)
        eye = torch.eye(min(m, n))  # a dense difference is its own factor beside an identity
        difference = (eye, dense) if m < n else (dense, eye)
    return difference[0].to(weight).detach(), difference[1].to(weight).detach()
