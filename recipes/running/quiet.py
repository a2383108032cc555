"""Keep the libraries' own chatter out of a run's output: the run has its own progress and sentences."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning import Trainer


def hush_libraries() -> None:
    """Turn off transformers' loading bars, Lightning's tips and summaries, and warnings that no user can act on."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        "does not have many workers",
        "is smaller than the logging interval",
        "LeafSpec",
        "Found .* module",
        "in the buffer",
        "Using `DistributedSampler`",  # several processes repeat a row or two: an expert's own score is approximate
        "sync_dist=True",
    ):
        warnings.filterwarnings("ignore", message=f".*{text}.*")


def silent_trainer(**options: Any) -> Trainer:
    """Lightning's Trainer on one CPU process, which shows, logs and keeps nothing.

    Args:
        options: Further arguments of it.
    """
    from lightning import Trainer

    return Trainer(
        accelerator="cpu",
        devices=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
