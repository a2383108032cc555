"""A stock classifier out of a model's body and a head: what plain transformers loads, with the head's own logits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from twinmerge.errors import CheckpointError
from twinmerge.heads import EXACT, parts, random_inputs
from twinmerge.modeling_twin import Head
from twinmerge.states import states_of
from twinmerge.towers import around

_KINDS = {"tokens": "Token", "pixel_values": "Image"}


def stock_classifier(body: PreTrainedModel, head: Head) -> PreTrainedModel:
    """The stock classifier (of sequences, tokens or images) of a body that answers as a head on it does.

    Args:
        body: a stock model made by AutoModel; left as it is.
        head: of its last hidden states; its label names and kind of problem go into the configuration.

    Returns:
        A model in eval mode, of the body's type.

    Raises:
        CheckpointError: when no stock classifier of this architecture has such a head.
    """
    kind = _KINDS.get(head.pooling) or _KINDS.get(body.main_input_name, "Sequence")
    auto: Any = getattr(transformers, f"AutoModelFor{kind}Classification")
    errors = [float("inf")]
    for config in _configurations(around(body.config), head):
        try:
            with torch.random.fork_rng(devices=[]):
                model = auto.from_config(config, trust_remote_code=False)
        except ValueError:  # the architecture has no such class
            break
        inner, _ = parts(model)
        if type(inner) is not type(body):
            continue
        holder = model if hasattr(model, "timm_model") else inner  # timm's classifier stands inside its model
        own = holder.state_dict()
        holder.load_state_dict({n: v for n, v in body.state_dict().items() if n in own}, strict=False)
        for places in _places(model, head):
            _fill(head, *places)
            errors.append(_difference(model, body, head))
            if errors[-1] <= EXACT:
                made: PreTrainedModel = model.to(body.dtype).eval()
                return made
    raise CheckpointError(
        f"no stock {kind.lower()} classifier on a {type(body).__name__} has a head on the {head.pooling} state of this "
        f"form (nearest is off by {min(errors):.1e} of its logits); the twin folder itself answers with it."
    )


def _configurations(given: PretrainedConfig, head: Head) -> Iterator[PretrainedConfig]:
    """The body's configuration with the head's labels, in each form that changes how a stock head is used."""
    config = copy.deepcopy(given)
    for stale in ("auto_map", "label_names", "num_classes"):  # timm's are written anew from id2label
        vars(config).pop(stale, None)
    outputs = head.out_proj.out_features
    names = head.label_names or [f"LABEL_{i}" for i in range(outputs)]
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    config.problem_type = head.problem or ("regression" if head.label_names == [] else None)  # type: ignore[assignment]  # a plain text to us
    poolings = [None] if not hasattr(config, "classifier_pooling") else ["cls", "mean"]
    activations = [None] if not hasattr(config, "classifier_activation") else [head.activation]
    for pooling, activation in product(poolings, activations):
        made = copy.deepcopy(config)
        if pooling is not None:
            made.classifier_pooling = pooling
        if activation is not None:
            made.classifier_activation = activation
        yield made


def _places(model: PreTrainedModel, head: Head) -> Iterator[tuple[nn.Linear, nn.Linear | None, nn.LayerNorm | None]]:
    """Where the head's layers may stand in a stock classifier: its output, its dense layer, its norm."""
    body, outside = parts(model)
    linears = [m for m in outside if isinstance(m, nn.Linear)]
    answers = [m for m in linears if m.out_features == head.out_proj.out_features]
    if not answers:
        return
    poolers = [m for n, m in body.named_modules() if n.startswith("pooler") and isinstance(m, nn.Linear)]
    square = (answers[-1].in_features,) * 2
    dense = [m for m in (*linears, *poolers) if m is not answers[-1] and tuple(m.weight.shape) == square]
    norms = [m for m in outside if isinstance(m, nn.LayerNorm) and m.elementwise_affine]
    for layer, norm in product(dense if head.dense is not None else [None], norms if head.norm is not None else [None]):
        yield answers[-1], layer, norm


def _fill(head: Head, answer: nn.Linear, dense: nn.Linear | None, norm: nn.LayerNorm | None) -> None:
    with torch.no_grad():
        for ours, theirs in ((head.out_proj, answer), (head.dense, dense), (head.norm, norm)):
            if ours is not None and theirs is not None and ours.weight.shape == theirs.weight.shape:
                theirs.weight.copy_(ours.weight)
                if theirs.bias is not None:
                    theirs.bias.copy_(ours.bias)


def _difference(model: PreTrainedModel, body: PreTrainedModel, head: Head) -> float:
    """Largest difference of the classifier's logits to the head's on the body's states, in double precision."""
    inputs = random_inputs(body)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    double, own = copy.deepcopy(model).double().eval(), copy.deepcopy(head).double().eval()
    alone = copy.deepcopy(body).double().eval()
    with torch.no_grad():
        wanted = own(states_of(alone, alone(**inputs)), inputs.get("attention_mask"))
        logits = double(**inputs).logits
    return float((wanted - logits).abs().max()) / (1 + float(wanted.abs().max()))
