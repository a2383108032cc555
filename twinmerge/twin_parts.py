"""The parts of a twin beside its experts, router and task heads, and what it answers.

Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .states import States

POOLINGS = ("first", "last", "mean", "patches", "first_patches", "pooled", "tokens")


def check_number(name: str, value: object, low: float, *, whole: bool = True, above: bool = False) -> None:
    """Refuse what is no finite number from `low` on. Part of a twin's folder, which must need no other package of ours.

    Raises:
        ValueError: in one sentence.

    >>> check_number("tasks", 0, 1)
    Traceback (most recent call last):
    ValueError: tasks is 0; give a whole number of at least 1.
    """
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    fits = math.isfinite(number) and (number > low if above else number >= low)
    if not fits or (whole and not isinstance(value, numbers.Integral)):
        bound = f"above {low:g}" if above else f"of at least {low:g}"
        raise ValueError(f"{name} is {value!r}; give a {'whole ' if whole else ''}number {bound}.")


def masked_mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real tokens, so that padding changes nothing.

    Args:
        hidden: shape (batch, tokens, width).
        mask: shape (batch, tokens), 1 for real tokens; None counts all.

    Returns:
        Shape (batch, width), in float32.

    >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])).item()
    2.0
    """
    if mask is None:
        return hidden.float().mean(1)
    weight = mask.to(torch.float32).unsqueeze(-1)
    return (hidden.float() * weight).sum(1) / weight.sum(1).clamp_min(1.0)


def generated_state(twin: Any, stock: Any, tokens: Tensor, mask: Tensor | None, length: int = 16) -> Tensor:
    """Router features of the paper's code for language models: the state of the last token that a prompt begets.

    The shared expert goes on with each prompt, and the last-layer state of its last token is read. The paper's code
    draws up to 16 tokens; here the likeliest are taken, so that a prompt's mixture depends on nothing beside it.

    Args:
        twin: the twin.
        stock: the class of its stock model, whose `generate` knows no routing.
        tokens: prompts, shape (batch, tokens).
        mask: shape (batch, tokens), padding on either side; None counts all.
        length: tokens to generate at most.

    Returns:
        Shape (batch, width), in float32.
    """
    mask = torch.ones_like(tokens) if mask is None else mask.long()
    order = mask.argsort(dim=1, stable=True)  # generation needs the padding on the left
    tokens, mask = tokens.gather(1, order), mask.gather(1, order)
    ends = twin.generation_config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    pad = twin.generation_config.pad_token_id
    given = {"do_sample": False, "num_beams": 1, "max_new_tokens": length, "pad_token_id": (ends or [0])[0]}
    given |= {} if pad is None else {"pad_token_id": pad}
    none = torch.zeros(1, len(twin.tasks), device=tokens.device)
    with torch.no_grad(), twin.mixture.use(none):  # no share of any exclusive expert is the shared expert
        said = stock.generate(twin, input_ids=tokens, attention_mask=mask, **given)
    new = said[:, tokens.shape[1] :]
    over = torch.isin(new, torch.tensor(ends, device=new.device, dtype=new.dtype)).long()
    mask = torch.cat([mask, (over.cumsum(1) - over == 0).long()], 1)  # up to the first end of text
    hidden = twin._hidden(said, mask)
    last = (torch.arange(said.shape[1], device=said.device) * mask).argmax(1)
    return cast(Tensor, hidden[torch.arange(len(hidden), device=said.device), last].float())


@dataclass
class TwinOutput:
    """What `classify` returns.

    Attributes:
        logits: shape (batch, most labels), or (batch, tokens, most labels) of heads that answer every token; minus
            infinity beyond the labels of a row's own head.
        router_weights: shape (batch or 1, tasks).
        task: shape (batch,), index of the task whose head answered.
        hidden_states: of every layer, where asked for by `output_hidden_states`.
        attentions: likewise by `output_attentions`.
    """

    logits: Tensor
    router_weights: Tensor
    task: Tensor
    hidden_states: object = None
    attentions: object = None


class Router(nn.Module):
    """Features of the shared expert to one weight per exclusive expert: softmax(logits / temperature).

    Kinds: `mlp`, the paper's network (three linear layers, batch norm, LeakyReLU, dropout 0.5); `linear`, multinomial
    logistic regression; `knn`, training-free votes of the nearest stored training features by cosine (a deviation).

    Args:
        width: features, at least 1.
        tasks: experts, at least 1.
        kind: `mlp`, `linear` or `knn`.
        temperature: above 0; small values make the mixture harder.
        top_k: keep the largest k weights and renormalise (a deviation); 0 keeps all, as in the paper.
        neighbours: votes counted by `knn`.
        bank: stored features of `knn`.
    """

    mean: Tensor
    std: Tensor
    bank: Tensor
    bank_task: Tensor

    def __init__(
        self,
        width: int,
        tasks: int,
        kind: str = "mlp",
        temperature: float = 1.0,
        top_k: int = 0,
        neighbours: int = 10,
        bank: int = 0,
    ) -> None:
        super().__init__()
        check_number("the router's temperature", temperature, 0, whole=False, above=True)
        for name, value, low in (("width", width, 1), ("tasks", tasks, 1), ("top_k", top_k, 0)):
            check_number(f"the router's {name}", value, low)
        check_number("the router's neighbours", neighbours, 1)
        check_number("the router's bank", bank, 0)
        if top_k > tasks:
            raise ValueError(f"the router's top_k is {top_k}, but there are {tasks} tasks; give at most that, or 0.")
        self.kind, self.tasks, self.temperature = kind, tasks, temperature
        self.top_k, self.neighbours = top_k, neighbours
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        if kind == "mlp":
            hidden = 2 * width
            layers = [
                layer
                for i in (width, hidden)
                for layer in (nn.Linear(i, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(), nn.Dropout(0.5))
            ]
            self.net: nn.Module = nn.Sequential(*layers, nn.Linear(hidden, tasks))
        elif kind == "linear":
            self.net = nn.Linear(width, tasks)
        elif kind == "knn":
            self.register_buffer("bank", torch.zeros(bank, width))
            self.register_buffer("bank_task", torch.zeros(bank, dtype=torch.long))
        else:
            raise ValueError(f"router kind '{kind}' is unknown; choose mlp, linear or knn.")

    def train(self, mode: bool = True) -> Router:
        """Training mode for a router that is trained; a frozen one always evaluates (no dropout, statistics kept)."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def spec(self) -> dict[str, object]:
        """The arguments that make this router again, as plain values."""
        bank = self.bank.shape[0] if self.kind == "knn" else 0
        return {
            "width": self.mean.shape[0],
            "tasks": self.tasks,
            "kind": self.kind,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "neighbours": self.neighbours,
            "bank": bank,
        }

    def standardise(self, features: Tensor) -> None:
        """Take the mean and standard deviation of training features, shape (items, width), as this router's scale."""
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp_min(1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """Logits of shape (batch, tasks) from features of shape (batch, width)."""
        scaled = (features.to(self.mean.dtype) - self.mean) / self.std
        if self.kind != "knn":
            return cast(Tensor, self.net(scaled))
        similar = F.normalize(scaled, dim=-1) @ F.normalize(self.bank, dim=-1).t()
        nearest = self.bank_task[similar.topk(min(self.neighbours, self.bank.shape[0]), dim=-1).indices]
        votes = F.one_hot(nearest, self.tasks).sum(1).to(features.dtype)
        return (votes / votes.sum(-1, keepdim=True)).clamp_min(1e-8).log()

    def weights(self, features: Tensor) -> Tensor:
        """Weights of shape (batch, tasks), each row summing to 1."""
        weights: Tensor = (self(features) / self.temperature).softmax(-1)
        if 0 < self.top_k < self.tasks:
            kept = weights.topk(self.top_k, dim=-1)
            weights = torch.zeros_like(weights).scatter(-1, kept.indices, kept.values)
            weights = weights / weights.sum(-1, keepdim=True)
        return weights


def pool(pooling: str, states: States | Tensor, mask: Tensor | None) -> Tensor:
    """States of a body to one feature each.

    Args:
        pooling: `mean` over real tokens, `first` token, `last` real token, `patches` (the mean of all but the first
            token), `first_patches` (both side by side, as in DINOv2), `pooled` (what the body pools to itself), or
            `tokens`, which keeps them all.
        states: of the body, or token states alone, shape (batch, tokens, width).
        mask: shape (batch, tokens), 1 for real tokens; None counts all.

    Returns:
        Shape (batch, width), or (batch, tokens, width).

    Raises:
        ValueError: where what the body pools to is read, and there is none.
    """
    states = states if isinstance(states, States) else States(states)
    hidden = states.tokens
    if pooling == "pooled":
        if states.pooled is None:
            raise ValueError("the head reads what the body pools to, and this body pools nothing.")
        return states.pooled
    if pooling == "mean":
        return masked_mean(hidden, mask).to(hidden.dtype)
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "tokens":
        return hidden
    if pooling in ("patches", "first_patches"):
        rest = masked_mean(hidden[:, 1:], None if mask is None else mask[:, 1:]).to(hidden.dtype)
        return rest if pooling == "patches" else torch.cat([hidden[:, 0], rest], -1)
    tokens = torch.arange(hidden.shape[1], device=hidden.device)
    last = tokens[-1:] if mask is None else (tokens * mask).argmax(1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


class Head(nn.Module):
    """A task's own head on the token states: pool -> [layer norm] -> [dense -> activation] -> [norm] -> linear.

    Args:
        width: hidden size of the encoder.
        labels: outputs; 1 for regression.
        pooling: one of `POOLINGS`, see `pool`; `tokens` is an answer for every token.
        layer_norm: normalise the pooled feature, without parameters.
        dense: a layer before the output, as in RoBERTa's classification head or BERT's pooler.
        activation: after the dense layer, a name of transformers' `ACT2FN` (`linear` is none).
        norm: epsilon of a trained layer norm before the output, as in ModernBERT's head; None has none.
        inner: outputs of the dense layer, such as CLIP's projection; 0 has as many as the width.
        unit: bring what the output layer reads to length 1, as CLIP and SigLIP compare images with texts.

    Attributes:
        label_names: what the outputs stand for, in order; empty for a regression, None where nobody said.
        problem: `problem_type` of the classifier that it came from: `multi_label_classification` answers yes or no
            to every label, `regression` with numbers; None is the one best label, or one number for a single output.
    """

    def __init__(
        self,
        width: int,
        labels: int,
        pooling: str = "mean",
        layer_norm: bool = False,
        dense: bool = False,
        activation: str = "tanh",
        norm: float | None = None,
        inner: int = 0,
        unit: bool = False,
    ) -> None:
        super().__init__()
        check_number("the head's width", width, 1)
        check_number("the head's inner", inner, 0)
        check_number("the head's labels", labels, 1)
        if norm is not None:
            check_number("the head's norm", norm, 0, whole=False)
        for name, value in (("layer_norm", layer_norm), ("dense", dense), ("unit", unit)):
            if not isinstance(value, bool):
                raise ValueError(f"the head's {name} is {value!r}; give True or False.")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling '{pooling}' is unknown; choose one of {', '.join(POOLINGS)}.")
        if activation not in ACT2FN:
            raise ValueError(f"activation '{activation}' is unknown; choose one of {', '.join(ACT2FN)}.")
        self.pooling, self.layer_norm, self.activation = pooling, layer_norm, activation
        self.label_names: list[str] | None = None
        self.problem: str | None = None
        read = inner or width if dense else width
        self.unit = unit
        self.dense = nn.Linear(width, read) if dense else None
        self.norm = None if norm is None else nn.LayerNorm(read, norm)
        self.out_proj = nn.Linear(read, labels)

    def spec(self) -> dict[str, object]:
        """What `from_tensors` needs to make this head again beside its tensors, as plain values."""
        return {
            "pooling": self.pooling,
            "layer_norm": self.layer_norm,
            "activation": self.activation,
            "norm": None if self.norm is None else self.norm.eps,
            "labels": self.label_names,
            "problem": self.problem,
            **({"unit": True} if self.unit else {}),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> Head:
        """The head of a specification (`spec`; absent entries have the defaults of `Head`) with its tensors."""
        outputs, read = tensors["out_proj.weight"].shape
        dense = tensors.get("dense.weight")
        width, inner = (read, 0) if dense is None else (dense.shape[1], dense.shape[0])
        options = {key: spec[key] for key in ("pooling", "layer_norm", "activation", "norm", "unit") if key in spec}
        head = cls(width, outputs, dense=dense is not None, inner=inner, **options)
        head.load_state_dict(dict(tensors))
        labels = spec.get("labels")
        head.label_names = None if labels is None else list(labels)
        head.problem = spec.get("problem")
        return head

    def forward(self, states: States | Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of shape (batch, labels), or (batch, tokens, labels) of a head on `tokens`."""
        pooled = pool(self.pooling, states, mask)
        pooled = F.layer_norm(pooled, pooled.shape[-1:]) if self.layer_norm else pooled
        if self.dense is not None:
            pooled = ACT2FN[self.activation](self.dense(pooled))
        if self.norm is not None:
            pooled = self.norm(pooled)
        if self.unit:
            pooled = F.normalize(pooled, dim=-1)
        return cast(Tensor, self.out_proj(pooled))


def head_loss(head: Head, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss that a head is trained with, as transformers chooses it: of numbers, of several labels, or of one class.

    Args:
        head: says which by its `problem` and its number of outputs.
        logits: shape (batch, outputs), or (batch, tokens, outputs).
        labels: numbers, shape (batch,) or (batch, outputs); yes or no, shape (batch, outputs); or classes, shape
            (batch,) or (batch, tokens), where -100 counts for nothing.
    """
    logits = logits.float()
    if head.problem == "regression" or (logits.shape[-1] == 1 and head.problem is None and head.pooling != "tokens"):
        return F.mse_loss(logits.reshape(labels.shape), labels.float())
    if head.problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float())
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())
