"""LoRA adapters and memory savings as a `training:` block asks for them, over any model of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from recipes.errors import RunError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from recipes.merge.schema import Training


def adapted(model: PreTrainedModel, training: Training, task_type: str | None = None) -> PreTrainedModel | PeftModel:
    """The model with LoRA adapters where the block has a rank, and with checkpoints of activations where it says so.

    Args:
        model: Of transformers; changed in place.
        training: The block.
        task_type: PEFT's name of the task, for classifiers and language models.

    Raises:
        RunError: When no module has one of the names under ``lora_targets``.
    """
    if training.gradient_checkpointing:
        # Renamed in transformers 5; the positional argument is the same.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if not training.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type=task_type,
        r=training.lora_rank,
        lora_alpha=cast(int, training.lora_alpha or 2 * training.lora_rank),  # PEFT takes fractions too
        lora_dropout=training.lora_dropout,
        target_modules=list(training.lora_targets) or "all-linear",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        reason = " ".join(str(error).split())[:160]
        raise RunError(
            f"training.lora_targets: {', '.join(training.lora_targets)} cannot be adapted ({reason})"
        ) from error
