"""Adapters that differ in nothing but weights of their ranks, as the mixtures of one twin do, multiplied together.

A mixture is B diag(w) A with the same A and B for all mixtures of a twin. Where one layer's slots hold such adapters,
all their tokens take one product with A, their own weights, and one product with B: the factors are read once a step
and not once a mixture. That slots are alike is found from their values alone, so that it holds for any adapters.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from twinmerge.serving.products import shrink

NEAR = 4 * torch.finfo(torch.float32).eps  # of a row's largest value: what rounding leaves of equal rows


class Family:
    """Slots of one layer whose adapters are its A and B with weights of their own.

    In float32, that is: rounded to fewer bits, rows are no longer multiples of each other, and a family shares B alone.

    Args:
        slot: of the founder.
        downs: its factors A, one a slice of the layer, each of shape (rank, n).
        ups: its factors B, each of shape (m, rank).
        slots: of the layer.
    """

    def __init__(self, slot: int, downs: Sequence[Tensor], ups: Sequence[Tensor], slots: int) -> None:
        self.ups, self.shares_down = [up.clone() for up in ups], downs[0].dtype == torch.float32
        if self.shares_down:
            down = torch.cat(list(downs))
            self.weights = torch.zeros(slots, len(down), device=down.device)
            self._keep(down)
            self._weigh(slot, (self.peaks[:, 0] != 0).float())

    def _keep(self, down: Tensor) -> None:
        """Keep the rows of A, and for the products those ranks alone that give something in any adapter so far."""
        self.down, self.places = down, down.abs().argmax(1, keepdim=True)
        self.peaks = down.gather(1, self.places)
        whole = torch.cat([up.isfinite().all(0) for up in self.ups])
        self.ranks = ((self.peaks[:, 0] != 0) | ~whole).nonzero()[:, 0]
        rank = len(down) // len(self.ups)
        own = [self.ranks[self.ranks // rank == part] - rank * part for part in range(len(self.ups))]
        self.near_down = down[self.ranks].t()
        self.near_ups = [up[:, ranks].t().contiguous() for up, ranks in zip(self.ups, own, strict=True)]

    def take(self, slot: int, downs: Sequence[Tensor], ups: Sequence[Tensor]) -> bool:
        """Whether a slot's adapter belongs to the family; its weights are kept then.

        A rank that is zero in all adapters so far, weight 0, takes the row of the first that has one.
        """
        if not all(map(torch.equal, self.ups, ups)):
            return False
        if not self.shares_down:
            return True
        rows = downs[0] if len(downs) == 1 else torch.cat(list(downs))
        unseen = self.peaks == 0
        weights = (rows.gather(1, self.places) / self.peaks).masked_fill_(unseen, 0.0)
        rest = torch.addcmul(rows, weights, self.down, value=-1).abs_().amax(1, keepdim=True)
        near = (rest <= NEAR * (weights * self.peaks).abs()) | (unseen & rest.isfinite())
        if not bool(near.all()):  # also where a value is no number
            return False
        new = unseen & (rest > 0)
        if bool(new.any()):
            self._keep(torch.where(new, rows, self.down))
            weights = weights + new
        self._weigh(slot, weights[:, 0])
        return True

    def _weigh(self, slot: int, weights: Tensor) -> None:
        self.weights[slot] = weights
        self.near_weights = self.weights[:, self.ranks]

    def add(self, y: Tensor, x: Tensor, slots: Tensor, downs: Sequence[Tensor], scaling: float) -> None:
        """Add scaling x A^T diag(w) B^T to y, slice by slice, for tokens that all are of this family.

        Args:
            y: shape (tokens, the m of all slices), written in place.
            x: shape (tokens, n).
            slots: of every token.
            downs: the layer's factors A, one a slice, each of shape (slots, 1, rank, n).
            scaling: of the products.
        """
        widths = [len(up) for up in self.ups]
        if self.shares_down:
            ups = self.near_ups
            z = (x.to(self.down.dtype) @ self.near_down).mul_(self.near_weights[slots])
            parts = list(z.split_with_sizes([len(up) for up in ups], 1))
        else:
            ups = [up.t() for up in self.ups]
            parts = [torch.zeros(len(x), down.shape[-2]) for down in downs]
            for part, down in zip(parts, downs, strict=True):
                shrink(x, down, part, slots, None, 1.0)
        for up, part, own in zip(ups, parts, y.split_with_sizes(widths, 1), strict=True):
            own.addmm_(part.to(y.dtype), up.to(y.dtype), alpha=scaling)


@dataclass
class _Layer:
    """What is known of the slots of one layer."""

    tensors: list[weakref.ref[Tensor]]
    versions: list[int] = field(default_factory=list)
    fills: int = 0  # of all slots, when the versions were looked at
    filled: dict[int, int] = field(default_factory=dict)  # how often a slot had been filled when it was looked at
    family: dict[int, Family] = field(default_factory=dict)
    latest: Family | None = None  # whose slots may all have got other mixtures since


_layers: dict[tuple[int, ...], _Layer] = {}
_filled: Counter[int] = Counter()


def fill(slot: int) -> None:
    """Note that a slot got another adapter in every layer: it is looked at anew, the other slots are not.

    A layer's factors that changed with no slot noted are all looked at anew.
    """
    _filled[slot] += 1


def families(downs: Sequence[Tensor], ups: Sequence[Tensor], slots: set[int]) -> dict[int, Family]:
    """The family of each of these slots of a layer.

    Args:
        downs: the layer's factors A, one a slice, each of shape (slots, 1, rank, n).
        ups: its factors B, each of shape (slots, 1, m, rank).
        slots: that are asked for.
    """
    every = (*downs, *ups)
    layer = _layers.get(key := tuple(map(id, every)))
    if layer is None:  # a layer's entry goes with its tensors, whose places others may get
        layer = _layers[key] = _Layer([weakref.ref(tensor, lambda _: _layers.pop(key, None)) for tensor in every])
    versions = [tensor._version for tensor in every]
    if versions != layer.versions:
        unnoted = layer.fills == _filled.total()
        for slot in [slot for slot in layer.family if unnoted or layer.filled[slot] != _filled[slot]]:
            del layer.family[slot]
        layer.versions, layer.fills = versions, _filled.total()
    for slot in slots - layer.family.keys():
        own = [down[slot, 0] for down in downs], [up[slot, 0] for up in ups]
        known = dict.fromkeys([*layer.family.values(), *([layer.latest] if layer.latest else [])])
        taken = (family for family in known if family.take(slot, *own))
        layer.latest = layer.family[slot] = next(taken, None) or Family(slot, *own, slots=len(downs[0]))
        layer.filled[slot] = _filled[slot]
    return layer.family


def add_adapters(
    y: Tensor, x: Tensor, downs: Sequence[Tensor], ups: Sequence[Tensor], slots: Tensor, scaling: float
) -> None:
    """Add to y what the adapter of every token's slot gives; tokens without an adapter are left alone.

    Args:
        y: shape (tokens, the m of all slices), written in place.
        x: shape (tokens, n).
        downs: the layer's factors A, one a slice, each of shape (slots, 1, rank, n).
        ups: its factors B, each of shape (slots, 1, m, rank).
        slots: of every token, -1 for none.
        scaling: of the products.
    """
    each = slots.tolist()
    asked = set(each)
    found = families(downs, ups, asked - {-1})
    mine = {found[slot] for slot in asked if slot != -1}
    if len(mine) == 1 and -1 not in asked:
        mine.pop().add(y, x, slots, downs, scaling)
        return
    for family in mine:
        places = torch.tensor([place for place, slot in enumerate(each) if slot != -1 and found[slot] is family])
        part = y[places]
        family.add(part, x[places], slots[places], downs, scaling)
        y[places] = part
