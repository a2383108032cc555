"""The table of recipes: a YAML names one of ours or of an installed package; nothing else is ever imported for it."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_type_hints

if TYPE_CHECKING:
    from recipes.running.folder import RunFolder

from gapbridge.installed import entry_points
from recipes.errors import RecipeError
from recipes.front.signature import source_of

SHIPPED = Path(__file__).parents[1]
GROUP = "gapbridge.recipes"  # entry points of installed packages: the recipe's name and its module


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
    "merge_files": Entry(
        "recipes.merge.merge_files", "merge checkpoints larger than the memory, block by block, or into a twin"
    ),
    "distill": Entry(
        "recipes.distill.recipe", "distil teachers into students: vanilla KD's stronger recipe and its rivals"
    ),
    "explain": Entry("recipes.explain.recipe", "explain why a model does worse there than here, with intervals"),
    "hpo": Entry("recipes.hpo.recipe", "hybrid discrete-continuous control by unbiased mixed gradients"),
    "csp": Entry("recipes.csp.recipe", "adapt a policy to an opponent known only through data, conservatively"),
    "compose": Entry(
        "recipes.compose.recipe", "from experts to a dense student, with an explanation of what it still loses"
    ),
    "export": Entry("recipes.merge.export", "convert a twin folder: dense, PEFT folders, Lightning checkpoint"),
}


def entries() -> dict[str, Entry]:
    """Return every recipe by name: ours, then those of the entry points `gapbridge.recipes`.

    Raises:
        RecipeError: When an installed package registers a name that is taken.
    """
    found = dict(TABLE)
    for point in entry_points(GROUP):
        if point.name in found:
            raise RecipeError(
                f"{_origin(point)} registers the recipe {point.name}, and {found[point.name].module} has that name; "
                "uninstall one of the two packages"
            )
        found[point.name] = Entry(point.value, f"{_summary(point)} (from {_origin(point)})")
    return found


def load(name: str) -> RecipeModule:
    """Import the module of a recipe.

    Raises:
        RecipeError: When the module of an installed package cannot be imported or is no recipe.
    """
    module = entries()[name].module
    if name in TABLE:
        return cast("RecipeModule", importlib.import_module(module))
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        raise RecipeError(f"recipe {name}: {module} cannot be imported: {type(error).__name__}: {error}") from error
    if fault := _fault(name, imported):
        raise RecipeError(f"recipe {name}: {module} {fault}")
    return cast("RecipeModule", imported)


def _fault(name: str, module: ModuleType) -> str:
    """What keeps a module of an installed package from being a recipe; empty where nothing does."""
    if missing := [word for word in ("Recipe", "check", "run") if not hasattr(module, word)]:
        return f"defines no {missing[0]}; a recipe has Recipe, check and run"
    if not (isinstance(module.Recipe, type) and dataclasses.is_dataclass(module.Recipe)):
        return "has a Recipe that is no dataclass; decorate the class with dataclasses.dataclass"
    try:
        kinds = get_type_hints(module.Recipe)
    except Exception as error:  # an annotation is code of the package
        return f"has a Recipe whose annotations cannot be read ({type(error).__name__}: {error}); import what they name"
    wanted: list[tuple[str, object, str]] = [
        ("recipe", Literal[name], f"Literal[{name!r}] = {name!r}"),
        ("name", str, "str with a default"),
        ("seed", int, "int with a default"),
    ]
    for key, kind, said in wanted:
        if kinds.get(key) != kind:
            return f"has a Recipe without the field {key}: {said}; add it"
    for word, signature, count in (("check", "check(recipe)", 1), ("run", "run(recipe, folder)", 2)):
        try:
            inspect.signature(getattr(module, word)).bind(*[None] * count)
        except (TypeError, ValueError):
            return f"has a {word} that cannot be called as {signature}; give it these arguments"
    return ""


def shipped() -> dict[str, Path]:
    """Return the recipe files that ship with the recipes, by file name."""
    files = [path for point in entry_points(GROUP) for path in _files(point)]
    return {path.name: path for path in [*files, *sorted(SHIPPED.rglob("*.yaml"))]}


def _files(point: EntryPoint) -> list[Path]:
    """The YAML files beside a recipe's module, found without importing it."""
    package, *inner = point.value.split(".")
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    return [path for folder in folders for path in sorted(Path(folder).joinpath(*inner[:-1]).glob("*.yaml"))]


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def _summary(point: EntryPoint) -> str:
    """What a recipe does: its package's summary or, without one, the first line of its `Recipe`, not imported."""
    if given := point.dist.metadata["Summary"] if point.dist else None:
        return given
    try:
        tree = ast.parse(source_of(point.value).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, ImportError):
        return "no description"
    texts = [ast.get_docstring(n) for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Recipe"]
    return next((text.splitlines()[0].rstrip(".") for text in texts if text), "no description")
