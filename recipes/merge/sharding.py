"""Which strategies of Lightning can train an expert that is then saved whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.errors import RecipeError

if TYPE_CHECKING:
    from recipes.running.trainer import TrainerConfig

SHARDING = "lightning.pytorch.strategies.ModelParallelStrategy"


def check_sharding(config: TrainerConfig, model: str) -> None:
    """Refuse a strategy under which an expert would not be saved whole.

    Args:
        config: The `trainer:` block.
        model: The kind of model, as `training.model` has it.

    Raises:
        RecipeError: With the field and the way out.
    """
    given = config.strategy
    name = given if isinstance(given, str) else str(given.get("class_path", "")).rpartition(".")[2]
    if name.lower().startswith(("fsdp", "deepspeed")):
        raise RecipeError(
            f"trainer.strategy: expected one that leaves experts whole, got {name!r}, whose parts are not gathered; "
            f"use ddp, or {SHARDING} for a causal model that fits no single device"
        )
    if name != SHARDING.rpartition(".")[2]:
        return
    if model != "causal":
        raise RecipeError(f"trainer.strategy: expected ddp for model {model!r}, got {name}, which is for causal models")
    sizes = {} if isinstance(given, str) else given.get("init_args") or {}
    if sizes.get("tensor_parallel_size") != 1 or not isinstance(sizes.get("data_parallel_size"), int):
        raise RecipeError(
            "trainer.strategy.init_args: expected tensor_parallel_size 1 and data_parallel_size the number of "
            f"processes, since parameters are dealt out and matrices are not split; got {dict(sizes) or 'none'}"
        )
