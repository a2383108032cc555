"""What a method holds of one tensor in memory, in bytes at most, from its shape alone; read without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

BLOCK = 2**18  # values of a block, as in twinmerge.functional.blocks
SLAB = 4  # blocks of a slab, likewise
SPARE = 8  # random directions beyond a rank, as in twinmerge.functional.knots and factorize
CHAINS = 8  # blocks of directions that factorize goes through
CHUNK = 2**22  # values of a row block in factorize


class Matrix(NamedTuple):
    """A tensor as a matrix.

    Attributes:
        rows: Its rows.
        columns: Everything behind the first dimension.
        experts: How many there are.
        rank: Of all differences side by side, where all experts are adapters; None else.
    """

    rows: int
    columns: int
    experts: int
    rank: int | None

    @property
    def short(self) -> int:
        """The shorter side."""
        return min(self.rows, self.columns)

    @property
    def made(self) -> int:
        """Bytes of the result that is held of a matrix that is wider than it is high."""
        return 4 * self.rows * self.columns if self.columns > self.rows else 0


def _iso_c(m: Matrix) -> int:
    square = 8 * m.short**2
    return max(2 * square, square + m.made) + square // 2


def _decorrelated(m: Matrix) -> int:
    """Directions on both sides, and beside them two squares in an eigenproblem or three behind it, or the result."""
    square = 8 * max(m.short, m.experts) ** 2
    return max(5 * square + square // 2, 3 * square + m.made)


def _knots(m: Matrix) -> int:
    if m.rank is not None and m.rank + SPARE < min(m.rows, m.experts * m.columns):
        width, all_columns = m.rank + SPARE, m.experts * m.columns
        return 8 * width * (3 * m.rows + 2 * all_columns) + 16 * width * all_columns
    side = min(m.rows, m.experts * m.columns)
    return 24 * side**2 + 4 * m.rows * side + 24 * side * m.experts * m.columns


def _inputs(m: Matrix) -> int:
    """Gram matrices of a layer's inputs: four in float64 at a time, and a factor for every expert in float32."""
    return (4 * 8 + 4 * m.experts) * m.columns**2


# What is held beside the blocks. Methods that are not here take nothing of a tensor but its blocks.
HELD: Mapping[str, Callable[[Matrix], int]] = {
    "iso_c": _iso_c,
    "iso_cts": _decorrelated,
    "tsv_m": _decorrelated,
    "knots": _knots,
    "wudi": _inputs,
    "regmean": _inputs,
}


def held_of(shape: tuple[int, ...], method: str, experts: int, *, wide: bool, lora: int, all_lora: bool) -> int:
    """Bytes that a merge takes of one tensor.

    Args:
        shape: Of the tensor.
        method: Of the merge.
        experts: How many.
        wide: Whether the work is done in float64.
        lora: Ranks of the adapters together.
        all_lora: Whether every expert is an adapter.

    Returns:
        Bytes.
    """
    count = prod(shape)
    row = max(1, prod(shape[1:]) if len(shape) > 1 else count)
    size = 8 if wide else 4
    block = size * min(count, max(BLOCK, row)) * (3 * experts + 6)
    if len(shape) < 2:
        return block
    factors = 3 * size * (shape[0] + row) * lora
    if method not in HELD:
        return block + factors
    matrix = Matrix(shape[0], row, experts, lora if all_lora else None)
    slab = min(count, max(SLAB * BLOCK, matrix.rows) if row > shape[0] else max(BLOCK, row))
    return slab * (2 * size * (experts + 1) + 8 * (2 * experts + 3)) + factors + HELD[method](matrix)


def factors_of(shape: tuple[int, ...], rank: int, *, spectrum: bool) -> int:
    """Bytes that factorising the difference of one matrix takes, at most.

    Args:
        shape: Of the matrix.
        rank: That is kept.
        spectrum: Whether all singular values are asked for first.

    Returns:
        Bytes; 0 for what is no matrix.
    """
    if len(shape) != 2:
        return 0
    rows, columns = shape
    short, kept = min(shape), min(rank, *shape)
    chained = 2 * 4 * (rows + columns) * min(CHAINS * (kept + SPARE), short)
    square = 8 * short**2
    exact = (
        (2 if spectrum else 1) * square + 8 * min(max(CHUNK, short), rows * columns) + 2 * 8 * (rows + columns) * kept
    )
    return 4 * rows * columns + max(chained, exact)
