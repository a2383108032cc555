"""The routed model: one batched forward in which every input has its own mixture of the exclusive experts.

This file is both a module of ``twinmerge`` and, beside ``routed_layers.py``, the code inside a saved twin folder, so the two
need only torch, safetensors and transformers. Source of the method: Lu et al., "Twin-Merging: Dynamic Integration of Modular
Expertise in Model Merging", NeurIPS 2024, arXiv 2406.15479: theta(x) = theta_shared + sum_t w_t(x) SVD_r(theta_t - theta_shared).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from .routed_layers import Mixture, RoutedEmbedding, attach_layer, route_layer

FORMAT_VERSION = 1


# ---------------------------------------------------------------------------------------------------------------------
# Router and heads.


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
        self.kind, self.tasks, self.temperature, self.top_k, self.neighbours = (
            kind,
            tasks,
            temperature,
            top_k,
            neighbours,
        )
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

    def spec(self) -> dict[str, Any]:
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
        weights = (self(features) / self.temperature).softmax(-1)
        if 0 < self.top_k < self.tasks:
            kept = weights.topk(self.top_k, dim=-1)
            weights = torch.zeros_like(weights).scatter(-1, kept.indices, kept.values)
            weights = weights / weights.sum(-1, keepdim=True)
        return weights


class Head(nn.Module):
    """A task's own head on pooled token states: [layer norm] -> [dense -> tanh] -> linear.

    Args:
        width: hidden size of the encoder.
        labels: outputs; 1 for regression.
        pooling: `mean` over real tokens, `first` token or `last` real token.
        layer_norm: normalise the pooled feature, without parameters.
        dense: a tanh layer before the output, as in RoBERTa's classification head.
    """

    def __init__(
        self, width: int, labels: int, pooling: str = "mean", layer_norm: bool = False, dense: bool = False
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "first", "last"):
            raise ValueError(f"pooling '{pooling}' is unknown; choose mean, first or last.")
        self.pooling, self.layer_norm = pooling, layer_norm
        self.dense = nn.Linear(width, width) if dense else None
        self.out_proj = nn.Linear(width, labels)

    def pool(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Token states of shape (batch, tokens, width) to one feature each, shape (batch, width)."""
        if self.pooling == "mean":
            pooled = masked_mean(hidden, mask).to(hidden.dtype)
        elif self.pooling == "first":
            pooled = hidden[:, 0]
        else:
            tokens = torch.arange(hidden.shape[1], device=hidden.device)
            last = (tokens * (1 if mask is None else mask)).argmax(1) if mask is not None else tokens[-1:]
            pooled = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        return F.layer_norm(pooled, pooled.shape[-1:]) if self.layer_norm else pooled

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of shape (batch, labels)."""
        pooled = self.pool(hidden, mask)
        if self.dense is not None:
            pooled = torch.tanh(self.dense(pooled))
        return cast(Tensor, self.out_proj(pooled))


@dataclass
class TwinOutput:
    """What `classify` returns: logits (batch, most labels; minus infinity beyond a task's own), weights, head per row."""

    logits: Tensor
    router_weights: Tensor
    task: Tensor


# ---------------------------------------------------------------------------------------------------------------------
# The routed model.


class TwinMixin:
    """Adds routing to any transformers model; `TwinModel` and `TwinForCausalLM` put it over the stock class.

    Attributes:
        tasks: names of the exclusive experts, in the order of the router's outputs.
        router: the trained `Router`, or None: then `router_weights` must be given.
        heads: one `Head` per task that has its own, under the task's name.
    """

    mixture: Mixture
    tasks: list[str]
    router: Router | None
    heads: nn.ModuleDict

    def route(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The mixture of each input, from the input alone: shape (batch, tasks), rows summing to 1."""
        if self.router is None:
            raise ValueError("this twin has no router; pass router_weights of shape (batch, tasks), or train a router.")
        return self.router.weights(self.features(input_ids, attention_mask, **kwargs))

    def features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Router features: masked mean of the shared expert's last hidden state, shape (batch, width), float32."""
        with self.mixture.use(None):
            body = self.base_model  # type: ignore[attr-defined]
            call = body if body is not self else super().forward  # type: ignore[misc]
            hidden = call(input_ids=input_ids, attention_mask=attention_mask, **kwargs)[0]
        return masked_mean(hidden, attention_mask)

    def routed_forward(self, *args: Any, router_weights: Tensor | None = None, **kwargs: Any) -> Any:
        """The stock forward under this batch's mixture; inside `generate` the prompt's mixture is held."""
        if self.mixture.weights is not None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        ids = args[0] if args else kwargs.get("input_ids")
        if router_weights is None:
            if ids is None:
                raise ValueError("routing reads input_ids; pass them, or pass router_weights of shape (batch, tasks).")
            side = {k: kwargs[k] for k in ("token_type_ids", "position_ids") if kwargs.get(k) is not None}
            router_weights = self.route(ids, args[1] if len(args) > 1 else kwargs.get("attention_mask"), **side)
        with self.mixture.use(router_weights):
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    def generate(self, inputs: Tensor | None = None, router_weights: Tensor | None = None, **kwargs: Any) -> Any:
        """`generate` of transformers with the mixture computed once from the prompt and held while decoding."""
        prompt = inputs if inputs is not None else kwargs["input_ids"]
        if router_weights is None:
            with torch.no_grad():
                router_weights = self.route(prompt, kwargs.get("attention_mask"))
        with self.mixture.use(router_weights):
            return super().generate(inputs, **kwargs)  # type: ignore[misc]

    def classify(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        head: str | Sequence[str] | None = None,
        router_weights: Tensor | None = None,
        **kwargs: Any,
    ) -> TwinOutput:
        """Routed encoder, then a task head.

        Args:
            input_ids: shape (batch, tokens).
            attention_mask: shape (batch, tokens).
            head: the question asked, one name or one per row: it picks the head and nothing else. None lets the
                router's largest weight pick the head too.
            router_weights: shape (batch, tasks), overrides the router (an oracle, or a fixed mixture).
            kwargs: passed on to the encoder.

        Raises:
            ValueError: for a head that this twin does not have.
        """
        if router_weights is None:
            router_weights = self.route(input_ids, attention_mask, **kwargs)
        with self.mixture.use(router_weights):
            hidden = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)[0]  # type: ignore[misc]
        if head is None:
            task = router_weights.argmax(-1).expand(input_ids.shape[0])
        else:
            names = [head] * input_ids.shape[0] if isinstance(head, str) else list(head)
            if unknown := sorted(set(names) - set(self.heads)):
                raise ValueError(f"no head named {unknown[0]!r}; this twin has {', '.join(self.heads)}.")
            task = torch.tensor([self.tasks.index(n) for n in names], device=hidden.device)
        labels = max(cast(Head, h).out_proj.out_features for h in self.heads.values())
        logits = hidden.new_full((hidden.shape[0], labels), float("-inf"))
        for index in task.unique().tolist():
            rows = task == index
            part = self.heads[self.tasks[index]](hidden[rows], None if attention_mask is None else attention_mask[rows])
            logits[rows, : part.shape[1]] = part.to(logits.dtype)
        return TwinOutput(logits, router_weights, task)

    def train_only(self, *parts: str) -> Any:
        """Freeze everything but the named parts, any of `router`, `shared`, `experts`, `heads`; returns the model.

        Raises:
            ValueError: for any other part.
        """
        if unknown := sorted(set(parts) - {"router", "shared", "experts", "heads"}):
            raise ValueError(f"part {unknown[0]!r} is unknown; choose among router, shared, experts, heads.")
        for name, parameter in self.named_parameters():  # type: ignore[attr-defined]
            first = name.split(".")[0]
            part = first if first in ("router", "heads") else "experts" if ".experts_" in name else "shared"
            parameter.requires_grad_(part in parts)
        return self


def attach(
    model: nn.Module, tasks: Sequence[str], experts: Sequence[Mapping[str, Any]], router: Router | None = None
) -> Any:
    """Put routing over a stock transformers model that holds the shared expert, in place.

    Args:
        model: the stock model; its parameters stay, by name and value.
        tasks: names of the experts.
        experts: per task, parameter name -> (up (m, r), down (r, n)) of the weight as the layer multiplies it
            (out x in; embeddings: rows x width; convolutions: out x in*kernel), or a difference of the parameter's shape.
        router: None leaves the twin without one.

    Returns:
        The same object, now of class Twin<stock class>.

    Raises:
        ValueError: for a parameter the model does not have.
    """
    mixture, stock = Mixture(), type(model)
    owners: dict[str, dict[str, str]] = {}
    tied: dict[int, nn.Module] = {}
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in sorted({n for expert in experts for n in expert}):
        if name not in known:
            raise ValueError(f"the experts change parameter '{name}', which {stock.__name__} does not have.")
        owner, _, leaf = name.rpartition(".")
        owners.setdefault(owner, {})[leaf] = name
    for owner, leaves in owners.items():
        module = model.get_submodule(owner)
        differences = {leaf: [expert.get(name) for expert in experts] for leaf, name in leaves.items()}
        attach_layer(module, mixture, differences)
        if isinstance(module, RoutedEmbedding):
            tied[id(module.weight)] = module
    for module in list(model.modules()):  # a tied output head takes the embedding's own factors
        source = tied.get(id(getattr(module, "weight", None)))
        if source is not None and isinstance(module, nn.Linear):
            head = route_layer(module, mixture)
            head.experts_up, head.experts_down = source.experts_up, source.experts_down
            head.register_buffer("experts_owner", source.experts_owner, persistent=False)
            head.experts_bias = None

    model.__class__ = type(f"Twin{stock.__name__}", (TwinMixin, stock), {"forward": _with_signature(stock)})
    twin = cast(Any, model)
    twin.mixture, twin.tasks, twin.router, twin.heads = mixture, list(tasks), router, nn.ModuleDict()
    return twin


def _with_signature(stock: type) -> Any:
    # transformers asks the signature of forward which arguments a model takes (generate, Trainer, left padding).
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return TwinMixin.routed_forward(self, *args, **kwargs)

    signature = inspect.signature(stock.forward)  # type: ignore[attr-defined]
    parameters = list(signature.parameters.values())
    extra = inspect.Parameter("router_weights", inspect.Parameter.KEYWORD_ONLY, default=None)
    at = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    forward.__signature__ = signature.replace(parameters=[*parameters[:at], extra, *parameters[at:]])  # type: ignore[attr-defined]
    return forward


# ---------------------------------------------------------------------------------------------------------------------
# Reading a twin folder.


def read_expert(folder: Path, shared: Mapping[str, Tensor]) -> dict[str, Any]:
    """The differences that a PEFT LoRA folder holds: parameter name -> (up, down), or a dense difference.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        shared: the shared expert's parameters by name; whole modules in the folder become differences to them.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = {
        key.removeprefix("base_model.model."): value
        for key, value in load_file(folder / "adapter_model.safetensors").items()
    }
    differences: dict[str, Any] = {}
    for key, value in tensors.items():
        module, _, kind = key.partition(".lora_")
        if not kind:
            differences[key] = value.float() - shared[key].detach().float().cpu()
        elif kind == "B.bias":
            differences[f"{module}.bias"] = value
        elif kind in ("A.weight", "embedding_A"):
            rank = config.get("rank_pattern", {}).get(module, config["r"])
            alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
            scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
            if kind == "embedding_A":
                up, down = value.t(), tensors[f"{module}.lora_embedding_B"].t()
            else:
                up, down = tensors[f"{module}.lora_B.weight"].flatten(1), value.flatten(1)
            differences[f"{module}.weight"] = (up * scale, down)
    return differences


def assemble(model: nn.Module, folder: Path) -> Any:
    """Turn a stock model that holds a folder's shared expert into the folder's routed twin.

    Raises:
        ValueError: when the folder was written by a newer format.
    """
    card = json.loads((folder / "twin.json").read_text(encoding="utf-8"))
    if card["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{folder} has twin format {card['format_version']}, and this code reads up to {FORMAT_VERSION}; update it."
        )
    shared = dict(model.named_parameters(remove_duplicate=False))
    experts = [read_expert(folder / "experts" / task, shared) for task in card["tasks"]]
    router = None
    if card["router"] is not None:
        router = Router(**card["router"])
        router.load_state_dict(load_file(folder / "router.safetensors"))
    reference = next(model.parameters())
    twin = attach(model, card["tasks"], experts, router)
    for task, spec in card["heads"].items():
        tensors = load_file(folder / "heads" / f"{task}.safetensors")
        width, outputs = tensors["out_proj.weight"].shape[1], tensors["out_proj.weight"].shape[0]
        head = Head(width, outputs, spec["pooling"], spec["layer_norm"], "dense.weight" in tensors)
        head.load_state_dict(tensors)
        twin.heads[task] = head.to(reference.dtype)
    return twin.to(reference.device).eval()


class _Loader:
    """What transformers' Auto classes call with `trust_remote_code=True`."""

    auto: Any = None

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing to register: the folder names this file already."""

    @classmethod
    def from_pretrained(cls, path: str | Path, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Load the shared expert with the stock class and put the folder's routing over it."""
        folder = Path(path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(str(path), revision=kwargs.get("revision")))
        kwargs.pop("trust_remote_code", None)
        return assemble(cls.auto.from_pretrained(folder, *args, trust_remote_code=False, **kwargs), folder)


class TwinModel(_Loader):
    """`AutoModel.from_pretrained(folder, trust_remote_code=True)`."""

    auto = AutoModel


class TwinForCausalLM(_Loader):
    """`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`."""

    auto = AutoModelForCausalLM
