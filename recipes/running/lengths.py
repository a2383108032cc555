"""How long a training is: the batches that Lightning would take of each split, and the updates that they make."""

from __future__ import annotations

import math
from collections.abc import Mapping

from recipes.errors import RecipeError
from recipes.running.trainer import TrainerConfig

SPLITS = {"train": "train", "validation": "val", "test": "test"}  # as the keys of the block call them


def in_parts(config: TrainerConfig) -> bool:
    """Whether a trainer says anything that depends on the number of batches."""
    keys = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")
    shares = [getattr(config, key) for key in keys]
    return any(isinstance(share, float) and share for share in shares) or isinstance(config.val_check_interval, int)


def check_batches(config: TrainerConfig, batches: Mapping[str, int]) -> int | None:
    """Refuse shares of batches that are less than one, and validations that never come.

    Args:
        config: The `trainer:` block.
        batches: Batches of a pass over each split on one process: train, and validation and test where it has them.

    Returns:
        Updates of a training; None where it ends by time or not at all.

    Raises:
        RecipeError: With the field, as Lightning refuses it when a training begins.
    """
    taken = {split: _taken(config, split, count) for split, count in batches.items()}
    every, train = config.val_check_interval, taken["train"]
    inside = config.check_val_every_n_epoch is not None and not config.fast_dev_run
    if isinstance(every, int) and not isinstance(every, bool) and inside and 0 < train < every:
        raise RecipeError(f"trainer.val_check_interval: expected at most {train}, the batches of an epoch, got {every}")
    return _updates(config, train)


def _taken(config: TrainerConfig, split: str, count: int) -> int:
    key = f"limit_{SPLITS[split]}_batches"
    limit = getattr(config, key)
    if config.overfit_batches and split != "test":
        key, limit = "overfit_batches", config.overfit_batches
    elif config.fast_dev_run:
        limit = int(config.fast_dev_run)
    if limit is None or not count:
        return count
    if isinstance(limit, int):
        return min(count, limit)
    if limit and not int(count * limit):
        raise RecipeError(
            f"trainer.{key}: {limit:g} of the {count} {split} batches is less than one; give at least "
            f"{math.ceil(1000 / count) / 1000:g}, or a whole number of batches"
        )
    return int(count * limit)


def _updates(config: TrainerConfig, train: int) -> int | None:
    if config.fast_dev_run:
        return min(math.ceil(train / config.accumulate_grad_batches), int(config.fast_dev_run))
    if config.max_time is not None or config.endless:
        return None
    if config.max_epochs is None or config.max_epochs < 0:
        return config.max_steps
    updates = config.max_epochs * math.ceil(train / config.accumulate_grad_batches)
    return updates if config.max_steps < 0 else min(updates, config.max_steps)


def told(config: TrainerConfig) -> str:
    """How long a training is, in words.

    >>> told(TrainerConfig(max_epochs=3, max_steps=5)), told(TrainerConfig(max_steps=5))
    ('3 epochs or 5 updates', '5 updates')
    """
    epochs = [] if config.max_epochs in (None, -1) else [f"{config.max_epochs} epochs"]
    updates = [] if config.max_steps < 0 else [f"{config.max_steps} updates"]
    return " or ".join([*epochs, *updates]) or "until it is stopped"
