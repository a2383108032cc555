"""A base and its experts in files as tensors of blocks, and the merge that writes what it makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from math import prod

import torch
from torch import Tensor

from twinmerge.big.experts import Expert
from twinmerge.big.reading import DTYPES, FLOATS, Files, Place
from twinmerge.big.writing import Journal, Writer
from twinmerge.errors import CheckpointError
from twinmerge.functional.blocks import Block, OutOfCore, Prepare, State, Step, Tensors, depths, merged_blocks
from twinmerge.functional.matrices import mean_step

_COPIED = 2**24  # bytes that are copied at once


class FileTensors(Tensors):
    """One tensor of a base and its experts in files; every block is read, and checked the first time."""

    def __init__(
        self, name: str, place: Place, depth: float, experts: Mapping[str, Expert], files: Files, device: str
    ) -> None:
        kinds = {place.dtype, *(expert.dtype_of(name) for expert in experts.values())}
        dtype = torch.float64 if "F64" in kinds else torch.float32
        super().__init__(name, place.shape, depth, len(experts), dtype)
        self.place, self.held, self.files, self.device = place, experts, files, device
        self._checked: set[int] = set()
        ranks = [expert.rank_of(name) for expert in experts.values()]
        if None not in ranks:
            self.rank = sum(rank or 0 for rank in ranks)

    def rows(self, start: int, stop: int) -> Block:
        """Read the rows of all models."""
        first, count = start * self.columns, (stop - start) * self.columns
        shape = (stop - start, *self.shape[1:]) if len(self.shape) > 1 else self.shape
        base = self.files.read(self.place, first, count).to(self.device, self.dtype).view(-1, self.columns)
        found = {
            task: expert.rows(self.files, self.name, base, first, self.dtype) for task, expert in self.held.items()
        }
        if first not in self._checked:
            for task, values in (("", base), *found.items()):
                _check_finite(values, self.name, f"expert '{task}'" if task else "the base")
            self._checked.add(first)
        return Block(base.view(shape), [values.reshape(shape) for values in found.values()], first)

    def slab(self, start: int, stop: int) -> Block:
        """Read the columns of all models, row by row."""
        base = self.files.read_columns(self.place, start, stop).to(self.device, self.dtype)
        found = {
            task: expert.slab(self.files, self.name, base, start, self.dtype) for task, expert in self.held.items()
        }
        return Block(base, list(found.values()), start)

    def only(self, index: int) -> FileTensors:
        """Of one expert; what was checked stays so."""
        task = list(self.held)[index]
        made = FileTensors(self.name, self.place, self.depth, {task: self.held[task]}, self.files, self.device)
        made.dtype, made._checked = self.dtype, self._checked
        return made


def _check_finite(values: Tensor, name: str, owner: str) -> None:
    if not _is_finite(values):
        raise CheckpointError(
            f"the tensor '{name}' of {owner} contains NaN or infinite values; only finite weights can be merged."
        )


def _is_finite(values: Tensor) -> bool:
    # The sum costs a fraction of looking at each value, and is finite only where they are.
    wide = values.float() if values.dtype == torch.float16 else values
    return bool(wide.sum().isfinite()) or bool(values.isfinite().all())


class FileModel(OutOfCore):
    """A base in files whose merge with its experts goes into files, tensor by tensor.

    Args:
        places: Of the base's tensors, in the order in which they are written.
        merged: Names of those that are merged; the others are copied.
        experts: By name.
        files: What reads.
        writer: What writes; None where tensors are only read.
        journal: What is done; tensors in it are passed over.
        device: Where a block is worked on.
    """

    def __init__(
        self,
        places: Mapping[str, Place],
        merged: Sequence[str],
        experts: Mapping[str, Expert],
        files: Files,
        writer: Writer,
        journal: Journal,
        device: str = "cpu",
    ) -> None:
        self.places, self.names, self.held = places, frozenset(merged), experts
        self.files, self.writer, self.journal, self.device = files, writer, journal, device
        self.states: list[State] = [_Elsewhere(places) for _ in experts]
        self._depths = depths(places)

    def __getitem__(self, name: str) -> Tensor:
        """Refuse: a method that takes whole tensors of a model out of a state cannot be run out of core."""
        return _Elsewhere(self.places)[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the tensors."""
        return iter(self.places)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self.places)

    def tensors(self, name: str) -> FileTensors:
        """One tensor of all models."""
        return FileTensors(name, self.places[name], self._depths[name], self.held, self.files, self.device)

    def merge(self, experts: Sequence[State], prepare: Prepare) -> dict[str, Tensor]:
        """Merge what the journal does not have; what is not merged is copied."""
        rule = prepare([self.tensors(name) for name in self.places if name in self.names and not is_statistic(name)])
        order = [name for name in self.places if f"tensor {name}" not in self.journal.done]
        for name, following in zip_longest(order, order[1:], fillvalue=""):
            if following:
                self._expect(following)
            if name in self.names:
                self._write(name, merged_blocks(self.tensors(name), _mean if is_statistic(name) else rule))
            else:
                self._write(name, self._copied(name))
            self.journal.note(f"tensor {name}")
        return {}

    def _write(self, name: str, blocks: Iterable[Tensor]) -> None:
        """Write a tensor in the number format that its header names."""
        kind, at = self.writer.places[name].dtype, 0
        for block in blocks:
            rounded = block.to(DTYPES[kind])
            if kind in FLOATS and not _is_finite(rounded):
                raise CheckpointError(
                    f"the merged tensor '{name}' has NaN or infinite values in {kind}; give smaller options, or a "
                    "wider number format by dtype."
                )
            self.writer.write(name, at, rounded)
            at += block.numel()

    def _copied(self, name: str) -> Iterator[Tensor]:
        """The base's values of a tensor that is not merged; experts have no other ones where they are no weights."""
        place = self.places[name]
        step, total = max(1, _COPIED // DTYPES[place.dtype].itemsize), prod(place.shape)
        for start in range(0, total, step):
            values = self.files.read(place, start, min(step, total - start))
            if place.dtype in FLOATS:
                _check_finite(values, name, "the base")
            elif not name.endswith("num_batches_tracked"):
                self._refuse_changed(name, start, values)
            yield values

    def _refuse_changed(self, name: str, start: int, values: Tensor) -> None:
        for task, expert in self.held.items():
            if not expert.same(self.files, name, start, values):
                raise CheckpointError(
                    f"expert '{task}' changed '{name}', which is no weight and cannot be merged; give it the base's."
                )

    def _expect(self, name: str) -> None:
        self.files.expect(self.places[name])
        if name in self.names:
            for expert in self.held.values():
                expert.expect(self.files, name)


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running statistic of a batch norm, which is averaged whatever the method."""
    return name.endswith((".running_mean", ".running_var"))


def _mean(_: Tensors) -> Step:
    return mean_step(1.0)


class _Elsewhere(Mapping[str, Tensor]):
    """A state whose tensors are in files."""

    def __init__(self, names: Mapping[str, object]) -> None:
        self._names = names

    def __getitem__(self, name: str) -> Tensor:
        raise ValueError(
            f"the method asks for the whole tensor '{name}', so that it cannot merge files block by block: build it on "
            "twinmerge.functional.state.merge_blocks, or merge in memory with twinmerge.merge"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
