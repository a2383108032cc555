"""Read the task head of a stock classifier, pooler, activation and all, as a `Head` that gives the same logits.

Which of its layers a classifier uses, on which token and with which activation stands in no file. So the candidates
that its layers allow are tried on random inputs in double precision, and the one that gives the model's own logits is
the head; where none does, the head is refused, for a head that is nearly right answers wrongly without a word.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from twinmerge.errors import CheckpointError
from twinmerge.layouts import probe_inputs
from twinmerge.modeling_twin import Head
from twinmerge.states import States, body_of, states_of
from twinmerge.timm_models import wrap_timm
from twinmerge.twin_parts import POOLINGS, pool

EXACT = 1e-5
ACTIVATIONS = ("tanh", "gelu", "relu", "linear", "gelu_new", "silu")


def random_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """A small batch that a model takes: images, or texts of different lengths where it knows a padding token.

    Args:
        model: its main input is `input_ids` or `pixel_values`.

    Raises:
        CheckpointError: for another main input.
    """
    draw = torch.Generator().manual_seed(0)
    config, main = model.config, model.main_input_name
    if main == "pixel_values":
        return cast("dict[str, Tensor]", probe_inputs(model))
    if main != "input_ids":
        raise CheckpointError(f"a {config.model_type} model reads {main}; experts on texts or images can be read.")
    pad = getattr(config, "pad_token_id", None)
    tokens = max(2, min(12, (getattr(config, "max_position_embeddings", None) or 64) - 4))
    ids = torch.randint(0, config.vocab_size, (1 if pad is None else 3, tokens), generator=draw)
    if pad is None:
        return {main: ids, "attention_mask": torch.ones_like(ids)}
    # Special tokens can have a meaning to a model's own code, and the first few ids are usually theirs.
    ids = ids.clamp_min(min(5, config.vocab_size - 1))
    ids[ids == pad] = (pad + 1) % config.vocab_size
    mask = torch.ones_like(ids)
    for row, length in enumerate((tokens, tokens // 2 + 1, 2)):
        ids[row, length:], mask[row, length:] = pad, 0
    return {main: ids, "attention_mask": mask}


def check_runs(model: PreTrainedModel) -> None:
    """Refuse a model of images for which no batch can be made, so that no expert could be compared with its folder.

    Args:
        model: the base.

    Raises:
        CheckpointError: where it takes no batch of `random_inputs`.
    """
    if getattr(model, "main_input_name", "") != "pixel_values":
        return
    try:
        with torch.no_grad():
            model(**random_inputs(model))
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise CheckpointError(
            f"a {type(model).__name__} takes no images that can be made from its configuration ({reason}), so that its "
            "experts cannot be compared with their folders; merge their states by twinmerge.merge."
        ) from error


def parts(model: PreTrainedModel) -> tuple[PreTrainedModel, list[nn.Module]]:
    """The body of a classifier, and the modules outside of it, which are its head."""
    inner = getattr(model, "timm_model", None)
    if isinstance(inner, nn.Module):  # timm's own classifier stands inside its model
        if not inner.num_classes:
            return model, []
        body = wrap_timm(inner, model.config.model_args)
        nn.Module.eval(body)
        return body, [cast("Callable[[], nn.Module]", inner.get_classifier)()]
    body = body_of(model)
    inside = {id(module) for module in body.modules()}
    return body, [module for module in model.modules() if id(module) not in inside]


def states_and_logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[States, Tensor]:
    """A classifier's states, as its body returns them, and its logits."""
    seen: list[object] = []
    body, _ = parts(model)
    if isinstance(getattr(model, "timm_model", None), nn.Module):
        with torch.no_grad():
            return states_of(body, nn.Module.__call__(body, **inputs)), model(**inputs).logits
    hook = body.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        with torch.no_grad():
            logits = model(**inputs).logits
    finally:
        hook.remove()
    if not seen:
        raise CheckpointError(f"a {type(model).__name__} does not call its body as a whole; its head cannot be read.")
    return states_of(body, seen[0]), logits


def read_head(model: PreTrainedModel) -> tuple[Head, set[str]]:
    """The head of a stock classifier of sequences, tokens or images.

    Args:
        model: in eval mode and float32; left as it is.

    Returns:
        The head in eval mode, and the names of the parameters of the body that it took with it (a pooler's).

    Raises:
        CheckpointError: when no head that a twin can hold gives the model's logits.
    """
    name = type(model).__name__
    model = copy.deepcopy(model).double().eval()  # float32 -> float64 -> float32 gives every value back
    body, outside = parts(model)
    linears = [m for m in outside if isinstance(m, nn.Linear)]
    answers = [m for m in linears if m.out_features == model.config.num_labels]
    if not answers:
        raise CheckpointError(
            f"a {name} has no linear layer of {model.config.num_labels} outputs; its head is unknown."
        )
    answer = answers[-1]
    poolers = [m for n, m in body.named_modules() if n.startswith("pooler") and isinstance(m, nn.Linear)]
    dense = [m for m in (*linears, *poolers) if m is not answer and m.weight.shape == (answer.in_features,) * 2]
    norms = [m for m in outside if isinstance(m, nn.LayerNorm) and m.elementwise_affine]
    with torch.no_grad():
        inputs = random_inputs(model)
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        states, logits = states_and_logits(model, inputs)
        poolings = ["tokens"] if logits.dim() == 3 else ["first", "last", "mean"]
        if model.main_input_name == "pixel_values" and logits.dim() == 2:
            poolings = [one for one in POOLINGS if one != "tokens" and _fits(one, states, answer)]
        found: list[tuple[float, int, Head, nn.Linear | None]] = []
        for layer, norm, pooling in product([*dense, None], [*norms, None], poolings):
            for activation in _activations(model.config) if layer is not None else ["tanh"]:
                head = _assembled(layer, norm, answer, pooling, activation)
                error = float((head(states, inputs.get("attention_mask")) - logits).abs().max())
                found.append((error / (1 + float(logits.abs().max())), len(found), head, layer))
    if not found:
        raise CheckpointError(f"the head of a {name} reads another width than its body ends in; it cannot be read.")
    error, _, head, layer = min(found, key=lambda one: one[:2])
    if not error <= EXACT:
        raise CheckpointError(
            f"the head of a {name} is none that a twin can hold (nearest form off by {error:.1e} of its logits); merge "
            "fine-tunes whose head is [dense, activation, norm and] one linear layer on the first, last, mean or every "
            "token, or on what the body pools to."
        )
    taken = {n for n, p in body.named_parameters() if layer in poolers and any(p is q for q in layer.parameters())}
    return head.float().eval(), taken


def label_names(config: PretrainedConfig) -> list[str]:
    """What a classifier's outputs stand for, by `id2label`; empty for a regression."""
    if config.num_labels == 1:
        return []
    names = cast("dict[int, str]", config.id2label or {})  # PVT's has none where nobody named them
    return [str(names.get(index, f"LABEL_{index}")) for index in range(config.num_labels or 0)]


def unnamed(labels: list[str]) -> bool:
    """True for the names that transformers gives where nobody gave any: LABEL_0, LABEL_1, ..."""
    return bool(labels) and labels == [f"LABEL_{index}" for index in range(len(labels))]


def reordered(head: Head, order: list[int]) -> Head:
    """The same head with its outputs in another order: output i becomes what output `order[i]` was."""
    with torch.no_grad():
        head.out_proj.weight.copy_(head.out_proj.weight[order].clone())
        head.out_proj.bias.copy_(head.out_proj.bias[order].clone())
    if head.label_names is not None:
        head.label_names = [head.label_names[index] for index in order]
    return head


def _fits(pooling: str, states: States, answer: nn.Linear) -> bool:
    if pooling == "pooled" and states.pooled is None:
        return False
    return pool(pooling, states, None).shape[-1] == answer.in_features


def _activations(config: object) -> list[str]:
    named = [getattr(config, key, None) for key in ("hidden_act", "pooler_hidden_act", "classifier_activation")]
    return list(dict.fromkeys([*ACTIVATIONS, *(n for n in named if isinstance(n, str) and n in ACT2FN)]))


def _assembled(
    dense: nn.Linear | None, norm: nn.LayerNorm | None, answer: nn.Linear, pooling: str, activation: str
) -> Head:
    width, outputs = answer.in_features, answer.out_features
    epsilon = None if norm is None else norm.eps
    head = Head(width, outputs, pooling, dense=dense is not None, activation=activation, norm=epsilon).double()
    for ours, theirs in ((head.dense, dense), (head.norm, norm), (head.out_proj, answer)):
        if ours is not None and theirs is not None:
            ours.weight.copy_(theirs.weight)
            if theirs.bias is None:
                ours.bias.zero_()
            else:
                ours.bias.copy_(theirs.bias)
    return head
