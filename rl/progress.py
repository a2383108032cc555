"""Where a training stands, read from its trainer: the one place that every kind of checkpoint brings back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import nn


def batches_done(trainer: Trainer) -> tuple[int, int]:
    """Training batches that are done.

    Args:
        trainer: A `lightning.Trainer` in its fit loop.

    Returns:
        All of this training, those before a resumed checkpoint included, and those of the present epoch.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return int(progress.total.completed), int(progress.current.completed)


def share_done(trainer: Trainer) -> float:
    """Share of a training that is done, in [0, 1].

    The training ends at the first of `max_epochs` and `max_steps`; with neither, as with `max_time` alone, nothing
    says how long it takes, and the share stays 0.

    Args:
        trainer: A `lightning.Trainer` in its fit loop.
    """
    shares = [0.0]
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        shares.append(batches_done(trainer)[0] / float(trainer.max_epochs * trainer.num_training_batches))
    if trainer.max_steps > 0:  # optimizer steps, of which a batch may take several
        shares.append(trainer.global_step / trainer.max_steps)
    return min(1.0, max(shares))


def logs_now(trainer: Trainer | None) -> bool:
    """Whether what a batch logs is handed on: each costs a tenth of a millisecond, of an update of a few.

    Args:
        trainer: A `lightning.Trainer` in its fit loop, which hands on every ``log_every_n_steps``-th batch; that of an
            epoch's end is what callbacks see. Without one, everything is.
    """
    if trainer is None or trainer.is_last_batch:
        return True
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # a connector sets it
    return every > 0 and (batches_done(trainer)[0] + 1) % every == 0


def follow_trainer(trainer: Trainer) -> None:
    """Let the streams among a trainer's training loaders start where it stands.

    Lightning does not give a loader its saved place back after a checkpoint of an epoch's end.
    """
    for loader in CombinedLoader(trainer.train_dataloader).flattened:
        if hasattr(loader, "follow"):
            loader.follow(trainer)


Group = dict[str, Any]  # of parameters, as torch's optimizers take it: params, lr and what else is to be found there


def group_of(rate: float, parameters: Iterable[nn.Parameter]) -> Group:
    """A group of parameters whose learning rate :func:`set_rates` moves.

    Args:
        rate: At the start.
        parameters: Of the group.
    """
    return {"params": list(parameters), "lr": rate, "initial": rate}


def set_rates(optimizers: Iterable[torch.optim.Optimizer], final_rate: float, share: float) -> None:
    """Let the learning rates of all groups fall linearly from their ``initial`` to ``final_rate`` times it.

    Args:
        optimizers: Whose groups hold ``initial``.
        final_rate: Fraction that is left at the end of the training.
        share: Of the training that is done, in [0, 1].
    """
    factor = 1 + (final_rate - 1) * share
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial"] * factor
