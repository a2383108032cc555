"""The products of adapters on CPUs in place of those of vLLM 0.32.

vLLM's own copy both factors of its adapter for every token of a batch, and take a token that has no adapter (slot -1)
for one of the adapter in the last slot: once all slots are filled, a request for the shared model is answered wrongly
whenever a mixture is answered beside it. These leave such tokens alone, multiply those of one adapter together, and
in linear layers those of all adapters of one `Family`, as the mixtures of one twin are.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from twinmerge.serving.families import add_adapters, fill
from twinmerge.serving.products import expand, shrink

log = logging.getLogger("vllm.gapbridge")


def install(module: str = "vllm.lora.punica_wrapper.punica_cpu", manager: str = "vllm.lora.model_manager") -> bool:
    """Put these in the place of vLLM's own; False, and a warning, where that vLLM has none of these names.

    Args:
        module: that multiplies adapters on CPUs.
        manager: the module whose LoRAModelManager puts adapters into slots.
    """
    own: tuple[Callable[..., None], ...] = (sgmv_shrink, sgmv_expand, sgmv_expand_slice)
    own += (bgmv_shrink, bgmv_expand, bgmv_expand_slice)
    try:
        theirs, holder = importlib.import_module(module), importlib.import_module(manager)
        wrapper, slots = theirs.PunicaWrapperCPU, holder.LoRAModelManager
        linear, activate = wrapper.add_lora_linear, slots.activate_adapter
        known = all(hasattr(theirs, function.__name__) for function in own)
    except (ImportError, AttributeError):
        known = False
    if not known:
        log.warning("this vLLM multiplies adapters on CPUs in a way that gapbridge does not know; its own is used.")
        return False
    for function in own:
        setattr(theirs, function.__name__, function)
    wrapper.add_lora_linear, slots.activate_adapter = _linear(linear), _activate(activate)
    return True


def _linear(theirs: Callable[..., None]) -> Callable[..., None]:
    """Of a wrapper: add the adapters of all tokens to a linear layer's output; vLLM's own where slices are cut off."""

    @functools.wraps(theirs)
    def add_lora_linear(
        self: Any,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Sequence[Tensor],
        lora_b_stacked: Sequence[Tensor],
        scale: float,
        output_slices: Sequence[int],
        **options: Any,
    ) -> None:
        y, x, slots = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), self.token_lora_indices
        widths = [up.shape[-2] for up in lora_b_stacked]
        if widths != list(output_slices) or sum(widths) != y.shape[-1] or not len(x) == len(y) == len(slots):
            theirs(self, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **options)
        else:
            add_adapters(y, x, lora_a_stacked, lora_b_stacked, slots, scale)

    return add_lora_linear


def _activate(theirs: Callable[..., bool]) -> Callable[..., bool]:
    """Of a manager: put an adapter into a slot, which is noted even where that fails half way."""

    @functools.wraps(theirs)
    def activate_adapter(self: Any, lora_id: int) -> bool:
        there = lora_id in self.lora_index_to_id
        try:
            return theirs(self, lora_id)
        finally:
            if not there and lora_id in self.lora_index_to_id:
                fill(self.lora_index_to_id.index(lora_id))

    return activate_adapter


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
