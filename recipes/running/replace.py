"""What `--force` may remove: what a run made, and nothing that is the user's or that the new run reads."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from recipes.errors import RecipeError
from recipes.running.files import METRICS, METRICS_SEALS
from recipes.running.inputs import NAME as INPUTS, read_noted
from recipes.running.lock import LOCK, refuse_live

FILES = {
    *("recipe.yaml", "command.txt", "environment.json", INPUTS, METRICS, METRICS_SEALS, "report.html", "result.json"),
    *("traceback.txt", "curves.csv", "gap.json", "data.npz", "twin.ckpt"),
}
FOLDERS = {
    *("checkpoints", "tensorboard", "figures", "experts", "merged", "static", "tokenizer", "teacher", "students"),
    *("cache", "cells", "policies", "replays", "dense", "stages"),
}
LEFT = re.compile(r"\.(.+?)(\.\d+)?\.(part|old)")


def content(folder: Path) -> list[Path]:
    """What is in a folder besides its lock."""
    return [item for item in folder.iterdir() if item.name != LOCK]


def check_replaceable(out: Path, needed: Iterable[Path] = (), named: Iterable[Path] = ()) -> None:
    """Refuse to replace a run whose folder holds more than the run made, or what is needed.

    Args:
        out: The run folder.
        needed: The recipe file, and the files and folders that the new run reads.
        named: Further paths that the recipe may mean; one that is the folder itself is rather a name of the run.

    Raises:
        RecipeError: With the path.
        RunError: When a run is at work somewhere below the folder.
    """
    for lock in sorted(out.rglob(LOCK)):
        refuse_live(lock.parent)
    where = _places(out)  # a link is the user's, wherever it leads
    below = [path for path in named if not where & _places(path)]
    for path in [*needed, *below]:
        if any(inside.is_relative_to(folder) for inside in _places(path) for folder in where):
            raise RecipeError(
                f"--out {out} --force: the run reads {path}, which lies in the folder that it would replace; move "
                "that out of it, or give another folder"
            )
    if foreign := sorted(item.name for item in content(out) if not _made(item)):
        raise RecipeError(
            f"--out {out} --force: {out / foreign[0]} is nothing that a run makes and would be lost; move it "
            "elsewhere, or give another folder"
        )


def _places(path: Path) -> set[Path]:
    return {Path(os.path.abspath(path)), path.resolve()}


def _made(item: Path) -> bool:
    left = LEFT.fullmatch(item.name)  # of a process that was killed while it wrote
    if item.is_dir() and not item.is_symlink():
        return item.name in FOLDERS or (left is not None and left[1] in FOLDERS)
    return item.name in FILES | FOLDERS or (left is not None and left[1] in FILES)


def holds_run(out: Path) -> bool:
    """Whether a folder is that of a run, which may have been killed when it had hardly begun."""
    return (out / "recipe.yaml").is_file() and ((out / "command.txt").is_file() or read_noted(out) is not None)


def is_unused(out: Path) -> bool:
    """Whether a folder holds nothing, or no more than what a run notes before it says that it is one."""
    whole = {item.name for item in content(out) if not (_made(item) and LEFT.fullmatch(item.name))}
    return not whole or (whole == {INPUTS} and read_noted(out) is not None)


def remove_run(out: Path) -> None:
    """Remove what a run made from its folder, after `check_replaceable`; what says that it is a run goes last."""
    last = ("recipe.yaml", "command.txt")
    for item in sorted(content(out), key=lambda item: (item.name in last, item.name)):
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()
