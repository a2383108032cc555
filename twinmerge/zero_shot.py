"""Zero-shot heads: CLIP and SigLIP answer with the names of classes, which no training of a head has to learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinmerge.modeling_twin import Head

TEMPLATES = ("a photo of a {}.",)


def zero_shot_head(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Head:
    """A head on the vision tower that gives the model's own logits of images against the names of classes.

    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020: the
    weight of a class is the mean of its texts' features, each of length 1, brought to length 1.

    Args:
        model: a CLIPModel or SiglipModel, or another with `get_text_features`, whose text model was not fine-tuned.
        tokenizer: of its texts.
        labels: names of the classes, in the order of the head's outputs.
        templates: sentences with {} for the name.

    Returns:
        The head in eval mode, on what the tower pools to; it is as exact as the tower is CLIP's or SigLIP's.

    Raises:
        ValueError: for a model that compares no texts with images, no label, or a template without {}.
    """
    texts_of = getattr(model, "get_text_features", None)
    if texts_of is None or not (hasattr(model, "logit_scale") or hasattr(model, "temperature")):
        lacks = "reads no texts" if texts_of is None else "compares no texts with images"
        raise ValueError(f"a {type(model).__name__} {lacks}; give the whole CLIP or SigLIP model.")
    if not labels:
        raise ValueError("no label is given; name the classes.")
    if bad := [one for one in templates if "{}" not in one] or ([] if templates else ["(none)"]):
        raise ValueError(f"the template {bad[0]!r} has no place for a name; write {{}} there.")
    features, longest = [], _longest(model, tokenizer)
    for name in labels:
        texts = [template.format(name.replace("_", " ")) for template in templates]
        # SigLIP was trained on texts padded to the longest; CLIP reads to the end of each.
        padding = "max_length" if "siglip" in str(model.config.model_type) else True
        inputs = tokenizer(texts, return_tensors="pt", padding=padding, truncation=True, max_length=longest)
        with torch.no_grad():
            found = texts_of(**{k: v for k, v in inputs.items() if k != "token_type_ids"})
        found = found if isinstance(found, Tensor) else found.pooler_output
        mean = nn.functional.normalize(found.float(), dim=-1).mean(0)
        features.append(nn.functional.normalize(mean, dim=-1))
    projection, bias = getattr(model, "visual_projection", None), getattr(model, "logit_bias", None)
    told = cast("Tensor | None", getattr(model, "logit_scale", None))  # ALIGN divides by a temperature instead
    scale = (
        cast(Tensor, model.temperature).detach().float().reciprocal() if told is None else told.detach().float().exp()
    )
    weight = torch.stack(features) * scale
    width = weight.shape[1] if projection is None else projection.in_features
    head = Head(
        width,
        len(labels),
        "pooled",
        dense=projection is not None,
        activation="linear",
        inner=weight.shape[1],
        unit=True,
    )
    with torch.no_grad():
        head.out_proj.weight.copy_(weight)
        head.out_proj.bias.zero_()
        if bias is not None:
            head.out_proj.bias.add_(bias.detach().float())
        if head.dense is not None and projection is not None:
            head.dense.weight.copy_(projection.weight)
            head.dense.bias.zero_()
    head.label_names = list(labels)
    return head.requires_grad_(False).eval()


def _longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest text: many tokenizers do not say it, and without it SigLIP's texts would not be padded."""
    config = model.config.get_text_config()
    places = getattr(config, "max_position_embeddings", None)
    return min(tokenizer.model_max_length, places if isinstance(places, int) else tokenizer.model_max_length)
