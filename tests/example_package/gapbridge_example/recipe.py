"""A recipe of one's own: a dataclass `Recipe`, a pre-flight `check`, and `run`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recipes.errors import RecipeError
from recipes.fields import check_name


@dataclass
class Recipe:
    """Count the lines of a file.

    Attributes:
        path: The file.
        recipe: Always count.
        name: Name of the run.
        seed: Nothing here is random.
    """

    path: Path
    recipe: Literal["count"] = "count"
    name: str = "lines"
    seed: int = 0

    def __post_init__(self) -> None:
        check_name(self.name, "name")


def check(recipe: Recipe) -> Iterator[str]:
    """Look whether the file is there; write nothing."""
    if not recipe.path.is_file():
        raise RecipeError(f"path: {recipe.path} does not exist; give a text file")
    yield f"count {recipe.path}"


def run(recipe: Recipe, folder: Any) -> None:
    """Count, and leave the number in the run folder's result and report."""
    lines = len(recipe.path.read_text(encoding="utf-8").splitlines())
    folder.finish({"lines": lines}, {"Lines": [{"file": recipe.path.name, "lines": lines}]}, summary=f"{lines} lines.")
