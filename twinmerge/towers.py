"""The tower that sees, of models like CLIP whose folder holds a text model too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from twinmerge.headers import Checkpoint

PAIRS = ("clip", "siglip", "siglip2", "metaclip_2", "altclip", "chinese_clip", "align")


def tower_of(checkpoint: Checkpoint) -> Checkpoint:
    """The headers of the vision tower alone, of a folder of CLIP or its kin; any other as it is."""
    if checkpoint.config.get("model_type") not in PAIRS or checkpoint.kind != "full":
        return checkpoint
    kept = [name for name in checkpoint.tensors if name.startswith("vision_model.")]
    own = checkpoint.config.get("vision_config") or {}
    return replace(
        checkpoint,
        config={"model_type": f"{checkpoint.config['model_type']}_vision_model", **own},
        tensors={name: checkpoint.tensors[name] for name in kept},
        files={name: checkpoint.files[name] for name in kept},
    )


def tower_class(where: str | Path) -> Any:
    """The class that loads the body of a folder or Hub model: `AutoModel`, or the vision tower of CLIP and its kin.

    Args:
        where: a folder or a Hub name.
    """
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    return MODEL_MAPPING[type(config.vision_config)] if config.model_type in PAIRS else AutoModel
