"""The fixed table of recipes: a YAML names one of these, and nothing else is ever imported for it."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from recipes.running.folder import RunFolder

SHIPPED = Path(__file__).parents[1]


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
    "finetune": Entry(
        "recipes.merge.finetune", "fine-tune one expert a task from a pretrained model, in full or with LoRA"
    ),
    "merge": Entry("recipes.merge.recipe", "merge experts: a shared expert, compressed exclusive ones, a router"),
    "distill": Entry(
        "recipes.distill.recipe", "distil teachers into students: vanilla KD's stronger recipe and its rivals"
    ),
    "explain": Entry("recipes.explain.recipe", "explain why a model does worse there than here, with intervals"),
    "hpo": Entry("recipes.hpo.recipe", "hybrid discrete-continuous control by unbiased mixed gradients"),
    "csp": Entry("recipes.csp.recipe", "adapt a policy to an opponent known only through data, conservatively"),
    "export": Entry("recipes.merge.export", "convert a twin folder: dense, PEFT folders, Lightning checkpoint"),
}


def load(name: str) -> RecipeModule:
    """Import the module of a recipe of the table."""
    return cast("RecipeModule", importlib.import_module(TABLE[name].module))


def shipped() -> dict[str, Path]:
    """Return the recipes that ship with the package, by file name."""
    return {path.name: path for path in sorted(SHIPPED.rglob("*.yaml"))}
