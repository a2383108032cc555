"""Which weights are in use, and along which dimension of a tensor the inputs of the batch lie.

Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Use:
    weights: Tensor | None
    kept: dict[Any, Any] = field(default_factory=dict)  # what layers computed from the weights, ended with their use


Output = TypeVar("Output")
_NONE: Mapping[int, _Use] = MappingProxyType({})
# In the context and not on the model, so that threads and tasks that share a twin each have their own mixture.
_IN_USE: ContextVar[Mapping[int, _Use]] = ContextVar("twin mixtures in use", default=_NONE)


Difference = Tensor | tuple[Tensor, Tensor]  # of a parameter to the shared expert: whole, or as factors (up, down)


class Mixture:
    """The router weights of the batch in flight in this thread or task, shared by every routed layer of one model.

    Attributes:
        weights: shape (rows, experts), each row summing to 1; None means the plain shared expert. One row serves every
            input; otherwise row i belongs to input i, or to k consecutive inputs when k were made of each (beams,
            tokens or windows flattened into the batch).
    """

    @property
    def weights(self) -> Tensor | None:
        """The weights in use, None outside `use`."""
        use = _IN_USE.get().get(id(self))
        return None if use is None else use.weights

    @property
    def kept(self) -> dict[Any, Any]:
        """What layers keep for each other while the weights in use last; it may hold nothing that wants a gradient."""
        return _IN_USE.get()[id(self)].kept

    def found(self, key: object) -> Any:
        """What is kept under a key; None where nothing is, or no weights are in use."""
        use = _IN_USE.get().get(id(self))
        return None if use is None else use.kept.get(key)

    @contextmanager
    def use(self, weights: Tensor | None) -> Iterator[None]:
        """Run the enclosed forwards with these weights (None: with the shared expert alone)."""
        previous = _IN_USE.get()
        _IN_USE.set({**previous, id(self): _Use(weights)})
        try:
            yield
        finally:
            _IN_USE.set(previous)

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


@dataclass(frozen=True)
class Layout:
    """Where the inputs of a batch lie in the tensors that a module takes and returns.

    Attributes:
        inputs: place of a tensor among the arguments -> the dimension along which inputs follow each other, or None
            for a tensor that all of them share.
        outputs: the same for what the module returns.
        single: the shared tensors among both that have a first dimension of 1, so that each row may get its own.
    """

    inputs: Mapping[str, int | None]
    outputs: Mapping[str, int | None]
    single: frozenset[str] = frozenset()

    def joined(self, other: Layout) -> Layout | None:
        """Both together; None when they disagree about a tensor."""
        for mine, theirs in ((self.inputs, other.inputs), (self.outputs, other.outputs)):
            if any(theirs[key] != dim for key, dim in mine.items() if key in theirs):
                return None
        single = {
            p
            for p in self.single | other.single
            if all(p in one.single or p not in one.places for one in (self, other))
        }
        return Layout({**self.inputs, **other.inputs}, {**self.outputs, **other.outputs}, frozenset(single))

    @property
    def places(self) -> set[str]:
        """All tensors, as `single` names them."""
        return {*(f"in {place}" for place in self.inputs), *(f"out {place}" for place in self.outputs)}


UNTRACED = Layout({}, {})  # of a routed module that no traced forward has reached


def batch_dimension(whole: Tensor, parts: list[Tensor]) -> int | None:
    """The dimension along which a batch's tensor is made of those of its inputs run alone; None: all share it.

    Raises:
        ValueError: when it is neither.
    """
    if whole.shape == parts[0].shape:
        if all(_same(whole, part) for part in parts):
            return None
        raise ValueError("it depends on all inputs together")
    grown = [d for d, (a, b) in enumerate(zip(whole.shape, parts[0].shape, strict=True)) if a != b]
    if len(grown) == 1 and all(p.shape == parts[0].shape for p in parts):
        joined = torch.cat(parts, dim=grown[0])
        if joined.shape == whole.shape and _same(whole, joined):
            return grown[0]
    raise ValueError("the inputs do not lie one after another in it")


def _same(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    accepted = 1e-3 if a.dtype in (torch.float32, torch.float64) else 2e-2
    a, b = a.detach().float(), b.detach().float()
    finite = a.isfinite() & b.isfinite()
    scale = float(a[finite].abs().max()) if bool(finite.any()) else 0.0
    near = (a - b).abs()[finite] <= accepted * scale + 1e-6
    return torch.equal(a.isfinite(), b.isfinite()) and bool(near.all())


def caches_in(*kwargs: Mapping[Any, object]) -> list[Any]:
    """The caches among arguments or outputs."""
    return [v for values in kwargs for v in values.values() if "Cache" in type(v).__name__]


def cached_length(kwargs: Mapping[str, object]) -> int:
    """Tokens in the caches among the arguments (1 for a cache that does not count them)."""
    caches = caches_in(kwargs)
    return max((int(c.get_seq_length()) if hasattr(c, "get_seq_length") else 1 for c in caches), default=0)


def remember(output: Output, kwargs: Mapping[str, object], weights: Tensor) -> Output:
    """Write the mixture on the caches that a forward filled, so that a later turn can hold it."""
    parts = output if isinstance(output, Mapping) else dict(enumerate(output)) if isinstance(output, tuple) else {}
    for cache in caches_in(kwargs, parts):
        cache.twin_weights = weights
    return output
