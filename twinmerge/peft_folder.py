"""Write one exclusive expert as a plain PEFT LoRA folder that reproduces it exactly on top of the shared expert.

A difference truncated at rank r is a LoRA of rank r: `lora_alpha` equals r in every layer, so the scaling is 1. Differences
of biases use `lora_bias`; norms and whatever has no LoRA form go whole into `modules_to_save`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from twinmerge.routed_layers import (
    FactoredLayer,
    RoutedAny,
    RoutedConv,
    RoutedConv1D,
    RoutedEmbedding,
    RoutedLayer,
    RoutedNorm,
)


def write_expert(twin: nn.Module, index: int, folder: Path) -> dict[str, int]:
    """Write expert number `index` of a routed model.

    Args:
        twin: a model made by `attach` or `load`.
        index: position among the twin's tasks.
        folder: made here; gets adapter_config.json and adapter_model.safetensors.

    Returns:
        The rank of every LoRA layer by module name.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    whole: list[str] = []
    biased = any(isinstance(m, FactoredLayer) and m.experts_bias is not None for m in twin.modules())
    for name, module in twin.named_modules():
        if isinstance(module, FactoredLayer):
            ranks[name] = _write_lora(name, module, index, biased, tensors)
        elif isinstance(module, RoutedLayer):
            whole.append(name)
            tensors.update({f"{name}.{leaf}": value for leaf, value in _merged(module, index).items()})
    rank = max(ranks.values(), default=1)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": "../..",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": biased,
        "fan_in_fan_out": any(isinstance(m, RoutedConv1D) for m in twin.modules()),
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(whole) or None,
        "rank_pattern": {k: r for k, r in ranks.items() if r != rank},
        "alpha_pattern": {k: r for k, r in ranks.items() if r != rank},
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(
        {f"base_model.model.{k}": v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    return ranks


def _write_lora(name: str, module: FactoredLayer, index: int, biased: bool, tensors: dict[str, Tensor]) -> int:
    mine = module.experts_owner == index
    up, down = module.experts_up[:, mine], module.experts_down[mine]
    if not down.shape[0]:  # PEFT has no rank 0
        up, down = up.new_zeros(up.shape[0], 1), down.new_zeros(1, down.shape[1])
    if isinstance(module, RoutedEmbedding):
        tensors[f"{name}.lora_embedding_A"], tensors[f"{name}.lora_embedding_B"] = up.t(), down.t()
    elif isinstance(module, RoutedConv):
        kernel = module.weight.shape[1:]  # type: ignore[union-attr]
        tensors[f"{name}.lora_A.weight"] = down.reshape(-1, *kernel)
        tensors[f"{name}.lora_B.weight"] = up.reshape(*up.shape, *[1] * (len(kernel) - 1))
    else:
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down, up
    if biased and not isinstance(module, RoutedEmbedding):
        none = torch.zeros(up.shape[0], dtype=up.dtype)
        tensors[f"{name}.lora_B.bias"] = none if module.experts_bias is None else module.experts_bias[index]
    return int(down.shape[0])


def _merged(module: RoutedLayer, index: int) -> dict[str, Tensor]:
    stock = {k: v for k, v in module.named_parameters(recurse=False) if not k.startswith("experts_")}
    if isinstance(module, RoutedAny):
        return {k: v + module.experts_delta[k][index] if k in module.experts_delta else v for k, v in stock.items()}
    if not isinstance(module, RoutedNorm):
        raise TypeError(f"{type(module).__name__} has no PEFT form.")
    deltas = {"weight": module.experts_weight, "bias": module.experts_bias}
    return {k: v if deltas[k] is None else v + deltas[k][index] for k, v in stock.items()}  # type: ignore[index]
