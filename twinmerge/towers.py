"""The tower that sees, of models like CLIP whose folder holds a text model too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from twinmerge.headers import Checkpoint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PAIRS = ("clip", "siglip", "siglip2", "metaclip_2", "altclip", "chinese_clip", "align")


def tower_of(checkpoint: Checkpoint) -> Checkpoint:
    """The headers of the vision tower alone, of a folder of CLIP or its kin; any other as it is."""
    if not is_pair(checkpoint):
        return checkpoint
    kept = [name for name in checkpoint.tensors if name.startswith("vision_model.")]
    own = checkpoint.config.get("vision_config") or {}
    return replace(
        checkpoint,
        config={"model_type": f"{checkpoint.config['model_type']}_vision_model", **own},
        tensors={name: checkpoint.tensors[name] for name in kept},
        files={name: checkpoint.files[name] for name in kept},
    )


def is_pair(checkpoint: Checkpoint) -> bool:
    """Whether a folder is of CLIP or its kin, with or without its text model, and no adapter."""
    return checkpoint.kind == "full" and checkpoint.config.get("model_type") in PAIRS


def reads_texts(checkpoint: Checkpoint) -> bool:
    """Whether a folder of CLIP or its kin holds the text model too."""
    return is_pair(checkpoint) and any(name.startswith("text_model.") for name in checkpoint.tensors)


def encoder_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class of a model that was saved as the encoder of T5 and its kin alone; None for any other.

    `AutoModel` would put a decoder of random weights beside it.
    """
    import transformers

    name = next(iter(config.architectures or ()), "")
    found = getattr(transformers, name, None) if name.endswith("EncoderModel") else None
    return cast("type[PreTrainedModel] | None", found)


def tower_class(where: str | Path) -> type[PreTrainedModel]:
    """The class that loads the body of a folder or Hub model: `AutoModel`, `encoder_class`, or the tower of CLIP's kin.

    Args:
        where: a folder or a Hub name.
    """
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    if (encoder := encoder_class(config)) is not None:
        return encoder
    found: object = MODEL_MAPPING[type(config.vision_config)] if config.model_type in PAIRS else AutoModel
    return cast("type[PreTrainedModel]", found)


def around(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of a body's classifier: of a tower of CLIP or its kin that of the pair, of others their own.

    Args:
        config: of a body.
    """
    from transformers import CONFIG_MAPPING

    kind = config.model_type.removesuffix("_vision_model")
    if kind == config.model_type or kind not in PAIRS:
        return config
    outer: Any = CONFIG_MAPPING[kind]
    return cast("PretrainedConfig", outer(vision_config=config.to_dict()))


def load_body(where: str | Path, **options: object) -> PreTrainedModel:
    """A base without any head, in float32 and eval mode; of CLIP and its kin, the tower that sees.

    Args:
        where: a folder or a Hub name.
        options: further arguments of `from_pretrained`, as of the configuration.
    """
    import torch

    given: dict[str, Any] = {**options, "dtype": torch.float32, "trust_remote_code": False}
    made: PreTrainedModel = tower_class(where).from_pretrained(where, **given).eval()
    return made
