"""From experts to a dense student, with an explanation of what it still loses.

``python -m recipes.run compose.yaml`` merges experts into a routed twin (recipe `merge`), lets the twin teach dense
students (recipe `distill`), has experts, twin and students answer every test input, and explains what the twin loses
against the experts and the students against the twin (recipe `explain`). Every stage is an ordinary run in the user's
cache, under a name that its recipe, its input files, the stages before it and the code decide: a changed line runs
again only what depends on it. The run folder gets the students, the stages' reports, and one page that joins them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.compose.schema import Recipe
from recipes.compose.stages import check_taken, make, plan, ready, show
from recipes.errors import RecipeError
from recipes.front import table
from recipes.front.preflight import check_all
from recipes.running.environment import process_rank

if TYPE_CHECKING:
    from recipes.running.folder import RunFolder

__all__ = ["Recipe", "check", "inputs", "run"]


def inputs(recipe: Recipe) -> list[Path]:
    """The user's own files and folders that a run reads."""
    read = [Path(student.model) for student in recipe.students.values() if student.model]
    taken = [Path(place).expanduser() for place in recipe.taken.values()]
    merged = recipe.merging()
    return [*read, *taken, *(table.load("merge").inputs(merged) if merged else [])]  # type: ignore[attr-defined]


def check(recipe: Recipe) -> Iterator[str]:
    """The pre-flight of every stage whose inputs are there, and what is cached; write nothing."""
    if process_rank() != 0 or "WORLD_SIZE" in os.environ:
        raise RecipeError(
            "a composition starts its stages itself: start it once, and not under torchrun or SLURM; trainer.devices "
            "and merge.trainer.devices say how many processes train"
        )
    merge, students, answers, why = plan(recipe)
    if merged := recipe.merging():
        for line in table.load("merge").check(merged):
            yield f"merge: {line}"
    yield from check_all([partial(check_taken, stage, merge) for stage in (merge, *students) if stage.taken])
    there = merge.taken or ready(merge.folder)
    for stage in students:
        if not stage.taken:
            lines = table.load("distill").check(stage.recipe) if there else _check_alone(recipe, stage.name)
            yield from (f"{stage.name}: {line}" for line in lines)
    for stage in (merge, *students, answers, *why):
        if not stage.taken:
            yield f"stage {stage.name}: {'cached in' if ready(stage.folder) else 'to be made in'} {stage.folder}"


def _check_alone(recipe: Recipe, name: str) -> Iterator[str]:
    """What is known of a student before its twin is there."""
    from recipes.data.models import check_model
    from recipes.distill.fitting import check_fit
    from recipes.distill.recipe import check_methods
    from recipes.distill.training import limited

    student = recipe.distillation(name, Path("run"))
    steps = [partial(check_methods, student)]
    if student.student.model:
        steps.append(partial(check_model, student.student.model))
    try:
        yield from check_all(steps)
        check_fit(student, limited(student.trainer, student.training))
    except RecipeError as error:
        raise RecipeError(*(f"students.{name}: {problem}" for problem in error.problems)) from error


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Make every stage that is not there, and tell their story."""
    from recipes.compose.answers import answer
    from recipes.compose.story import finish

    merge, students, answers, why = plan(recipe)
    found: dict[str, bool] = {}
    for stage in (merge, *students):
        found[stage.name] = make(stage, folder)
    found[answers.name] = answer(recipe, answers, merge, students, folder)
    for stage in why:
        found[stage.name] = make(stage, folder)
    for stage in (merge, *students, *why):
        show(stage, folder.path)
    finish(recipe, folder, (merge, students, answers, why), [name for name, there in found.items() if there])
