"""The order of views: which image, in which of its augmentations, stands where; a function of seed, epoch and rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from distill.gathering import world

ROUND = 256  # repeated augmentation draws whole multiples of it, as its published sampler does


class ViewOrder(DistributedSampler[int]):
    """Views of this rank. A view is one number, from which row, repeat and epoch can be read back with `view_of`.

    With W processes, the g-th batches of all ranks together are the g-th batch of a single process with the global
    batch. Under repeated augmentation every row stands in the order several times in a row, so that different processes
    get different views of it, and an epoch stays about as long as without.

    Args:
        rows: Rows of the data set.
        batch_size: Rows of one batch on one rank.
        seed: Of the order.
        repeats: Views of one row in an epoch's draw.
        shuffle: Draw a new order each epoch.

    Example:
        >>> [view_of(view, rows=4) for view in ViewOrder(4, 2, shuffle=False)]
        [(0, 0), (1, 0), (2, 0), (3, 0)]
    """

    def __init__(self, rows: int, batch_size: int, *, seed: int = 0, repeats: int = 1, shuffle: bool = True) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.repeats, self.shuffle = repeats, shuffle
        self.epoch = 0
        self.skip = 0  # views of this rank that the current epoch has behind it

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, or stay where the present one is."""
        if epoch != self.epoch:
            self.epoch, self.skip = epoch, 0

    def __len__(self) -> int:
        selected = self.rows // ROUND * ROUND if self.repeats > 1 and self.rows >= ROUND else self.rows
        return math.ceil(selected / world()[0])

    def __iter__(self) -> Iterator[int]:
        size, rank = world()
        order = np.arange(self.rows)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        views = order[:, None] + self.rows * (self.epoch * self.repeats + np.arange(self.repeats))
        views = np.resize(views.reshape(-1), len(self) * size)[
            rank::size
        ]  # cuts the end off, or repeats from the start
        skip, self.skip = self.skip, 0
        yield from views[skip:].tolist()


def view_of(view: int, rows: int) -> tuple[int, int]:
    """Row of a view, and which of its views it is over all epochs and repeats."""
    return view % rows, view // rows


class ViewLoader(DataLoader[object]):
    """A DataLoader over views that goes on at the very batch where a checkpoint was written.

    Args:
        dataset: Indexed by view.
        order: The order of its views.
        drop_last: Leave out the last batch when it is not full.
        options: Further arguments of `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Dataset[object], order: ViewOrder, *, drop_last: bool = False, **options: Any) -> None:
        self._done = 0
        options.setdefault("generator", torch.Generator())  # of its own: the global one must not move
        super().__init__(dataset, order.batch_size, sampler=order, drop_last=drop_last, **options)
        self.order = order

    def __iter__(self) -> Iterator[object]:  # type: ignore[override]
        self._done = self.order.skip // self.order.batch_size
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position, and what must not change for the position to mean the same."""
        order = self.order
        same = {"rows": order.rows, "seed": order.seed, "global_batch": order.batch_size * world()[0]}
        return {"epoch": order.epoch, "batches": self._done, **same}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; a finished epoch leads to the start of the next.

        Raises:
            ValueError: When data, seed or global batch are not those of the position.
        """
        now = self.state_dict()
        inside = 0 < state["batches"] < len(self)
        for key in ("rows", "seed", *(("global_batch",) if inside else ())):
            if now[key] != state[key]:
                raise ValueError(
                    f"the checkpoint was written with {key} {state[key]}, now it is {now[key]}: the order of the data "
                    "would differ; use the same data, seed, batch size and devices"
                )
        self.order.set_epoch(state["epoch"] + (state["batches"] >= len(self)))
        self.order.skip = state["batches"] * self.order.batch_size if inside else 0
