"""The tower that sees, of models like CLIP whose folder holds a text model too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAIRS = ("clip", "siglip", "siglip2", "metaclip_2", "altclip", "chinese_clip", "align")


def tower_class(where: str | Path) -> Any:
    """The class that loads the body of a folder or Hub model: `AutoModel`, or the vision tower of CLIP and its kin.

    Args:
        where: a folder or a Hub name.
    """
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    return MODEL_MAPPING[type(config.vision_config)] if config.model_type in PAIRS else AutoModel
