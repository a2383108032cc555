"""A device that is only pretended: tensors on it are the CPU's, but none of them meets one of another device."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CUDA = torch.device("cuda", 0)


class Elsewhere(torch.Tensor):
    """A tensor that says it is on the first CUDA device."""

    @property
    def device(self):
        return CUDA

    def numpy(self, *_, **__):
        raise TypeError("a tensor of another device has no numpy array")


class PretendedCuda(TorchFunctionMode):
    """Runs everything on the CPU, and refuses what a real device would refuse.

    Attributes:
        count: How many operations were done on the pretended device.
    """

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat, shape = tree_flatten((args, kwargs))
        tensors = [value for value in flat if isinstance(value, torch.Tensor)]
        there = [value for value in tensors if isinstance(value, Elsewhere)]
        name = getattr(func, "__name__", "")
        moves = name in ("to", "cpu", "cuda", "copy_", "index_put_", "__get__", "__set__", "detach", "generator")
        if there and not moves and any(v.dim() and not isinstance(v, Elsewhere) for v in tensors):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu")
        wanted = [value for value in flat if isinstance(value, torch.device) or value in ("cuda", "cpu")
                  if not isinstance(value, torch.Tensor)]  # fmt: skip
        plain = [
            value.as_subclass(torch.Tensor) if isinstance(value, Elsewhere)
            else torch.device("cpu") if isinstance(value, torch.device)
            else "cpu" if isinstance(value, str) and value == "cuda" else value
            for value in flat
        ]  # fmt: skip
        given, named = tree_unflatten(plain, shape)
        done = func(*given, **named)
        goes = any(torch.device(value).type == "cuda" for value in wanted) if wanted else bool(there)
        if name == "cpu":
            goes = False
        if name == "to" and len(tensors) > 1:  # to the device of another tensor
            goes = isinstance(tensors[1], Elsewhere)
        if not goes:
            return done
        type(self).count += 1
        return tree_map(lambda v: v.as_subclass(Elsewhere) if isinstance(v, torch.Tensor) else v, done)
