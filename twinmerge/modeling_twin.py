"""Read a twin folder: its experts, router and heads over the shared expert that transformers has loaded.

In a saved twin folder this file, with the four that it is made of, is ``modeling_twin.py``: what
``from_pretrained(folder, trust_remote_code=True)`` runs. It needs torch, safetensors and transformers only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from .attaching import refuse_spread, statistics
from .twin_mixin import TwinMixin, TwinOutput, attach
from .twin_parts import Head, Router, masked_mean

__all__ = ["Head", "Router", "TwinMixin", "TwinOutput", "assemble", "attach", "masked_mean", "read_expert"]

FORMAT_VERSION = 2  # 1 had router.safetensors beside the shared expert, where vLLM takes it for weights


def read_expert(folder: Path, shared: Mapping[str, Tensor], ranks: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The differences that a PEFT LoRA folder holds: parameter name -> (up, down), or a dense difference.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        shared: the shared expert's parameters by name; whole modules in the folder become differences to them.
        ranks: module or parameter name -> rank of a difference; one that the folder holds whole gets its factors back.

    Raises:
        ValueError: when the folder lacks a module that its configuration names, or holds a tensor that nothing names.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    left = {
        key.removeprefix("base_model.model."): value
        for key, value in load_file(folder / "adapter_model.safetensors").items()
    }
    differences: dict[str, object] = {}
    for module in config["modules_to_save"] or ():
        names = [name for name in shared if name.startswith(f"{module}.")]
        if missing := [name for name in names if name not in left] or not names:
            raise ValueError(f"{folder} lacks {missing} of the module '{module}' that its configuration names.")
        left = {k: v for k, v in left.items() if k.rpartition(".")[2] != "num_batches_tracked"}
        for name in names:
            difference = left.pop(name).double() - shared[name].detach().double().cpu()
            if difference.any():
                rank = (ranks or {}).get(name, (ranks or {}).get(name.removesuffix(".weight")))
                differences[name] = difference if rank is None else _refactored(difference, rank)
    for module in config["target_modules"] or ():
        if f"{module}.lora_embedding_A" in left:
            up, down = left.pop(f"{module}.lora_embedding_A").t(), left.pop(f"{module}.lora_embedding_B").t()
        else:
            up, down = left.pop(f"{module}.lora_B.weight"), left.pop(f"{module}.lora_A.weight")
        width = _pattern(config, "rank_pattern", module, config["r"])
        alpha = _pattern(config, "alpha_pattern", module, config["lora_alpha"])
        scale = alpha / (width**0.5 if config.get("use_rslora") else width)
        differences[f"{module}.weight"] = (up.flatten(1) * scale, down.flatten(1))
        if config.get("lora_bias") and (bias := left.pop(f"{module}.lora_B.bias")).any():
            differences[f"{module}.bias"] = bias * scale
    if left:
        raise ValueError(f"{folder} holds the tensor '{min(left)}' that its configuration does not name.")
    return differences


def _pattern(config: Mapping[str, Any], key: str, module: str, default: float) -> float:
    patterns = config.get(key) or {}
    return next((v for k, v in patterns.items() if re.fullmatch(rf"(.*\.)?({k})", module)), default)


def _refactored(difference: Tensor, rank: int) -> Any:
    """Factors of a difference that is of low rank up to rounding; the difference itself where they are not smaller."""
    matrix = difference if difference.dim() == 3 else difference.flatten(1)
    m, n = matrix.shape[-2:]
    if not 0 < rank * (m + n) < m * n:
        return difference
    wide = matrix if m >= n else matrix.mT
    basis = torch.linalg.eigh(wide.mT @ wide).eigenvectors[..., -rank:]
    up, down = wide @ basis, basis.mT
    return (up, down) if m >= n else (down.mT, up.mT)


def assemble(model: nn.Module, folder: Path) -> Any:
    """Turn a stock model that holds a folder's shared expert into the folder's routed twin.

    Raises:
        ValueError: when the folder was written by a newer format, or lacks or adds a tensor, or the model is quantised
            or spread over several places.
    """
    card = json.loads((folder / "twin.json").read_text(encoding="utf-8"))
    if card["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{folder} has twin format {card['format_version']}, and this code reads up to {FORMAT_VERSION}; update it."
        )
    refuse_spread(model)
    shared = {**dict(model.named_parameters(remove_duplicate=False)), **statistics(model)}
    experts = [read_expert(folder / "experts" / task, shared, card["ranks"][task]) for task in card["tasks"]]
    router = None
    if card["router"] is not None:
        router = Router(**card["router"])
        place = "router.safetensors" if card["format_version"] == 1 else "router/router.safetensors"
        router.load_state_dict(load_file(folder / place))
    reference = next(model.parameters())
    twin = attach(model, card["tasks"], experts, router)
    twin.router_reads = card.get("router_reads", "last")
    twin.left_out = card.get("left_out", {})
    for task, spec in card["heads"].items():
        head = Head.from_tensors(load_file(folder / "heads" / f"{task}.safetensors"), spec)
        twin.heads[task] = head.to(reference.dtype)
    return twin.to(reference.device).eval()


# ---------------------------------------------------------------------------------------------------------------------
# What transformers' Auto classes call with trust_remote_code=True.


class _Loader:
    auto: Any = None

    @classmethod
    def register_for_auto_class(cls, auto_class: object = None) -> None:
        """Nothing to register: the folder names this file already."""

    @classmethod
    def from_pretrained(cls, path: str | Path, *args: object, config: object = None, **kwargs: Any) -> Any:
        """Load the shared expert with the stock class and put the folder's routing over it."""
        folder = Path(path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            hub = {k: kwargs[k] for k in ("revision", "token", "cache_dir", "local_files_only") if k in kwargs}
            folder = Path(snapshot_download(str(path), **hub))
        if config is not None:  # made by the Auto class, with the caller's own settings in it
            kwargs["config"] = config
        kwargs = {**kwargs, "trust_remote_code": False, "output_loading_info": False}
        return assemble(cls.auto.from_pretrained(folder, *args, **kwargs), folder)


class TwinForCausalLM(_Loader):
    """`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`."""

    auto = transformers.AutoModelForCausalLM


class TwinForSeq2SeqLM(_Loader):
    """`AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)`."""

    auto = transformers.AutoModelForSeq2SeqLM


class TwinForMaskedLM(_Loader):
    """`AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)`."""

    auto = transformers.AutoModelForMaskedLM


class TwinForSequenceClassification(_Loader):
    """`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)`."""

    auto = transformers.AutoModelForSequenceClassification


class TwinForImageClassification(_Loader):
    """`AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)`."""

    auto = transformers.AutoModelForImageClassification


class TwinModel(_Loader):
    """`AutoModel.from_pretrained(folder, trust_remote_code=True)`."""

    auto = transformers.AutoModel


class TwinClassifier(TwinModel):
    """`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` of a twin with heads."""

    @classmethod
    def from_pretrained(cls, path: str | Path, *args: object, config: object = None, **kwargs: Any) -> Any:
        """The routed model that answers with its heads; `head="<task>"` among the options asks one question only."""
        head = kwargs.pop("head", None)
        return as_classifier(super().from_pretrained(path, *args, config=config, **kwargs), head)


def as_classifier(twin: Any, head: str | None = None) -> Any:
    """A twin whose forward returns the logits of its heads, in place; ``config.id2label`` names them.

    Args:
        twin: with at least one head.
        head: the question that every input is asked; None lets the router choose the head of each, and the labels of
            all heads stand side by side, those of the heads that did not answer at minus infinity.

    Raises:
        ValueError: for a head that the twin does not have.
    """
    if head is not None and head not in twin.heads:
        raise ValueError(f"no head named {head!r}; this twin has {', '.join(twin.heads) or 'no heads'}.")
    asked = [head] if head is not None else [task for task in twin.tasks if task in twin.heads]
    names: list[str] = []
    for task in asked:
        count = twin.heads[task].out_proj.out_features
        own = twin.heads[task].label_names or ([task] if count == 1 else [f"LABEL_{i}" for i in range(count)])
        names += [f"{task}: {name}" if len(asked) > 1 else str(name) for name in own]
    twin.config.id2label, twin.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    twin.answering = asked
    twin.__class__ = _classifier_class(cast(Any, type(twin)))
    return twin


@cache
def _classifier_class(twin: Any) -> Any:
    def forward(
        self: Any, input_ids: object = None, attention_mask: object = None, labels: Any = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        if self.mixture.weights is not None:
            made: SequenceClassifierOutput = super(type(self), self).forward(
                input_ids=input_ids, attention_mask=attention_mask, **kwargs
            )
            return made
        kwargs.pop("return_dict", None)
        head = kwargs.pop("head", self.answering[0] if len(self.answering) == 1 else None)
        out = self.classify(input_ids, attention_mask, head, **kwargs)
        sizes = [self.heads[task].out_proj.out_features for task in self.answering]
        logits = out.logits.new_full((len(out.logits), sum(sizes)), float("-inf"))
        for index, (task, size) in enumerate(zip(self.answering, sizes, strict=True)):
            mine, start = out.task == self.tasks.index(task), sum(sizes[:index])
            logits[mine, start : start + size] = out.logits[mine, :size]
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    return type(f"{twin.__name__}ForSequenceClassification", (twin,), {"forward": forward})


# Specific before general: the first whose table holds a model's class is the one its folder names.
LOADERS = (
    TwinForCausalLM,
    TwinForSeq2SeqLM,
    TwinForMaskedLM,
    TwinForSequenceClassification,
    TwinForImageClassification,
    TwinModel,
)
