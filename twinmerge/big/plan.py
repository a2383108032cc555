"""What a merge of files will take, from headers alone: bytes, memory and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from twinmerge.big.peaks import HELD, factors_of, held_of
from twinmerge.headers import size_of
from twinmerge.methods import FURTHER, OURS

Entry = tuple[str, tuple[int, ...]]

# Passes over the checkpoints, the last of which writes; nanoseconds a value and expert of all passes together. Those of
# linear merges were measured on one core of a virtual machine, on SmolLM2-135M; the others are guesses beside them.
PASSES: Mapping[str, int] = {"ties": 3, "dare_ties": 3, "breadcrumbs": 3, "sce": 4, "pcb": 4, "iso_c": 2, "knots": 3}
COST: Mapping[str, float] = {"average": 12.0, "linear": 12.0, "task_arithmetic": 12.0, "ties": 40.0, "dare": 30.0}
FURTHER_COST = 30.0  # of other methods
MULTIPLIED = 2e10  # products of matrices, floating point operations a second on one core in float64
READ = 1e9  # bytes a second that are read and written where the disk is an ordinary one
FLOOR = 400e6  # bytes beside 2.5 tensors that a merge may take
_COUNTS, _SIZES = ("thousand", "million", "billion"), ("KB", "MB", "GB")
GROWTH = 60e6  # of them, what Python, its allocator and buffers of files take


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
        limit: Bytes of memory that it may take.
        largest: The tensor that takes them.
        method: Of the merge.
    """

    tensors: int
    values: int
    read: int
    passes: int
    written: int
    peak: int
    seconds: float
    limit: int
    largest: str
    method: str

    def lines(self) -> list[str]:
        """The plan in words."""
        return [
            f"{self.tensors} tensors of {_in_words(self.values, _COUNTS)} values",
            f"reads {_in_words(self.read, _SIZES)} in {self.passes} {'pass' if self.passes == 1 else 'passes'}, writes "
            f"{_in_words(self.written, _SIZES)}",
            f"memory: at most {self.peak / 1e9:.2g} GB beside what importing takes; {self.limit / 1e9:.2g} GB allowed",
            f"time: about {_duration(self.seconds)} on one core and an ordinary disk",
            *([] if self.method in (*OURS, *FURTHER) else [f"{self.method}, of another package, may take more"]),
        ]

    def refusal(self) -> str | None:
        """Why the merge is refused: it would take more memory than it may; None where it does not."""
        if self.peak <= self.limit:
            return None
        return (
            f"{self.method} takes up to {self.peak / 1e9:.2f} GB of memory at the tensor '{self.largest}' and "
            f"{self.limit / 1e9:.2f} GB are allowed; allow more, as in memory={-(-self.peak // 10**8) / 10:.1f}GB, or "
            "choose a method that works block by block, such as ties."
        )


def plan_of(
    tensors: Mapping[str, Entry],
    method: str,
    experts: int,
    read: int,
    written: int,
    *,
    rank: int = 0,
    spectra: bool = False,
    lora: Mapping[str, int] | None = None,
    all_lora: bool = False,
    memory: int | None = None,
) -> Plan:
    """Plan a merge.

    Args:
        tensors: Of the base, by name: number format and shape.
        method: Of the merge.
        experts: How many.
        read: Bytes of base and experts.
        written: Bytes of all that is made.
        rank: Of factors that are made of every matrix, 0 where none are.
        spectra: Whether ranks are chosen by singular values.
        lora: Ranks of adapters together, by tensor.
        all_lora: Whether every expert is an adapter.
        memory: Bytes that it may take; what `bound` says by default.

    Returns:
        The plan.
    """
    values, ranks = sum(prod(shape) for _, shape in tensors.values()), lora or {}
    peaks = {
        name: max(
            held_of(shape, method, experts, wide=kind == "F64", lora=ranks.get(name, 0), all_lora=all_lora),
            factors_of(shape, rank, spectrum=spectra) if rank else 0,
        )
        for name, (kind, shape) in tensors.items()
    }
    largest = max(peaks, key=peaks.__getitem__, default="")
    passes = PASSES.get(method, experts + 3 if method in HELD else 1)
    seconds = (read * passes + written) / READ + values * experts * COST.get(method, FURTHER_COST) * 1e-9
    if method in HELD:
        seconds += sum(_multiplied(shape, method, experts) for _, shape in tensors.values()) / MULTIPLIED
    if rank:
        seconds += values * experts * (2 + rank) * 2e-9
    return Plan(
        len(tensors),
        values,
        read,
        passes + bool(rank),
        written,
        int(peaks.get(largest, 0) + GROWTH),
        seconds,
        bound(tensors) if memory is None else memory,
        largest,
        method,
    )


def bound(tensors: Mapping[str, Entry]) -> int:
    """What a merge keeps to unless it is allowed more: 2.5 times the largest tensor and 400 MB, beside imports."""
    return int(2.5 * max(map(size_of, tensors.values()), default=0) + FLOOR)


def _multiplied(shape: tuple[int, ...], method: str, experts: int) -> float:
    """About how many operations the products and eigenproblems of a matrix take."""
    if len(shape) < 2:
        return 0.0
    count = prod(shape)
    side = count // shape[0] if method in ("wudi", "regmean") else min(shape[0], count // shape[0])
    rounds = 1 if method == "iso_c" else experts + 2
    return rounds * (4.0 * count * side + 9.0 * side**3)


def _in_words(number: int, units: tuple[str, str, str]) -> str:
    """A number with its unit: thousands, millions or billions.

    >>> _in_words(6_520_000_000, _COUNTS), _in_words(783_000, _SIZES)
    ('6.52 billion', '783 KB')
    """
    power = 3 if number >= 1e9 else 2 if number >= 1e6 else 1
    return f"{number / 1000**power:.3g} {units[power - 1]}"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} minutes"
        if seconds < 7200
        else (f"{seconds / 3600:.1f} hours")
    )
