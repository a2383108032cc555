"""The fixed table of recipes: a YAML names one of these, and nothing else is ever imported for it."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from recipes.runfolder import RunFolder

SHIPPED = Path(__file__).parent


class RecipeModule(Protocol):
    """What a recipe module defines; importing it must be cheap (no torch at the top)."""

    Recipe: type[Any]

    def check(self, recipe: Any) -> Iterator[str]:
        """Yield one line for each pre-flight step; raise `RecipeError` when one fails; write nothing."""

    def run(self, recipe: Any, folder: "RunFolder") -> None:
        """Do the work and leave the results in the run folder."""


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        module: Module that defines `Recipe`, `check` and `run`.
        about: What the recipe does, in one line.
    """

    module: str
    about: str


TABLE: dict[str, Entry] = {
    "finetune": Entry("recipes.finetune", "fine-tune one expert a task from a pretrained model, in full or with LoRA"),
    "merge": Entry("recipes.merge", "merge experts: a shared expert, compressed exclusive ones, a router"),
    "distill": Entry("recipes.distill", "distil a teacher into a student: vanilla KD's stronger recipe and its rivals"),
    "explain": Entry("recipes.explain", "explain why a model does worse there than here, with intervals"),
    "hpo": Entry("recipes.hpo", "hybrid discrete-continuous control by mixed pathwise and score-function gradients"),
    "csp": Entry("recipes.csp", "adapt a policy to an opponent known only through data, conservatively"),
    "export": Entry("recipes.export", "convert a twin folder: dense checkpoint, PEFT folders, Lightning checkpoint"),
}


def load(name: str) -> RecipeModule:
    """Import the module of a recipe of the table."""
    return cast("RecipeModule", importlib.import_module(TABLE[name].module))


def shipped() -> dict[str, Path]:
    """Return the recipes that ship with the package, by file name."""
    return {path.name: path for path in sorted(SHIPPED.glob("*.yaml"))}
