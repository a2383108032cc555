"""Merging block by block: one formula for tensors in memory and for checkpoints that are larger than the memory.

A method is a `Rule`: called with one tensor (of the base and of all experts), it gathers what it needs of the whole
tensor in as many passes over its blocks as it likes, and returns the formula of one block. A method that needs
something of the whole model first, such as one threshold, takes that from the model before it returns its rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

State = Mapping[str, Tensor]


class Stored(Protocol):
    """A tensor of which rows are asked for: one in memory, or one in a file."""

    @property
    def shape(self) -> Sequence[int]:
        """Its shape."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Rows of it."""


BLOCK = 2**18  # values of a block: with 1 MiB each in float32, base and experts stay in a core's cache
SLAB = 4  # blocks of a slab, whose rows are read one by one and should not be short


class Block(NamedTuple):
    """Some rows of one tensor.

    Attributes:
        base: Of the base, float32 (float64 where the base or an expert is).
        experts: Of every expert, in order; same shape and type.
        start: Place of the first value in the flattened tensor.
    """

    base: Tensor
    experts: Sequence[Tensor]
    start: int

    @property
    def vectors(self) -> list[Tensor]:
        """The task vectors, expert minus base."""
        return [expert - self.base for expert in self.experts]


class Tensors(ABC):
    """One tensor of the base and of every expert; each iteration reads its blocks anew, in order.

    Attributes:
        name: Of the tensor.
        shape: Its shape.
        depth: Place of its layer, 0 for the first to 1 for the last; 0 where it belongs to none.
        experts: How many there are.
        dtype: Of the work on it: float32, or float64 where the base or an expert is.
        rank: Of the task matrices side by side, at most, where their factors say it; None where it is not known.
    """

    def __init__(self, name: str, shape: Sequence[int], depth: float, experts: int, dtype: torch.dtype) -> None:
        self.name, self.shape, self.depth, self.experts, self.dtype = name, tuple(shape), depth, experts, dtype
        self.rank: int | None = None

    @abstractmethod
    def rows(self, start: int, stop: int) -> Block:
        """The block from one row to another; a row is everything behind the first dimension."""

    @abstractmethod
    def slab(self, start: int, stop: int) -> Block:
        """The block from one column to another, of all rows, shape (rows, stop - start); its place is the column."""

    @abstractmethod
    def only(self, index: int) -> Tensors:
        """The same of one expert alone."""

    @property
    def numel(self) -> int:
        """How many values it has."""
        return prod(self.shape)

    @property
    def columns(self) -> int:
        """Values of a row; a vector is one row."""
        return max(1, self.numel if len(self.shape) < 2 else prod(self.shape[1:]))

    def __iter__(self) -> Iterator[Block]:
        """Blocks of whole rows: a row, or as many as fit into `BLOCK` values."""
        count, height = self.numel // self.columns, max(1, BLOCK // self.columns)
        for start in range(0, count, height):
            yield self.rows(start, min(count, start + height))

    def slabs(self) -> Iterator[Block]:
        """Blocks of whole columns, for matrices that are wider than they are high."""
        width = max(1, SLAB * BLOCK // self.shape[0])
        for start in range(0, self.columns, width):
            yield self.slab(start, min(self.columns, start + width))

    def whole(self) -> Block:
        """The tensor as one block."""
        return self.rows(0, self.numel // self.columns)


Step = Callable[[Block], Tensor]  # one block of the merged tensor
Rule = Callable[[Tensors], Step]
Prepare = Callable[[Iterable[Tensors]], Rule]


class OutOfCore(Mapping[str, Tensor]):
    """A base whose weights, and those of its experts, are in files: a merge reads and writes them block by block."""

    @abstractmethod
    def merge(self, experts: Sequence[State], prepare: Prepare) -> dict[str, Tensor]:
        """Merge into files; the result in memory is empty."""


class _InMemory(Tensors):
    def __init__(self, name: str, base: Tensor, experts: Sequence[Tensor], depth: float) -> None:
        super().__init__(name, base.shape, depth, len(experts), working_dtype(base, *experts))
        self.held = [tensor.detach().reshape(-1, self.columns) for tensor in (base, *experts)]

    def rows(self, start: int, stop: int) -> Block:
        shape = (stop - start, *self.shape[1:]) if len(self.shape) > 1 else self.shape
        place = self.held[0].device
        base, *experts = (held[start:stop].to(place, self.dtype).reshape(shape) for held in self.held)
        return Block(base, experts, start * self.columns)

    def slab(self, start: int, stop: int) -> Block:
        place = self.held[0].device
        base, *experts = (held[:, start:stop].to(place, self.dtype) for held in self.held)
        return Block(base, experts, start)

    def only(self, index: int) -> Tensors:
        return _InMemory(self.name, self.held[0].view(self.shape), [self.held[1 + index].view(self.shape)], self.depth)


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Float64 where one of the tensors is, float32 otherwise."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def in_memory(pretrained: State, experts: Sequence[State]) -> list[Tensors]:
    """The floating point tensors of states, as tensors of blocks."""
    depth = depths(pretrained)
    return [
        _InMemory(name, base, [expert[name] for expert in experts], depth[name])
        for name, base in pretrained.items()
        if base.is_floating_point()
    ]


def merged_blocks(tensors: Tensors, rule: Rule) -> Iterator[Tensor]:
    """The merged tensor block by block; a tensor that no expert changed is the base's, and no rule is asked."""
    if all(torch.equal(block.base, expert) for block in tensors for expert in block.experts):
        yield from (block.base for block in tensors)
        return
    step = rule(tensors)
    yield from (step(block) for block in tensors)


def depths(names: Iterable[str]) -> dict[str, float]:
    """Place of every tensor's layer between 0 and 1, by the first number in its name; 0 where it has none.

    >>> depths(["embed.weight", "layers.0.w", "layers.1.w", "layers.2.w"])
    {'embed.weight': 0.0, 'layers.0.w': 0.0, 'layers.1.w': 0.5, 'layers.2.w': 1.0}
    """
    found = {name: _layer(name) for name in names}
    last: dict[str, int] = {}
    for prefix, index in filter(None, found.values()):
        last[prefix] = max(index, last.get(prefix, 0))
    return {name: 0.0 if at is None else at[1] / last[at[0]] if last[at[0]] else 1.0 for name, at in found.items()}


def _layer(name: str) -> tuple[str, int] | None:
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return None if place is None else (".".join(parts[:place]), int(parts[place]))
