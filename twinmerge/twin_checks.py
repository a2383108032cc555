"""What a twin checks of its inputs: who routes on what, which mixture a cache holds, where the rows of a batch lie.

Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .layouts import Run
from .mixture import Mixture, cached_length, caches_in
from .proving import find_layouts, refuse_escaping

if TYPE_CHECKING:  # apart from the other, so that a twin folder's one file leaves this circle out
    from .twin_mixin import TwinMixin

EACH = "a mixture for each input"
_MEDIA = ("pixel", "image", "video", "audio", "input_features", "input_values", "bbox")

# What a forward shows beside its answer; it goes the same way with it and without.
_SEEN = ("return_dict", "use_cache", "output_hidden_states", "output_attentions")


if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Stock
else:
    _Stock = object


def asked_for(kwargs: Mapping[str, object]) -> frozenset[str]:
    """What decides which way a forward takes: the names of its tensors, the size of images, and what is switched on.

    Args:
        kwargs: of a forward.
    """
    tensors = {k: v for k, v in kwargs.items() if isinstance(v, Tensor)}
    sizes = (f"{k} of {tuple(v.shape[1:])}" for k, v in tensors.items() if v.dim() > 3 and any(m in k for m in _MEDIA))
    return frozenset([*tensors, *sizes, *(k for k, v in kwargs.items() if v is True and k not in _SEEN)])


class TwinChecks(_Stock):
    """The part of a twin that refuses what would be answered wrongly."""

    mixture: Mixture
    tasks: list[str]
    _accepted: frozenset[str]
    _checked: list[frozenset[str]]

    def _side(self, kwargs: Mapping[str, object]) -> dict[str, Tensor]:
        """What the router sees beside the main input and its mask: every tensor that the model's body takes.

        Raises:
            ValueError: for an input that the body does not take, so that the mixture would not depend on it.
        """
        tensors = {k: v for k, v in kwargs.items() if isinstance(v, Tensor) and k not in ("labels", "inputs_embeds")}
        unseen = [k for k in tensors if k not in self._accepted and any(part in k for part in _MEDIA)]
        if unseen:
            raise ValueError(f"the router cannot see {unseen[0]}; pass router_weights of shape (batch, tasks).")
        main = (self.main_input_name, "attention_mask", "cache_position")
        return {k: v for k, v in tensors.items() if k in self._accepted and k not in main}

    def _continued(self, weights: Tensor, kwargs: Mapping[str, object]) -> Tensor:
        """The weights, when no kept cache was filled under others."""
        for kept in caches_in(kwargs):
            held = getattr(kept, "twin_weights", None)
            if (
                cached_length(kwargs)
                and held is not None
                and (held.shape != weights.shape or not torch.equal(held, weights))
            ):
                raise ValueError(
                    "the kept cache was filled under another mixture than these router_weights; leave them out, or "
                    "start anew without the cache."
                )
        return weights

    def _check_layouts(self, weights: Tensor, kwargs: Mapping[str, Any], run: Run) -> None:
        """Find out, once for inputs of this kind, where the rows of a batch lie in every routed module.

        Under one row nothing is dealt out, and it is only found out whether every module sees its experts.

        Raises:
            ValueError: when one of them cannot be routed per input, or a weight is read past its module.
        """
        names = frozenset(k for k, v in kwargs.items() if isinstance(v, Tensor))
        main = kwargs.get(self.main_input_name)
        if weights.shape[0] > 1 and isinstance(main, Tensor):
            for name in sorted(n for n in names if any(part in n for part in _MEDIA)):
                if kwargs[name].shape[0] not in (1, main.shape[0]):
                    raise ValueError(
                        f"{name} has {kwargs[name].shape[0]} rows for {main.shape[0]} inputs, and which belong to "
                        "which cannot be told apart; give one each, or one row of router weights."
                    )
            self._check_one_each(main, names)
        asked = asked_for(kwargs) | ({EACH} if weights.shape[0] > 1 else set())
        if cached_length(kwargs) or any(asked <= known for known in self._checked):
            return
        given = {k: v for k, v in kwargs.items() if "Cache" not in type(v).__name__}
        check = find_layouts if weights.shape[0] > 1 else refuse_escaping
        check(cast("TwinMixin", self), given, run)
        self._checked.append(asked)

    def _check_one_each(self, main: Tensor, names: frozenset[str]) -> None:
        """Refuse as many images as texts of which one text has none: another then has two, of which one is not its own.

        Raises:
            ValueError: for such a batch, of a model whose texts say where their images stand.
        """
        for kind, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if key not in names or main.dim() != 2 or main.is_floating_point():
                continue
            said = (getattr(self.config, f"{kind}_token_{end}", None) for end in ("id", "index"))
            token = next((one for one in said if isinstance(one, int)), None)
            if token is None:
                continue
            if lacking := (~(main == token).any(1)).nonzero().flatten().tolist():
                raise ValueError(
                    f"input {lacking[0]} has no {kind} and another has several, and each has the mixture of the input "
                    f"in its place; give every input one {kind}, or one row of router weights."
                )

    def _drafting(self, assistant: Any, weights: Tensor) -> AbstractContextManager[None]:
        """The mixture of an assistant that is a twin too; an assistant has no prompt of its own to route.

        Raises:
            ValueError: when it is a twin of other tasks.
        """
        if not isinstance(assistant, TwinChecks) or assistant is self:
            return nullcontext()
        if assistant.tasks != self.tasks:
            raise ValueError(
                f"the assistant is a twin of {', '.join(assistant.tasks)} and this one of {', '.join(self.tasks)}; "
                'draft with its shared model, twinmerge.load(folder, mode="shared").'
            )
        return assistant.mixture.use(assistant._weights(weights))

    def _weights(self, weights: Tensor) -> Tensor:
        if not isinstance(weights, Tensor):
            raise ValueError(
                f"router_weights are {type(weights).__name__}, and this twin takes a tensor (batch, {len(self.tasks)})."
            )
        if weights.dim() != 2 or weights.shape[1] != len(self.tasks):
            raise ValueError(
                f"router_weights have shape {tuple(weights.shape)}, and this twin takes (batch, {len(self.tasks)})."
            )
        return weights.to(self.device)
