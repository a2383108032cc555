"""The products of adapters on CPUs, a run of tokens at a time, in place of those of vLLM 0.32.

vLLM's own copy both factors of its adapter for every token of a batch, and take a token that has no adapter (slot -1)
for one of the adapter in the last slot: once all slots are filled, a request for the shared model is answered wrongly
whenever a mixture is answered beside it. These leave such tokens alone, multiply those of one adapter together, and
those of all adapters that have the same factor B, as the mixtures of one twin do.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

log = logging.getLogger("vllm.gapbridge")


def install(module: str = "vllm.lora.punica_wrapper.punica_cpu") -> bool:
    """Put these in the place of vLLM's own; False, and a warning, where that vLLM has none of these names.

    Args:
        module: that multiplies adapters on CPUs.
    """
    own: tuple[Callable[..., None], ...] = (sgmv_shrink, sgmv_expand, sgmv_expand_slice)
    own += (bgmv_shrink, bgmv_expand, bgmv_expand_slice)
    mine = {f.__name__: f for f in own}
    try:
        theirs = importlib.import_module(module)
    except ImportError:
        theirs = None
    if theirs is None or any(not hasattr(theirs, name) for name in mine):
        log.warning("this vLLM multiplies adapters on CPUs in a way that gapbridge does not know; its own is used.")
        return False
    for name, function in mine.items():
        setattr(theirs, name, function)
    return True


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
    for slot, place in _runs(_same(up, slots.tolist()), lengths):
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


@dataclass
class _Alike:
    """What was found of a tensor of factors: the first slot that has the very same one as another."""

    tensor: weakref.ref[Tensor]
    version: int
    first: dict[int, int] = field(default_factory=dict)


_alike: dict[int, _Alike] = {}


def _same(up: Tensor, slots: Sequence[int]) -> list[int]:
    """For every slot the first one that has the very same factor; found anew whenever one has changed."""
    if len(set(slots)) < 2:
        return list(slots)
    seen = _alike.get(id(up))
    if seen is None or seen.tensor() is not up or seen.version != up._version:
        seen = _alike[id(up)] = _Alike(weakref.ref(up), up._version)
    for slot in slots:
        if slot >= 0 and slot not in seen.first:
            alike = (other for other in set(seen.first.values()) if torch.equal(up[other], up[slot]))
            seen.first[slot] = next(alike, slot)
    return [seen.first.get(slot, slot) for slot in slots]


def sgmv_shrink(
    inputs: Tensor,
    lora_a_weights: Tensor,
    output_tensor: Tensor,
    b_seq_start_loc: Tensor,
    seq_len_tensor: Tensor,
    lora_indices_tensor: Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    scaling: float,
) -> None:
    """As vLLM calls `shrink` for runs of tokens."""
    shrink(inputs, lora_a_weights, output_tensor, lora_indices_tensor, seq_len_tensor, scaling)


def sgmv_expand(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    b_seq_start_loc: Tensor,
    seq_len_tensor: Tensor,
    lora_indices_tensor: Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    add_inputs: bool = False,
) -> None:
    """As vLLM calls `expand` for runs of tokens."""
    expand(inputs, lora_b_weights, output_tensor, lora_indices_tensor, seq_len_tensor, add_inputs)


def sgmv_expand_slice(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    b_seq_start_loc: Tensor,
    seq_len_tensor: Tensor,
    lora_indices_tensor: Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = False,
) -> None:
    """As vLLM calls `expand` for runs of tokens and some of the columns."""
    part = output_tensor[:, slice_offset : slice_offset + slice_size]
    expand(inputs, lora_b_weights, part, lora_indices_tensor, seq_len_tensor, add_inputs)


def bgmv_shrink(
    inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor, scaling: float = 1.0
) -> None:
    """As vLLM calls `shrink` for single tokens."""
    shrink(inputs, lora_b_weights, output_tensor, lora_indices_tensor, None, scaling)


def bgmv_expand(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    lora_indices_tensor: Tensor,
    add_inputs: bool = True,
) -> None:
    """As vLLM calls `expand` for single tokens."""
    expand(inputs, lora_b_weights, output_tensor, lora_indices_tensor, None, add_inputs)


def bgmv_expand_slice(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    lora_indices_tensor: Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """As vLLM calls `expand` for single tokens and some of the columns."""
    part = output_tensor[:, slice_offset : slice_offset + slice_size]
    expand(inputs, lora_b_weights, part, lora_indices_tensor, None, add_inputs)
