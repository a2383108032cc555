"""A LightningModule whose checkpoints run no code of a stranger."""

from __future__ import annotations

from typing import Any, Self

import lightning

from rl.loading import from_checkpoint


class GuardedModule(lightning.LightningModule):
    """A module that may be made from import paths, which its checkpoints then hold as text."""

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
                nor trusted.
        """
        if len(args) < 4:  # where weights_only stands
            kwargs.setdefault("weights_only", True)
        # A checkpoint of LightningCLI asks for its parser, which would follow class paths of its own: never.
        with from_checkpoint(kwargs, trust=trust):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs, _instantiator=None)
