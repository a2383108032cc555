"""What a training logged, iteration by iteration, kept through checkpoints."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

WATCHED = ("return", "return_proxy", "excess", "kl_data", "coefficient", "agent_entropy", "proxy_entropy")


class History(Callback):
    """Collects the watched numbers after every iteration."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Note this iteration."""
        logged = trainer.callback_metrics
        row = {name: float(logged[f"train/{name}"]) for name in WATCHED if f"train/{name}" in logged}
        self.rows.append({"iteration": float(len(self.rows)), **row})

    def state_dict(self) -> dict[str, Any]:
        """What was noted so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after it."""
        self.rows = list(state_dict["rows"])
