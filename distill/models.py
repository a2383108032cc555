"""Networks behind one call, from a model, the name of one, or a network that is one already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from distill.batches import Task
from distill.errors import DistillError
from distill.language import LanguageNetwork
from distill.networks import ImageNetwork, TextNetwork, image_model, statistics, with_lora

Model = nn.Module | str
Network = ImageNetwork | TextNetwork | LanguageNetwork


def build(
    model: Model,
    task: Task,
    classes: int,
    size: int,
    channels_last: bool,
    lora_rank: int,
    options: Mapping[str, object],
) -> Network:
    """A network behind the common call.

    Args:
        model: A network, a model or the name of one.
        task: As of `DistillModule`.
        classes: Outputs of a model that is named.
        size: Side of the images, 0 where there are none.
        channels_last: Lay images out channels last.
        lora_rank: Of adapters; 0 is none.
        options: For the constructor of a named model; mean, std and size for any image model.

    Raises:
        DistillError: If the model cannot be built.
    """
    if isinstance(model, ImageNetwork | TextNetwork | LanguageNetwork):
        return model
    rest: dict[str, Any] = dict(options)
    if task == "images":
        mean, std, own = rest.pop("mean", None), rest.pop("std", None), int(rest.pop("size", 0))
        made = image_model(model, classes, own or size, **rest) if isinstance(model, str) else model
        numbers = statistics(made, mean, std)
        if lora_rank:
            made = with_lora(made, lora_rank, (getattr(made, "pretrained_cfg", None) or {}).get("classifier", ""))
        return ImageNetwork(made, **numbers, size=own, channels_last=channels_last)
    if isinstance(model, str):
        import transformers

        kinds = {"texts": "AutoModelForSequenceClassification", "language": "AutoModelForCausalLM"}
        trusted = bool(rest.pop("trust_remote_code", False))  # said here, or transformers asks at the terminal
        if task == "texts":
            rest.setdefault("num_labels", classes)
        try:
            made = getattr(transformers, kinds[task]).from_pretrained(model, trust_remote_code=trusted, **rest)
            model = cast(nn.Module, made)
        except (OSError, ValueError, RuntimeError) as error:  # the last where its head has other classes
            raise DistillError(f"{model!r} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    if lora_rank:
        model = with_lora(model, lora_rank, "classifier" if task == "texts" else "lm_head")
    return TextNetwork(model) if task == "texts" else LanguageNetwork(model)
