"""Linear layers by oneDNN, for a model that only answers on a CPU, where that is faster than PyTorch's own product.

PyTorch multiplies in float32 by Intel's MKL, which on processors of other makers takes up to twice the time of oneDNN.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

LIMIT = 2**30  # bytes of all copies: beyond, the memory is worth more than the time
GAIN = 0.8  # of PyTorch's time, at most


class Packed(TorchFunctionMode):
    """While it is entered, the linear layers of a model are multiplied by oneDNN from copies of their weights.

    Nothing is copied, and nothing changes, for a model of more than `LIMIT` bytes, on another device or in another
    type than float32, and where a trial shows no gain.

    Args:
        model: whose weights stay as they are from here on.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
        self.copies: dict[int, Tensor] = {}
        if weights and _fit(weights) and _faster(max(weights, key=Tensor.numel).detach()):
            self.copies = {id(weight): weight.detach().to_mkldnn() for weight in weights}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """A product with one of the copies, or what would have been done anyway."""
        if func is linear and len(args) > 1 and (copy := self.copies.get(id(args[1]))) is not None:
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            return _product(args[0], copy, bias)
        return func(*args, **(kwargs or {}))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = linear(x.to_mkldnn(), weight).to_dense()
    return out if bias is None else out.add_(bias)


def _fit(weights: Iterable[Tensor]) -> bool:
    known = {id(weight): weight for weight in weights}.values()
    right = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in known)
    return right and torch._C._has_mkldnn and sum(weight.nbytes for weight in known) <= LIMIT


def _faster(weight: Tensor) -> bool:
    """Whether the product of 128 tokens takes less time, the best of five each."""
    x, copy = torch.randn(128, weight.shape[1]), weight.to_mkldnn()
    times: dict[int, float] = {}
    with torch.inference_mode():
        for other in (weight, copy) * 5:
            start = time.perf_counter()
            linear(x, weight) if other is weight else _product(x, copy)
            times[id(other)] = min(times.get(id(other), float("inf")), time.perf_counter() - start)
    return times[id(copy)] <= GAIN * times[id(weight)]
