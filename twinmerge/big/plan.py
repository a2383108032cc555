"""What a merge of files will take, from headers alone: bytes, memory and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from twinmerge.headers import size_of

BLOCK = 2**18  # values of a block, as in twinmerge.functional.blocks; this module is read without torch
Entry = tuple[str, tuple[int, ...]]

# What a method holds of one tensor beside its blocks: Gram matrices of the shorter side, in float64; or the whole
# tensor of base and experts, and as much again for its factors.
GRAM = frozenset(("iso_c", "knots", "wudi", "regmean"))
WHOLE = frozenset(("iso_cts", "tsv_m"))
# Passes over the checkpoints, the last of which writes; nanoseconds a value and expert, on one core.
PASSES: Mapping[str, int] = {"ties": 3, "dare_ties": 3, "della": 1, "breadcrumbs": 3, "sce": 4, "pcb": 4}
COST: Mapping[str, float] = {"average": 1.0, "linear": 1.0, "task_arithmetic": 1.0, "ties": 8.0, "dare": 8.0}
READ = 1e9  # bytes a second that are read and written where the disk is an ordinary one
FLOOR = 400e6  # bytes beside the tensors: Python's own growth, buffers and counters


@dataclass(frozen=True)
class Plan:
    """What a merge takes.

    Attributes:
        tensors: How many tensors are written.
        values: Numbers in them.
        read: Bytes read in each pass.
        passes: How many passes there are.
        written: Bytes written.
        peak: Bytes of memory beside what importing takes, at most.
        seconds: About how long it takes on one core.
    """

    tensors: int
    values: int
    read: int
    passes: int
    written: int
    peak: int
    seconds: float

    def lines(self) -> list[str]:
        """The plan in words."""
        return [
            f"{self.tensors} tensors of {self.values / 1e9:.3g} billion values",
            f"reads {self.read / 1e9:.3g} GB in {self.passes} {'pass' if self.passes == 1 else 'passes'}, writes "
            f"{self.written / 1e9:.3g} GB",
            f"memory: at most {self.peak / 1e9:.2g} GB beside what importing takes",
            f"time: about {_duration(self.seconds)} on one core and an ordinary disk",
        ]


def plan_of(tensors: Mapping[str, Entry], method: str, experts: int, read: int, written: int, *, rank: int = 0) -> Plan:
    """Plan a merge.

    Args:
        tensors: Of the base, by name: number format and shape.
        method: Of the merge.
        experts: How many.
        read: Bytes of base and experts.
        written: Bytes of all that is made.
        rank: Of factors that are made of every matrix, 0 where none are.

    Returns:
        The plan.
    """
    values = sum(prod(shape) for _, shape in tensors.values())
    passes = PASSES.get(method, 2 if method in GRAM else 1)
    seconds = (read * passes + written) / READ + values * experts * COST.get(method, 6.0) * 1e-9
    if rank:
        seconds += values * experts * (2 + rank) * 2e-9
    return Plan(
        len(tensors),
        values,
        read,
        passes + bool(rank),
        written,
        max((_peak(entry, method, experts, rank) for entry in tensors.values()), default=0),
        seconds,
    )


def bound(tensors: Mapping[str, Entry]) -> int:
    """What a merge block by block keeps to: 2.5 times the largest tensor and 400 MB, beside what importing takes."""
    return int(2.5 * max(map(size_of, tensors.values())) + FLOOR)


def _peak(entry: Entry, method: str, experts: int, rank: int) -> int:
    count, shape = prod(entry[1]), entry[1]
    row = prod(shape[1:]) if len(shape) > 1 else count
    block = 4 * min(count, max(BLOCK, row)) * (3 * experts + 6)
    if len(shape) < 2:
        return int(block + FLOOR / 4)
    short = min(shape[0], row)
    if method in WHOLE:
        block += 4 * count * (2 * experts + 4)
    elif method in GRAM:
        block += 8 * short * short * (experts + 4)
    factors = 4 * count + 4 * (shape[0] + row) * 8 * (rank + 8) if rank else 0
    return int(max(block, factors) + FLOOR / 4)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} minutes"
        if seconds < 7200
        else (f"{seconds / 3600:.1f} hours")
    )
