"""The learning curve of one training: cost and gap at every validation, against simulator steps and seconds."""

from __future__ import annotations

import time
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class Curve(Callback):
    """Collects a row at every validation; a resumed training goes on with the rows and the seconds it had.

    Args:
        steps: Simulator steps of an update.
    """

    def __init__(self, steps: int) -> None:
        self.rows: list[dict[str, object]] = []
        self._steps = steps
        self._before = 0.0
        self._start = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Rows and seconds so far."""
        return {"rows": self.rows, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.rows, self._before = list(state_dict["rows"]), state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row, in training only."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        values = {
            name.removeprefix("validation/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("validation/")
        }
        updates = int(cast(Tensor, pl_module.updates))
        steps = {"updates": updates, "simulator_steps": updates * self._steps, "seconds": self._seconds()}
        self.rows.append({**steps, **values})

    def _seconds(self) -> float:
        return self._before + (time.monotonic() - self._start if self._start else 0.0)
