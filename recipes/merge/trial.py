"""Whether static merges take the options that a recipe gives them, tried on small tensors before anything is read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from recipes.errors import RecipeError
from recipes.merge.baselines import DATA, SHARED, seeded
from twinmerge.methods import FURTHER, OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from recipes.merge.schema import Recipe

SIDE = 16  # of the matrices


def check_options(recipe: Recipe) -> str:
    """Merge as many small random models as the recipe has experts, once by every candidate.

    Methods of other packages are not tried, since they may need the tensors of a real model.

    Args:
        recipe: The recipe.

    Returns:
        A line for the pre-flight.

    Raises:
        RecipeError: When a method refuses its options or the number of experts, in its own words.
    """
    shared = [(SHARED, options) for options in recipe.shared.candidates()]
    rows = [(method, options) for method, options in recipe.baselines.grid() if method in FURTHER]
    count = len(recipe.tasks or recipe.given()) - len(set(recipe.unseen))
    for name, options in [*shared, *rows]:
        method = recipe.shared.method if name == SHARED else name
        if method not in (*OURS, *FURTHER, *DATA):
            continue
        try:
            _try(method, options, count, recipe.seed)
        except ValueError as error:
            where = "shared" if name == SHARED else f"baselines.further.{recipe.baselines.further.index(name)}"
            given = ", ".join(f"{key} {value:g}" for key, value in options.items())
            told = f"{method} with {given}" if given else method
            raise RecipeError(f"{where}: {told} cannot merge {count} experts: {error}") from error
    return "options: accepted by the static merges that have them"


def _try(method: str, options: Mapping[str, float], count: int, seed: int) -> None:
    import torch

    from twinmerge import methods
    from twinmerge.functional.adamerging import adamerging

    generator = torch.Generator().manual_seed(0)
    models = [
        {"a": torch.randn(SIDE, SIDE, generator=generator), "b": torch.randn(SIDE, generator=generator)}
        for _ in range(count + 1)
    ]
    if method in DATA and method not in methods.WITH_DATA:
        merge: Callable[..., object] = partial(adamerging, logits=lambda weights, _: [weights["a"]], steps=1)
        merge(models[0], models[1:], **options)
        return
    given = seeded(method, options, seed)
    if method in methods.WITH_DATA:
        statistics = {"fisher": {"a": torch.ones(SIDE, SIDE), "b": torch.ones(SIDE)}, "regmean": {"a": torch.eye(SIDE)}}
        given[methods.WITH_DATA[method].option] = [statistics[method]] * count
    merge = methods.find(method)
    methods.check_options(merge, given)
    merge(models[0], models[1:], **given)
