"""Read a twin folder: its experts, router and heads over the shared expert that transformers has loaded.

In a saved twin folder this file, with the four that it is made of, is ``modeling_twin.py``: what
``from_pretrained(folder, trust_remote_code=True)`` runs. It needs torch, safetensors and transformers only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from .answering import as_classifier
from .attaching import refuse_spread, statistics
from .mixture import Difference
from .twin_mixin import TwinMixin, attach
from .twin_parts import Head, Router, TwinOutput, masked_mean

__all__ = [
    "Head",
    "Router",
    "TwinMixin",
    "TwinOutput",
    "as_classifier",
    "assemble",
    "attach",
    "masked_mean",
    "read_expert",
]

NOTHING_AMISS: dict[str, set[str]] = {key: set() for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
FORMAT_VERSION = 3  # the newest that is read: a folder without exclusive experts, one dense model with several heads
WITH_EXPERTS = 2  # of all others; 1 had router.safetensors beside the shared expert, where vLLM takes it for weights


def read_expert(
    folder: Path, shared: Mapping[str, Tensor], ranks: Mapping[str, int] | None = None
) -> dict[str, Difference]:
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
    differences: dict[str, Difference] = {}
    names = []
    for module in config["modules_to_save"] or ():
        names += (mine := [name for name in shared if name.startswith(f"{module}.")])
        if missing := [name for name in mine if name not in left] or not mine:
            raise ValueError(f"{folder} lacks {missing} of the module '{module}' that its configuration names.")
    if config.get("bias") == "all":  # values beside the factors, under the names of the model's own
        names += [name for name in shared if name in left and name not in names]
    if names:
        left = {k: v for k, v in left.items() if k.rpartition(".")[2] != "num_batches_tracked"}
    for name in names:
        difference = left.pop(name).double() - shared[name].detach().double().cpu()
        if difference.any():
            rank = (ranks or {}).get(name, (ranks or {}).get(name.removesuffix(".weight")))
            differences[name] = difference if rank is None else _refactored(difference, rank)
    targets = config["target_modules"] or ()
    for module in () if isinstance(targets, str) else targets:  # PEFT's word for none, else a list
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
        if config.get("bias") == "all" and f"{module}.base_layer.bias" in left:
            own = left.pop(f"{module}.base_layer.bias").double() - shared[f"{module}.bias"].detach().double().cpu()
            if own.any():
                differences[f"{module}.bias"] = own
    if left:
        raise ValueError(f"{folder} holds the tensor '{min(left)}' that its configuration does not name.")
    return differences


def _pattern(config: Mapping[str, Any], key: str, module: str, default: float) -> float:
    patterns = config.get(key) or {}
    return next((v for k, v in patterns.items() if re.fullmatch(rf"(.*\.)?({k})", module)), default)


def _refactored(difference: Tensor, rank: int) -> Difference:
    """Factors of a difference that is of low rank up to rounding; the difference itself where they are not smaller."""
    matrix = difference if difference.dim() == 3 else difference.flatten(1)
    m, n = matrix.shape[-2:]
    if not 0 < rank * (m + n) < m * n:
        return difference
    wide = matrix if m >= n else matrix.mT
    basis = torch.linalg.eigh(wide.mT @ wide).eigenvectors[..., -rank:]
    up, down = wide @ basis, basis.mT
    return (up, down) if m >= n else (down.mT, up.mT)


def assemble(model: transformers.PreTrainedModel, folder: Path) -> TwinMixin:
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
    ranks = card["ranks"]
    if ranks or card["format_version"] < FORMAT_VERSION:
        experts = [read_expert(folder / "experts" / task, shared, ranks[task]) for task in card["tasks"]]
    else:
        experts = [{} for _ in card["tasks"]]
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
    twin.to(reference.device)  # type: ignore[arg-type]  # transformers wraps the method, and its types are lost
    twin.eval()
    return twin


# ---------------------------------------------------------------------------------------------------------------------
# What transformers' Auto classes call with trust_remote_code=True.


Told = tuple[TwinMixin, dict[str, set[str]]]  # a twin, and that no tensor was missing or left over


class Loader:
    """How an Auto class of transformers makes a twin of a folder."""

    auto: Any = None

    @classmethod
    def stock(cls, folder: Path) -> type[transformers.PreTrainedModel]:
        """What loads the shared expert of a folder."""
        return cast("type[transformers.PreTrainedModel]", cls.auto)

    @classmethod
    def register_for_auto_class(cls, auto_class: object = None) -> None:
        """Nothing to register: the folder names this file already."""

    @classmethod
    def from_pretrained(cls, path: str | Path, *args: object, config: object = None, **kwargs: Any) -> TwinMixin | Told:
        """Load the shared expert with the stock class and put the folder's routing over it."""
        folder = Path(path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            hub = {k: kwargs[k] for k in ("revision", "token", "cache_dir", "local_files_only") if k in kwargs}
            folder = Path(snapshot_download(str(path), **hub))
        if config is not None:  # made by the Auto class, with the caller's own settings in it
            kwargs["config"] = config
        told = kwargs.pop("output_loading_info", False)
        twin = assemble(
            cls.stock(folder).from_pretrained(folder, *args, **{**kwargs, "trust_remote_code": False}), folder
        )
        return (twin, NOTHING_AMISS) if told else twin  # a folder that lacks or adds a tensor was refused


class TwinForCausalLM(Loader):
    """`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`."""

    auto = transformers.AutoModelForCausalLM


class TwinForSeq2SeqLM(Loader):
    """`AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)`."""

    auto = transformers.AutoModelForSeq2SeqLM


class TwinForMaskedLM(Loader):
    """`AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)`."""

    auto = transformers.AutoModelForMaskedLM


class TwinForSequenceClassification(Loader):
    """`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)`."""

    auto = transformers.AutoModelForSequenceClassification


class TwinForImageClassification(Loader):
    """`AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)`."""

    auto = transformers.AutoModelForImageClassification


class TwinModel(Loader):
    """`AutoModel.from_pretrained(folder, trust_remote_code=True)`."""

    auto = transformers.AutoModel


class TwinOfItsClass(TwinModel):
    """`AutoModel.from_pretrained(folder, trust_remote_code=True)` of T5's encoder, CLIP's projected tower and such."""

    @classmethod
    def stock(cls, folder: Path) -> type[transformers.PreTrainedModel]:
        """The class that the folder's configuration names."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return cast("type[transformers.PreTrainedModel]", getattr(transformers, config["architectures"][0]))


class TwinClassifier(TwinOfItsClass):
    """`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` of a twin with heads."""

    tokens = False

    @classmethod
    def from_pretrained(cls, path: str | Path, *args: object, config: object = None, **kwargs: Any) -> TwinMixin | Told:
        """The routed model that answers with its heads; `head="<task>"` among the options asks one question only."""
        head, told = kwargs.pop("head", None), kwargs.pop("output_loading_info", False)
        twin = cast(TwinMixin, super().from_pretrained(path, *args, config=config, **kwargs))
        made = as_classifier(twin, head, cls.tokens)
        return (made, NOTHING_AMISS) if told else made


class TwinTokenClassifier(TwinClassifier):
    """`AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True)` of a twin with such heads."""

    tokens = True


# Specific before general: the first whose table holds a model's class is the one its folder names.
LOADERS = (
    TwinForCausalLM,
    TwinForSeq2SeqLM,
    TwinForMaskedLM,
    TwinForSequenceClassification,
    TwinForImageClassification,
    TwinModel,
)
