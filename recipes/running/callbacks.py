"""What every trainer of a recipe carries: newest checkpoint, progress through the run folder, a safe Ctrl-C."""

import signal
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from torch import Tensor

from recipes.running.folder import RunFolder
from recipes.running.progress import Progress


class NewestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint of the newest epoch end; the one before is removed once the new one is written.

    Args:
        path: Folder of the checkpoints of one training phase.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, filename="{epoch}-{step}", save_on_train_epoch_end=True, enable_version_counter=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Accept a folder with checkpoints in it: that is what resuming needs."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in this folder, also when it was moved since."""
        path = Path(self.dirpath or ".")
        moved = {key: str(path / Path(state_dict[key]).name) for key in ("best_model_path",) if state_dict[key]}
        super().load_state_dict(state_dict | moved | {"dirpath": self.dirpath})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a run left that was killed between writing the newest checkpoint and removing the one before."""
        self._remove_older(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and remove also the checkpoint that training went on from, which Lightning would keep."""
        super().on_train_epoch_end(trainer, pl_module)
        self._remove_older(trainer)

    def _remove_older(self, trainer: Trainer) -> None:
        newest = Path(self.best_model_path)
        if trainer.is_global_zero and self.best_model_path and newest.exists():
            for path in newest.parent.glob("epoch=*.ckpt"):
                if path.stat().st_mtime_ns < newest.stat().st_mtime_ns:
                    trainer.strategy.remove_checkpoint(path)


class BestWeights(Callback):
    """Keeps the weights of the lowest validation value so far, in memory and in every checkpoint.

    Args:
        monitor: Name of the value.

    Attributes:
        weights: The module's state dict at the lowest value; empty before the first validation.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor, self.lowest = monitor, float("inf")
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, and keep a copy of better ones."""
        value = float(trainer.callback_metrics[self.monitor])
        if not trainer.sanity_checking and (value < self.lowest or not self.weights):
            self.lowest = value
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in pl_module.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """The lowest value and its weights."""
        return {"lowest": self.lowest, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from them."""
        self.lowest, self.weights = state_dict["lowest"], state_dict["weights"]


class SaveOnInterrupt(Callback):
    """Answers the first Ctrl-C or request to terminate by saving after the batch and stopping; a second stops at once.

    With several processes the first one stops at once: they would see it in different batches.

    Args:
        path: Folder of the checkpoints of one training phase.
    """

    def __init__(self, path: Path) -> None:
        self._file = path / "interrupted.ckpt"
        self._asked = self._saved = False
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | signal.Handlers | None] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, once Lightning has set its own handlers."""
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Save when asked to, but not where Lightning would resume after a validation or step that is still due."""
        done = batch_idx + 1
        every = trainer.val_check_batch
        validates = trainer.enable_validation and bool(every) and done % cast(float, every) == 0
        due = validates or done >= trainer.num_training_batches or done % trainer.accumulate_grad_batches != 0
        if self._asked and not due:
            trainer.save_checkpoint(self._file)
            self._saved = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the saving to `NewestCheckpoint`, which does it now anyway."""
        self._saved = self._saved or self._asked

    def on_train_batch_start(self, *_: object) -> None:
        """Stop after saving: by now the metrics of the last batch are written too."""
        self._stop()

    def on_train_epoch_start(self, *_: object) -> None:
        """Stop after saving."""
        self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training is over, so what an earlier interruption saved is no longer needed; stop when asked to."""
        self._restore()
        if trainer.is_global_zero:
            self._file.unlink(missing_ok=True)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._restore()

    def _stop(self) -> None:
        if self._saved:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class PhaseProgress(ProgressBar):
    """Shows training and stand-alone evaluation as phases of the run folder.

    Args:
        folder: The run folder.
        name: Name of the phase; empty when the run trains once.
    """

    def __init__(self, folder: RunFolder, name: str = "") -> None:
        super().__init__()
        self._folder = folder
        self._name = name
        self._open: AbstractContextManager[Progress] | None = None
        self._progress: Progress | None = None

    def disable(self) -> None:
        """Nothing to do: the run folder shows progress on rank 0 only."""

    def enable(self) -> None:
        """Nothing to do: the run folder shows progress on rank 0 only."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the phase."""
        self._start("train", _training_batches(trainer))
        self._step(trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Count a batch."""
        logged = {key: value for key, value in self.get_metrics(trainer, pl_module).items() if key != "v_num"}
        values = [
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in logged.items()
        ]
        self._step(
            trainer.fit_loop.epoch_loop.total_batch_idx + 1, ", ".join([f"epoch {trainer.current_epoch + 1}", *values])
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the phase."""
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the phase, unless this is the validation inside training."""
        if trainer.state.fn == "validate":
            self._start("validate", self.total_val_batches)

    def on_validation_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Count a batch."""
        if trainer.state.fn == "validate":
            self._step()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the phase."""
        if trainer.state.fn == "validate":
            self._stop()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the phase."""
        self._start("test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, *_: object) -> None:
        """Count a batch."""
        self._step()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the phase."""
        self._stop()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the phase."""
        self._start("predict", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, *_: object) -> None:
        """Count a batch."""
        self._step()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the phase."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the phase, so that the message stands on a line of its own."""
        self._stop()

    def _start(self, what: str, total: float | None) -> None:
        finite = None if total is None or total == float("inf") else int(total)
        self._open = self._folder.phase(f"{what} {self._name}".strip(), finite)
        self._progress = self._open.__enter__()

    def _step(self, done: int | None = None, note: str | None = None) -> None:
        if self._progress is not None:
            self._progress.update(self._progress.done + 1 if done is None else done, note)

    def _stop(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = self._progress = None


def _training_batches(trainer: Trainer) -> float | None:
    """Return the number of batches of the whole training, None when only time limits it."""
    limits = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs * trainer.num_training_batches)
    if trainer.max_steps >= 0:
        limits.append(trainer.max_steps * trainer.accumulate_grad_batches)
    return min(limits, default=None)
