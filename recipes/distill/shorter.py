"""A shorter copy of a transformers model: some of its layers, in their order, and everything around them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from distill.errors import DistillError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["kept_layers", "shorter", "spread"]

KEYS = ("num_hidden_layers", "layers")  # options of a student that say which layers are kept


def spread(total: int, count: int) -> list[int]:
    """Layers that stay when some are to go: spaced evenly from the first to the last, as Shleifer and Rush have them.

    Args:
        total: Layers of the model.
        count: Layers to keep, 1 to `total`.

    Reference:
        Shleifer and Rush (2020), "Pre-trained Summarization Distillation", arXiv 2010.13002, section 3.

    Example:
        >>> spread(12, 3), spread(6, 3), spread(6, 1), spread(4, 4)
        ([0, 6, 11], [0, 2, 5], [0], [0, 1, 2, 3])
    """
    return [0] if count == 1 else [round(i * (total - 1) / (count - 1)) for i in range(count)]


def kept_layers(total: int | None, options: Mapping[str, object]) -> list[int] | None:
    """The layers that a student's options keep of a model; None keeps all.

    Args:
        total: Layers of the model, `num_hidden_layers` of its configuration; None where it says none.
        options: Of the student; `num_hidden_layers` or `layers` among them.

    Raises:
        DistillError: When the model has not these layers.

    Example:
        >>> kept_layers(6, {"num_hidden_layers": 3}), kept_layers(6, {"layers": [0, 1]}), kept_layers(6, {})
        ([0, 2, 5], [0, 1], None)
    """
    given = [key for key in KEYS if options.get(key) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise DistillError("options has num_hidden_layers and layers, which say the same in two ways; give one")
    value = options[given[0]]
    if total is None:
        raise DistillError(f"options.{given[0]} is {value!r}, but the model's configuration counts no layers; leave it")
    if given == ["num_hidden_layers"]:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= total:
            raise DistillError(f"options.num_hidden_layers is {value!r}; give 1 to {total}, the layers of the model")
        return spread(total, value)
    given_layers = value if isinstance(value, list | tuple) else []
    kept = [i for i in given_layers if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < total]
    if not kept or len(kept) != len(given_layers) or kept != sorted(set(kept)):
        raise DistillError(
            f"options.layers is {value!r}; give ascending numbers of the model's layers, 0 to {total - 1}"
        )
    return kept


def shorter(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A new model of the same class with some of the layers.

    Args:
        model: With `config.num_hidden_layers` layers in one list; left as it is.
        kept: Their numbers, ascending.

    Returns:
        A model in eval mode, whose parameters are copies.

    Raises:
        DistillError: When the layers are not in one list.
    """
    import torch
    from torch import nn

    total = model.config.num_hidden_layers
    lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == total]
    if len(lists) != 1:
        raise DistillError(
            f"a {type(model).__name__} has {len(lists)} lists of {total} layers, so that none can be taken out; leave "
            "num_hidden_layers and layers out of the student's options"
        )
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [kinds[i] for i in kept]
    with torch.random.fork_rng(devices=[]):  # every weight is copied in, so that none may be drawn
        made = type(model)(config)
    place = re.compile(rf"{re.escape(lists[0])}\.(\d+)\.")
    number = {str(old): str(new) for new, old in enumerate(kept)}
    state = {}
    for name, value in model.state_dict().items():
        found = place.match(name)
        if found is None:
            state[name] = value
        elif found[1] in number:
            state[f"{lists[0]}.{number[found[1]]}.{name[found.end() :]}"] = value
    cast("nn.Module", made).to(model.dtype)
    made.load_state_dict(state)
    return cast("PreTrainedModel", made.eval())
