"""The products of adapters, every token with the factors of its slot and none without an adapter."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def shrink(x: Tensor, down: Tensor, y: Tensor, slots: Tensor, lengths: Tensor | None, scaling: float) -> None:
    """Write scaling x A^T into y, token by token with the A of its slot; tokens without an adapter are left alone.

    Args:
        x: shape (tokens, n).
        down: shape (slots, 1, rank, n) or (slots, rank, n).
        y: shape (tokens, at least rank), written in place.
        slots: the slot of every run of tokens, -1 for none.
        lengths: tokens of every run; None: 1 each.
        scaling: of the products.
    """
    matrices, rank = down.flatten(0, -3), down.shape[-2]
    y, x = y[:, :rank], x.to(y.dtype)
    if lengths is None and len(slots) > 1:  # one product with all slots costs less than one a token
        every = (x @ matrices.flatten(0, 1).t().to(y.dtype)).view(len(x), -1, rank)
        own = every[torch.arange(len(x)), slots.clamp(min=0).long()]
        y.copy_(torch.where((slots >= 0)[:, None], scaling * own, y))
        return
    for slot, place in _runs(slots.tolist(), lengths):
        y[place] = scaling * (x[place] @ matrices[slot].t().to(y.dtype))


def expand(z: Tensor, up: Tensor, y: Tensor, slots: Tensor, lengths: Tensor | None, add: bool) -> None:
    """Add z B^T to y, or write it, token by token with the B of its slot; tokens without an adapter are left alone.

    Args:
        z: shape (tokens, rank).
        up: shape (slots, 1, m, rank) or (slots, m, rank).
        y: shape (tokens, m), written in place; fewer columns take the first of B.
        slots: the slot of every run of tokens, -1 for none.
        lengths: tokens of every run; None: 1 each.
        add: to what stands in y.
    """
    matrices, width = up.flatten(0, -3), min(y.shape[1], up.shape[-2])
    y, z = y[:, :width], z.to(y.dtype)
    for slot, place in _runs(slots.tolist(), lengths):
        if add and not z[place].any():  # as in a layer that the adapter does not change: its B may be a vocabulary's
            continue
        y[place].addmm_(z[place], matrices[slot, :width].t().to(y.dtype), beta=float(add))


def _runs(slots: Sequence[int], lengths: Tensor | None) -> Iterator[tuple[int, slice]]:
    """The tokens of every run of one slot, neighbours of the same slot together; none for tokens without an adapter."""
    counts = [1] * len(slots) if lengths is None else lengths.tolist()
    start = 0
    for slot, group in itertools.groupby(zip(slots, counts, strict=True), key=operator.itemgetter(0)):
        end = start + sum(count for _, count in group)
        if slot >= 0 and end > start:
            yield slot, slice(start, end)
        start = end
