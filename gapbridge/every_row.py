"""The order of validation and test rows: all of them, once."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import DistributedSampler


class EveryRow(DistributedSampler[int]):
    """All rows in their order, on every process: dealt out to several, a row or two would be repeated and count twice.

    Lightning leaves it in its place. The processes' counts are added up, so that each row weighs as on one process.

    >>> list(EveryRow(3))
    [0, 1, 2]

    Args:
        samples: Number of rows.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def set_epoch(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.samples))
