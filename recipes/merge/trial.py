"""Whether static merges take the options that a recipe gives them, tried on small tensors before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipes.errors import RecipeError
from recipes.merge.baselines import DATA, SHARED, seeded, told
from twinmerge.methods import FURTHER, WITH_DATA

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from recipes.merge.baselines import Options
    from recipes.merge.schema import Recipe


def check_options(recipe: Recipe) -> str:
    """Merge as many small random models as the recipe has experts, once by every candidate.

    Args:
        recipe: The recipe.

    Returns:
        A line for the pre-flight.

    Raises:
        RecipeError: When a method refuses its options or the number of experts, in its own words.
    """
    names = [name for name in [task.name for task in recipe.tasks] or recipe.given() if name not in recipe.unseen]
    shapes = _shapes(recipe)
    rows = [(method, options) for method, options in recipe.baselines.grid() if method in FURTHER]
    for name, options in [*((SHARED, options) for options in recipe.shared.candidates()), *rows]:
        method = recipe.shared.method if name == SHARED else name
        try:
            _try(method, seeded(method, options, recipe.seed), names, shapes)
        except ValueError as error:
            where = "shared" if name == SHARED else f"baselines.further.{recipe.baselines.further.index(name)}"
            given = f"{method} with {told(options)}" if options else method
            raise RecipeError(f"{where}: {given} cannot merge {len(names)} experts: {error}") from error
    return "options: accepted by the static merges that have them"


def _shapes(recipe: Recipe) -> Mapping[str, Sequence[int]] | None:
    """Shapes of what is merged by name; None for a base that is not here, or is damaged, of which others tell."""
    from recipes.merge.experts import base_checkpoint
    from twinmerge.big.experts import floats_of
    from twinmerge.errors import CheckpointError

    try:
        base = base_checkpoint(recipe.base)
    except CheckpointError:
        return None
    return None if base is None else {name: base.tensors[name][1] for name in floats_of(base)}


def _try(method: str, options: Options, tasks: Sequence[str], shapes: Mapping[str, Sequence[int]] | None) -> None:
    from twinmerge.functional.adamerging import adamerging
    from twinmerge.methods import options_for
    from twinmerge.trial import small_models, tried

    if method not in DATA or method in WITH_DATA:
        tried(method, options, tasks, shapes)
        return
    first, *experts = small_models(len(tasks) + 1, {}, shapes)
    matrix = next(name for name, value in first.items() if value.dim() == 2)
    made_up = {"logits": lambda weights, _: [weights[matrix]], "steps": 1}
    given: dict[str, Any] = options_for(adamerging, {**options, **made_up}, tasks)
    adamerging(first, experts, **given)
