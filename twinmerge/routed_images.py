"""Routed layers of image models: convolutions, grouped ones too, batch norms, and layer norms over channels.

Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .routed_layers import FactoredLayer, RoutedAny, RoutedLayer, RoutedNorm, replica

FORWARDS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


class RoutedConv(FactoredLayer):
    """Ungrouped convolution: R-channel convolution with the input factors, scaled per input, then a 1x1 convolution."""

    def routed(self, x: Tensor) -> Tensor:
        """Images of shape (count or 1, channels, ...)."""
        conv, ones = cast(nn.Conv2d, self), [1] * (x.dim() - 2)
        y = cast(Tensor, super(RoutedLayer, self).forward(x))
        if self.experts_down.shape[0]:
            z = _convolved(self, x, self.experts_down.reshape(-1, *conv.weight.shape[1:]), None, 1)
            z = self.mixture.grouped(z) * self.spread().to(z.dtype).reshape(-1, 1, z.shape[1], *ones)
            convolve = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
            y = y + convolve(z.flatten(0, 1), self.experts_up.reshape(*self.experts_up.shape, *ones))
        bias = self.mixed_bias()
        if bias is None:
            return y
        return (self.mixture.grouped(y) + bias.reshape(-1, 1, bias.shape[1], *ones)).flatten(0, 1)


class RoutedGroupedConv(RoutedAny):
    """Grouped or depthwise convolution: the kernels of all rows side by side, as one convolution of rows x groups."""

    def routed(self, *args: object, **kwargs: object) -> object:
        """Images of shape (count or 1, channels, ...)."""
        rows, plain = self.mixture.row(), len(args) == 1 and not kwargs
        along = next(iter(self.layout.inputs.values()), 0) if self.layout is not None else 0
        if rows.shape[0] == 1 or not plain or along:
            return super().routed(*args, **kwargs)
        conv, x = (
            cast(nn.Conv2d, self),
            self.mixture.grouped(cast(Tensor, args[0])),
        )  # (rows or 1, share, channels, ...)
        count, share = rows.shape[0], x.shape[1]
        found = self.all_differences(rows)
        kernel = conv.weight
        if "weight" in found:
            kernel = kernel + found["weight"].reshape(count, *conv.weight.shape)
        kernel = kernel.expand(count, *conv.weight.shape).flatten(0, 1)
        x = x.expand(count, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        y = _convolved(self, x, kernel, None, count * conv.groups)
        y = y.reshape(share, count, -1, *y.shape[2:]).transpose(0, 1)
        if conv.bias is not None:
            bias = conv.bias + found["bias"].reshape(count, -1) if "bias" in found else conv.bias[None]
            y = y + bias.reshape(bias.shape[0], 1, -1, *[1] * (y.dim() - 3))
        return y.flatten(0, 1)


def _convolved(conv: RoutedLayer, x: Tensor, kernel: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """The stock convolution, its padding and strides included, with another kernel and number of groups."""
    made = replica(conv, {"weight": kernel}, cast("type[nn.Module]", type(conv).__bases__[1]))
    made._parameters["bias"] = cast("nn.Parameter | None", bias)
    cast(nn.Conv2d, made).groups = groups
    return cast(Tensor, made.forward(x))


class RoutedBatchNorm(RoutedLayer):
    """Batch norm with per-input statistics, scale and shift, all running statistics mixed as the parameters are.

    The running statistics are always used, in training too, and with the shared expert alone: those of a batch would
    mix its inputs, and statistics that move would leave their differences behind. Modules within it (timm's dropout and
    activation) follow the norm.
    """

    experts_weight: nn.Parameter | None
    experts_bias: nn.Parameter | None
    experts_mean: Tensor | None
    experts_var: Tensor | None

    def attach(self, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None) -> None:
        """Keep the differences of each, of shape (experts, channels)."""
        self.experts_weight = None if weight is None else nn.Parameter(weight)
        self.experts_bias = None if bias is None else nn.Parameter(bias)
        self.register_buffer("experts_mean", mean)
        self.register_buffer("experts_var", var)
        self.training = False

    def train(self, mode: bool = True) -> Self:
        """The mode of the modules within it alone."""
        super().train(mode)
        self.training = False
        return self

    def routed(self, x: Tensor) -> Tensor:
        """Activations of shape (count or 1, channels, ...)."""
        norm = cast(nn.BatchNorm2d, self)

        def mixed(stock: Tensor, differences: Tensor | None) -> Tensor:
            return stock[None] if differences is None else stock + self.mixture.row().to(differences) @ differences

        scale = mixed(cast(Tensor, norm.running_var), self.experts_var).add(norm.eps).rsqrt()
        if norm.affine:
            scale = scale * mixed(norm.weight, self.experts_weight)
        shift = -mixed(cast(Tensor, norm.running_mean), self.experts_mean) * scale
        if norm.affine:
            shift = shift + mixed(norm.bias, self.experts_bias)
        shape = (-1, 1, scale.shape[-1], *[1] * (x.dim() - 2))
        y = (self.mixture.grouped(x) * scale.reshape(shape) + shift.reshape(shape)).to(x.dtype).flatten(0, 1)
        for part in self.children():
            y = part(y)
        return y


class RoutedChannelNorm(RoutedNorm):
    """A layer norm over the channels of images, which lie along the second dimension."""

    def routed(self, x: Tensor) -> Tensor:
        """Activations of shape (count or 1, channels, ...)."""
        return super().routed(x.movedim(1, -1)).movedim(-1, 1)


def image_kind(module: nn.Module) -> type[RoutedLayer] | None:
    """The routed class of a convolution, batch norm or layer norm, found by trial where its forward is its own."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if type(module).forward not in FORWARDS and not _is_linear(module):
            return None
        return RoutedConv if module.groups == 1 else RoutedGroupedConv
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
        stock = type(module).forward is nn.modules.batchnorm._BatchNorm.forward
        return RoutedBatchNorm if stock or _norm_first(module) else None
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        if type(module).forward is nn.LayerNorm.forward:
            return RoutedNorm
        return next((kind for kind in (RoutedNorm, RoutedChannelNorm) if _normalises(module, kind)), None)
    return None


def _is_linear(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> bool:
    """Whether a convolution with a forward of its own, such as its own padding, may be routed as a plain one.

    It must be linear in its kernel (one that standardises it is not), and take one with another number of outputs (one
    that scales or masks its kernel is made for its own).
    """
    generator = torch.Generator().manual_seed(0)
    sides = [(k - 1) * d + 1 + s for k, d, s in zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)]

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(conv.weight)

    x = drawn(2, conv.in_channels, *sides)
    first, second = drawn(*conv.weight.shape), drawn(*conv.weight.shape)

    def of(kernel: Tensor, given: Tensor = x, groups: int = conv.groups) -> Tensor:
        made = replica(conv, {"weight": kernel}, type(conv))
        made._parameters["bias"] = None
        cast(nn.Conv2d, made).groups = groups
        return cast(Tensor, made.forward(given))

    with torch.no_grad():
        try:
            whole, parts = of(first + second), of(first) + of(second)
            bias = cast(Tensor, functional_call(conv, {"weight": first}, (x,))) - of(first)
            wide = of(torch.cat([first, second]), torch.cat([x, x], 1), 2 * conv.groups)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
    if whole.dim() != x.dim():
        return False
    added = torch.zeros_like(whole) if conv.bias is None else conv.bias.reshape(-1, *[1] * len(sides)).expand_as(whole)
    more = conv.groups > 1 or _takes_more(of, first, second)
    pairs = ((whole, parts), (bias, added), (wide, torch.cat([of(first), of(second)], 1)))
    return more and all(_near(one, other, float(parts.abs().max())) for one, other in pairs)


def _takes_more(of: Callable[[Tensor], Tensor], first: Tensor, second: Tensor) -> bool:
    """Whether an ungrouped convolution takes kernels of another number of outputs, each as by itself."""
    try:
        both = of(torch.cat([first, second]))
        return _near(both, torch.cat([of(first), of(second)], 1), float(both.abs().max()))
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False


def _near(one: Tensor, other: Tensor, scale: float) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-2, atol=1e-3 * scale)


def _norm_first(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    """Whether a batch norm with a forward of its own is one, followed by the modules within it."""
    channels, generator = norm.num_features, torch.Generator().manual_seed(0)
    x = torch.randn((2, channels, 2, 3), generator=generator).to(cast(Tensor, norm.running_mean))
    with torch.no_grad():
        try:
            was, norm.training = norm.training, False
            y = norm(x)
            wanted = F.batch_norm(
                x, cast(Tensor, norm.running_mean), norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
            )
            for part in norm.children():
                wanted = part(wanted)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
        finally:
            norm.training = was
    return isinstance(y, Tensor) and y.shape == x.shape and torch.allclose(y, wanted, rtol=1e-3, atol=1e-4)


def _normalises(norm: nn.LayerNorm, kind: type[RoutedNorm]) -> bool:
    """Whether a layer norm with a forward of its own normalises as this kind does."""
    width, generator = int(norm.normalized_shape[0]), torch.Generator().manual_seed(0)
    channels = kind is RoutedChannelNorm
    shape = (2, width, 2, width + 1) if channels else (2, width + 1, width)
    x = torch.randn(shape, generator=generator).to(norm.weight)
    with torch.no_grad():
        try:
            y = norm(x)
            wanted = F.layer_norm(x.movedim(1, -1) if channels else x, (width,), norm.weight, norm.bias, norm.eps)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
    wanted = wanted.movedim(-1, 1) if channels else wanted
    return isinstance(y, Tensor) and y.shape == x.shape and torch.allclose(y, wanted, rtol=1e-3, atol=1e-4)
