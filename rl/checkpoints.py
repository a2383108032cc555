"""A LightningModule whose checkpoints run no code of a stranger."""

from __future__ import annotations

import inspect
import pickle
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any, Self, cast

import lightning
import numpy as np

from rl.loading import from_checkpoint


class GuardedModule(lightning.LightningModule):
    """A module that may be made from import paths, which its checkpoints then hold as text."""

    def save_hyperparameters(self, *args: Any, frame: FrameType | None = None, **kwargs: Any) -> None:
        """As Lightning does it, with numpy's numbers as plain ones: a checkpoint is read back without any objects."""
        frame = frame or cast(FrameType, inspect.currentframe()).f_back
        super().save_hyperparameters(*args, frame=frame, **kwargs)
        self.hparams.update({name: _plain(value) for name, value in self.hparams.items()})

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, trust: bool = False, **kwargs: Any) -> Self:
        """Load a checkpoint; the import paths in it are followed only on request.

        Args:
            checkpoint_path: A file, or its path.
            args: As for Lightning's method.
            trust: Import and call what the checkpoint itself names as game or simulator, when it is not given here.
                Only for files whose writer you trust: it runs their code.
            kwargs: As for Lightning's method, and arguments that replace those of the checkpoint. ``weights_only`` is
                True unless given: a checkpoint holds no objects.

        Raises:
            ValueError: If the checkpoint names a game or simulator, or text among its arguments, that is neither given
                nor trusted; if it is damaged, or holds more than numbers and text.
        """
        _refuse_damage(checkpoint_path)
        if len(args) < 4:  # where weights_only stands
            kwargs.setdefault("weights_only", True)
        # A checkpoint of LightningCLI asks for its parser, which would follow class paths of its own: never.
        try:
            with from_checkpoint(kwargs, trust=trust):
                return super().load_from_checkpoint(checkpoint_path, *args, **kwargs, _instantiator=None)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{checkpoint_path} holds objects that could run code, or is damaged: give a checkpoint that this "
                "class wrote, or weights_only=False if you trust whoever wrote it."
            ) from error


def _plain(value: object) -> object:
    """The same without numpy's numbers, in dictionaries, lists and tuples too."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if type(value) is tuple:
        return tuple(_plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def _refuse_damage(path: Any) -> None:
    """Compare the parts of a file on this machine with their own sums: loading maps them and does not."""
    if not isinstance(path, str | Path) or "://" in str(path):
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; give the path of a file.")
    try:
        with zipfile.ZipFile(path) as archive:
            fault = archive.testzip()
    except Exception as error:  # whatever a damaged archive provokes
        fault = " ".join(str(error).split())[:200] or type(error).__name__
    if fault is not None:
        raise ValueError(f"{path} is damaged or no checkpoint ({fault}); copy it again.")
