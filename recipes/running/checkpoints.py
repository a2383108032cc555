"""Checkpoints written whole or not at all, in their own folder: Lightning's go through the system's temporary one."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from recipes.running.files import remove_parts, whole_file


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the target, flushes to disk and renames: a killed run or a full disk leaves the old or the new."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one checkpoint; of weights alone, nobody goes on, so it says nothing of how far the training was.

        Args:
            checkpoint: Its content.
            path: The file.
            storage_options: None; there are none for local files.

        Raises:
            OSError: Named after the file, when the disk is full or the folder cannot be written.
        """
        if "://" in str(path) or storage_options is not None:  # a bucket: it has no renaming, and Lightning knows it
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        if "optimizer_states" not in checkpoint:  # where a training was broken shows in the progress of its loops
            checkpoint = {key: value for key, value in checkpoint.items() if key != "loops"}
        target = Path(path)
        if target.parent.is_dir():
            remove_parts(target.parent)
        with whole_file(target) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch's own writer wraps what the file said
                cause: BaseException | None = error
                while cause is not None and not isinstance(cause, OSError):
                    cause = cause.__cause__ or cause.__context__
                if cause is not None:
                    raise cause from error
                if "write" in str(error):
                    raise OSError(errno.EIO, "it could not be written in full", str(target)) from error
                raise
