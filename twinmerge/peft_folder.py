"""Write one exclusive expert as a plain PEFT LoRA folder that reproduces it exactly on top of the shared expert.

A difference truncated at rank r is a LoRA of rank r: `lora_alpha` equals r in every layer, so the scaling is 1.
Differences of biases use `lora_bias`; norms and whatever has no LoRA form go whole into `modules_to_save`. Two things
PEFT cannot read so: `lora_bias` on embeddings, and a module that is written whole when one inside it has a name that
ends likewise (`embeddings` of a bare ViTModel, with its `patch_embeddings`). There the expert's own values stand under
the names of the model's (`bias: all`): PEFT puts them into the model, exactly, and holds one such adapter at a time.
`merge(..., dense="none")` makes folders that it mixes.
The two uses of a tied weight have an adapter each: exact in a forward, but PEFT's `merge_and_unload` adds both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import one_hot

from twinmerge.dense import is_routing, mixed_differences
from twinmerge.routed_images import FORWARDS, RoutedConv
from twinmerge.routed_layers import FactoredLayer, RoutedAny, RoutedConv1D, RoutedEmbedding, RoutedLayer
from twinmerge.twin_mixin import TwinMixin

NOTHING = "dummy-target-modules"  # PEFT's word for an adapter without factors


def write_expert(twin: TwinMixin, index: int, folder: Path) -> dict[str, int]:
    """Write expert number `index` of a routed model.

    Args:
        twin: a model made by `attach` or `load`.
        index: position among the twin's tasks.
        folder: made here; gets adapter_config.json and adapter_model.safetensors.

    Returns:
        The rank of every factored module by its name, and of every factored parameter of other modules by its own.
    """
    routed = {name: module for name, module in twin.named_modules() if isinstance(module, RoutedLayer)}
    lora = _lora_modules(routed)
    whole = [name for name in routed if name not in lora]
    kept = _kept(twin, whole)
    biased = any(module.experts_bias is not None for module in lora.values())
    if beside := kept is None or (biased and any(isinstance(module, RoutedEmbedding) for module in lora.values())):
        biased, kept = False, []
    else:
        whole, lora = kept, {n: m for n, m in lora.items() if not _within(n, kept)}
    tensors: dict[str, Tensor] = {}
    for name, module in lora.items():
        tensors.update({f"{name}.{leaf}": t for leaf, t in _lora(module, index, biased).items()})
    row = one_hot(torch.tensor(index), len(twin.tasks)).float()
    if beside:
        for name, module in lora.items():
            if module.experts_bias is not None:
                tensors[f"{name}.base_layer.bias"] = _merged(module, row)["bias"]
    for name in whole:
        tensors.update({f"{name}.{leaf}": t for leaf, t in _merged(twin.get_submodule(name), row).items()})
    ranks = {name: _lora_rank(module, index) for name, module in lora.items()}
    rank = max(ranks.values(), default=1)
    pattern = {f"^{re.escape(name)}": r for name, r in ranks.items() if r != rank}
    config: dict[str, object] = {
        "peft_type": "LORA",
        "base_model_name_or_path": "../..",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "all" if beside else "none",
        "lora_bias": biased,
        "fan_in_fan_out": any(isinstance(m, RoutedConv1D) for m in lora.values()),
        "target_modules": sorted(lora) or NOTHING,
        "modules_to_save": kept or None,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(
        {f"base_model.model.{k}": v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    return _ranks(routed, index)


def _kept(twin: TwinMixin, whole: list[str]) -> list[str] | None:
    """The modules that PEFT keeps whole when it is told these; None where it would put one within another.

    It takes every module whose name ends in one of them, dot or no dot, and then wants the weights of each.
    """
    found = [n for n, m in twin.named_modules() if n.endswith(tuple(whole)) and any(True for _ in m.parameters())]
    outer = [name for name in found if not _within(name, whole)]
    told = [name for name in found if name.endswith(tuple(outer))]
    return None if any(_within(name, told) for name in told) else sorted(told)


def _within(name: str, others: Iterable[str]) -> bool:
    """Whether a module is part of one of others."""
    return name.startswith(tuple(f"{other}." for other in others))


def _lora_modules(routed: dict[str, RoutedLayer]) -> dict[str, FactoredLayer]:
    """The factored layers that no other routed module contains: those inside one are saved whole with it.

    A convolution with a padding of its own (timm's) is saved whole too, as PEFT would put its factors beside another.
    """
    containers = tuple(f"{name}." for name, module in routed.items() if isinstance(module, RoutedAny))
    return {
        name: module
        for name, module in routed.items()
        if isinstance(module, FactoredLayer) and not name.startswith(containers) and _plain(module)
    }


def _plain(module: FactoredLayer) -> bool:
    return not isinstance(module, RoutedConv) or cast("type[nn.Module]", type(module).__bases__[1]).forward in FORWARDS


def _lora_rank(module: FactoredLayer, index: int) -> int:
    return max(1, int((module.experts_owner == index).sum()))  # PEFT has no rank 0


def _lora(module: FactoredLayer, index: int, biased: bool) -> dict[str, Tensor]:
    mine = module.experts_owner == index
    up, down = module.experts_up[:, mine], module.experts_down[mine]
    if not down.shape[0]:
        up, down = up.new_zeros(up.shape[0], 1), down.new_zeros(1, down.shape[1])
    if isinstance(module, RoutedEmbedding):
        return {"lora_embedding_A": up.t(), "lora_embedding_B": down.t()}
    if isinstance(module, RoutedConv):
        kernel = cast(Tensor, module.weight).shape[1:]
        up, down = up.reshape(*up.shape, *[1] * (len(kernel) - 1)), down.reshape(-1, *kernel)
    tensors = {"lora_A.weight": down, "lora_B.weight": up}
    if biased:
        bias = module.experts_bias
        tensors["lora_B.bias"] = up.new_zeros(up.shape[0]) if bias is None else bias[index]
    return tensors


def _merged(module: nn.Module, row: Tensor) -> dict[str, Tensor]:
    """All of a module's own parameters, those of modules within it included, with one expert's difference added."""
    differences = mixed_differences(module, row)
    running = ("running_mean", "running_var", "num_batches_tracked")
    buffers = ((name, b) for name, b in module.named_buffers() if name.rpartition(".")[2] in running)
    stock = {name: p for name, p in (*module.named_parameters(), *buffers) if not is_routing(name)}
    return {
        name: (p.to(differences[name].dtype) + differences[name]).to(p.dtype) if name in differences else p
        for name, p in stock.items()
    }


def _ranks(routed: dict[str, RoutedLayer], index: int) -> dict[str, int]:
    ranks = {}
    for name, module in routed.items():
        if isinstance(module, FactoredLayer):
            ranks[name] = int((module.experts_owner == index).sum())
        elif isinstance(module, RoutedAny):
            for leaf, up in module.experts_ups.items():
                ranks[f"{name}.{leaf.replace('/', '.')}"] = int(up.shape[-1])
    return ranks
