"""LoRA adapters and memory savings as a `training:` block asks for them, over any model of transformers."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, cast

from recipes.errors import RecipeError, RunError
from recipes.merge.experts import check_rank

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from recipes.merge.schema import Training


def check_quantised(training: Training) -> None:
    """Refuse a base in 4 bits on a machine that cannot hold one.

    Raises:
        RecipeError: With the field.
    """
    if not training.qlora:
        return
    import torch

    missing = [] if importlib.util.find_spec("bitsandbytes") else ["bitsandbytes (pip install bitsandbytes)"]
    missing += [] if torch.cuda.is_available() else ["a CUDA device"]
    if missing:
        raise RecipeError(
            f"training.qlora: expected false on a machine without {' and '.join(missing)}, got true; adapters over the "
            "base in bfloat16 take trainer.precision bf16-true"
        )


def adapted(model: PreTrainedModel, training: Training, task_type: str | None = None) -> PreTrainedModel | PeftModel:
    """The model with LoRA adapters where the block has a rank, and with checkpoints of activations where it says so.

    Args:
        model: Of transformers; changed in place.
        training: The block.
        task_type: PEFT's name of the task, for classifiers and language models.

    Raises:
        RunError: When the rank is above every matrix's, or no module has one of the names under ``lora_targets``.
    """
    if training.qlora:
        from peft import prepare_model_for_kbit_training

        settings = {"use_reentrant": False}
        model = prepare_model_for_kbit_training(model, training.gradient_checkpointing, settings)  # type: ignore[no-untyped-call]
    elif training.gradient_checkpointing:
        # Renamed in transformers 5; the positional argument is the same.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if not training.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model

    shapes = [tuple(p.shape) for p in model.parameters()]
    check_rank("training.lora_rank", training.lora_rank, shapes, RunError)
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
