"""The k-th largest of more magnitudes than fit into memory, exactly, by counting their leading digits first.

The bits of non-negative floating point numbers, read as whole numbers, are ordered as the numbers are. A pass counts
the leading 16 bits, the next one those behind them among the numbers still in question: two passes for float32, four
for float64, with 2^16 counters each, whatever the number of magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDTH = 16


class Kth(NamedTuple):
    """The k-th largest magnitude.

    Attributes:
        value: It itself.
        larger: How many are larger than it.
        equal: How many are equal to it, itself included.
    """

    value: float
    larger: int
    equal: int


class _Search:
    """One k-th largest: the leading bits that are known, and how many numbers are larger than any with these."""

    def __init__(self, count: int) -> None:
        self.left, self.larger, self.equal, self.known = count, 0, 0, 0
        self.counters = torch.zeros(2**_WIDTH, dtype=torch.int64)

    def look(self, bits: Tensor, shift: int, width: int, first: bool) -> None:
        if first:
            self.counters += torch.bincount((bits >> shift).view(-1), minlength=2**_WIDTH).cpu()
            return
        digits = bits - (self.known << (shift + width))
        if shift:
            digits >>= shift
        # What is smaller or larger than all in question is counted before and behind them, which is cheaper than to
        # pick the others.
        digits.clamp_(-1, 2**width).add_(1)
        self.counters[: 2**width] += torch.bincount(digits.view(-1), minlength=2**width + 2)[1:-1].cpu()

    def narrow(self, width: int) -> None:
        above = self.counters.flip(0).cumsum(0)
        place = min(int(torch.searchsorted(above, self.left)), 2**_WIDTH - 1)
        passed = int(above[place - 1]) if place else 0
        self.larger, self.left, self.equal = self.larger + passed, self.left - passed, int(above[place]) - passed
        self.known = (self.known << width) | (2**_WIDTH - 1 - place)
        self.counters.zero_()


def kth_largest(
    parts: Callable[[], Iterable[Sequence[Tensor]]], counts: Sequence[Sequence[int]], *, wide: bool = False
) -> list[list[Kth]]:
    """The k-th largest magnitudes of several rows, such as all experts', that are read together.

    Args:
        parts: Gives, anew at every call, parts of all rows: one tensor of magnitudes for each row, float32 or float64.
        counts: By row, each k, from 1 to the number of magnitudes of the row.
        wide: Whether any of the magnitudes is float64.

    Returns:
        By row, the k-th largest for each k.

    Example:
        >>> kth_largest(lambda: [[torch.tensor([3.0, 1.0])], [torch.tensor([2.0, 5.0])]], [[1, 3]])
        [[Kth(value=5.0, larger=0, equal=1), Kth(value=2.0, larger=2, equal=1)]]
    """
    searches = [[_Search(k) for k in row] for row in counts]
    kind, whole, bits_left = (torch.float64, torch.int64, 63) if wide else (torch.float32, torch.int32, 31)
    first = True
    while bits_left:
        width = min(_WIDTH, bits_left)
        bits_left -= width
        for part in parts():
            for magnitudes, row in zip(part, searches, strict=True):
                bits = magnitudes.to(kind).contiguous().view(whole)
                for search in row:
                    search.look(bits, bits_left, width, first)
        for search in (search for row in searches for search in row):
            search.narrow(width)
        first = False
    return [
        [
            Kth(float(torch.tensor([search.known], dtype=whole).view(kind)), search.larger, search.equal)
            for search in row
        ]
        for row in searches
    ]


def at_least(vector: Tensor, threshold: float) -> Tensor:
    """A vector's values of at least so large a magnitude, 0 elsewhere.

    >>> at_least(torch.tensor([1.0, -2.0, 3.0]), 2.0)
    tensor([ 0., -2.,  3.])
    """
    below = torch.tensor(threshold, dtype=vector.dtype).nextafter(torch.tensor(-torch.inf, dtype=vector.dtype))
    return F.hardshrink(vector, float(below))


class Largest:
    """Says of magnitudes, given block by block in order, which are the k largest; of equal ones the first count.

    Args:
        kth: The k-th largest.
        count: k.
    """

    def __init__(self, kth: Kth, count: int) -> None:
        self.value, self.room, self.all = kth.value, count - kth.larger, count - kth.larger >= kth.equal

    def kept(self, vector: Tensor) -> Tensor:
        """The block's values whose magnitudes are among the largest, 0 elsewhere."""
        if self.all:
            return at_least(vector, self.value)
        if self.room <= 0:
            return F.hardshrink(vector, self.value)
        return torch.where(self._equal(vector.abs()), vector, F.hardshrink(vector, self.value))

    def of(self, magnitudes: Tensor) -> Tensor:
        """Boolean mask of the block's magnitudes that are among the largest."""
        return magnitudes > self.value if self.room <= 0 else (magnitudes > self.value) | self._equal(magnitudes)

    def _equal(self, magnitudes: Tensor) -> Tensor:
        equal = magnitudes == self.value
        found = int(equal.sum())
        if found > self.room:
            places = equal.reshape(-1).nonzero()[: self.room]
            equal = torch.zeros_like(equal).reshape(-1).index_fill_(0, places.reshape(-1), True).view(magnitudes.shape)
        self.room -= min(found, self.room)
        return equal


class Smallest(Largest):
    """The same for the k smallest of so many.

    Args:
        kth: The smallest of all that are larger than any other of the k, that is the (total - k + 1)-th largest.
        count: k.
        total: How many magnitudes there are.
    """

    def __init__(self, kth: Kth, count: int, total: int) -> None:
        super().__init__(kth, count)
        self.room = count - (total - kth.larger - kth.equal)

    def of(self, magnitudes: Tensor) -> Tensor:
        """Boolean mask of the block's magnitudes that are among the smallest."""
        return magnitudes < self.value if self.room <= 0 else (magnitudes < self.value) | self._equal(magnitudes)
