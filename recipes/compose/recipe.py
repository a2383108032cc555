"""From experts to a dense student, with an explanation of what it still loses.

``python -m recipes.run compose.yaml`` merges experts into a routed twin (recipe `merge`), lets the twin teach dense
students (recipe `distill`), has experts, twin and students answer every test input, and explains what the twin loses
against the experts and the students against the twin (recipe `explain`). Every stage is an ordinary run in the user's
cache, under a name that its recipe, its input files, the stages before it and the code decide: a changed line runs
again only what depends on it. The run folder gets the students, the stages' reports, and one page that joins them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.compose.schema import Recipe
from recipes.compose.stages import check_taken, lost_expert, make, plan, ready, show
from recipes.data.counts import tested
from recipes.data.own_columns import check_own_columns
from recipes.distill.merge_run import merge_run
from recipes.errors import RecipeError, RunError
from recipes.front import table
from recipes.front.preflight import check_all
from recipes.running.environment import process_rank

if TYPE_CHECKING:
    from recipes.merge.schema import Recipe as Merge
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
        with _told("merge"):
            yield from (f"merge: {line}" for line in table.load("merge").check(merged))
    yield from check_all([partial(check_taken, stage, merge) for stage in (merge, *students) if stage.taken])
    compared = merged or merge_run(str(merge.folder)).recipe
    if recipe.explain.columns:
        yield check_own_columns(compared.tasks, recipe.explain.columns, "explain.columns")
    there = [stage for stage in (merge, *students, answers, *why) if ready(stage.folder)]
    if merge in there and merged and answers not in there and lost_expert(merge):
        there.remove(merge)
    _check_folds(recipe, [answers.result["rows"]] if answers in there else _tested(compared))
    for stage in students:
        if not stage.taken:
            alone = merged is not None and merge not in there
            lines = _check_alone(recipe, stage.name) if alone else table.load("distill").check(stage.recipe)
            with _told(f"students.{stage.name}"):
                yield from (f"{stage.name}: {line}" for line in lines)
    for stage in (merge, *students, answers, *why):
        if not stage.taken:
            yield f"stage {stage.name}: {'cached in' if stage in there else 'to be made in'} {stage.folder}"


def _tested(merge: Merge) -> list[int | None]:
    """Test inputs of every task that is compared; None where that is not known here."""
    try:
        return [tested(source) for source in merge.tasks if source.name not in merge.unseen]
    except RunError as error:
        raise RecipeError(str(error)) from error


def _check_folds(recipe: Recipe, counts: Sequence[int | None]) -> None:
    """Refuse more folds than the test inputs can fill, where their number is known."""
    from explain.plan import MIN_ROWS

    folds, rows = recipe.explain.estimation.folds, sum(count or 0 for count in counts)
    if None not in counts and rows < MIN_ROWS * folds:
        most = rows // MIN_ROWS
        raise RecipeError(
            f"explain.estimation.folds: {folds} folds need {MIN_ROWS * folds} test inputs, and the tasks have {rows}; "
            + (f"give at most {most} folds, or more inputs" if most > 1 else "give more inputs")
        )


def _check_alone(recipe: Recipe, name: str) -> Iterator[str]:
    """What is known of a student before its twin is there, for which the base stands."""
    from recipes.data.models import is_here, resolve_model
    from recipes.distill.fitting import check_fit, check_words
    from recipes.distill.merge_checks import check_student
    from recipes.distill.recipe import check_methods
    from recipes.distill.schema import Teacher
    from recipes.distill.training import limited

    given = recipe.distillation(name, Path("run"))
    base = recipe.merge.base if recipe.merge else ""
    known = replace(given, teacher=Teacher(model=str(resolve_model(base)))) if base and is_here(base) else given
    steps = [partial(check_methods, given), partial(check_student, known, given.student)]
    if given.student.model and recipe.kind == "texts" and known is not given:
        steps.append(partial(check_words, known))
    yield from check_all(steps)
    check_fit(given, limited(given.trainer, given.training))


@contextmanager
def _told(key: str) -> Iterator[None]:
    """Name the key of this recipe in what another recipe refuses."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(*(f"{key}: {problem}" for problem in error.problems)) from error


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Make every stage that is not there, and tell their story."""
    from recipes.compose.answers import answer
    from recipes.compose.story import finish

    merge, students, answers, why = plan(recipe)
    found: dict[str, bool] = {}
    found[merge.name] = make(merge, folder, "" if merge.taken or ready(answers.folder) else lost_expert(merge))
    for stage in students:
        found[stage.name] = make(stage, folder)
    found[answers.name] = answer(recipe, answers, merge, students, folder)
    for stage in why:
        found[stage.name] = make(stage, folder)
    for stage in (merge, *students, *why):
        show(stage, folder.path)
    finish(recipe, folder, (merge, students, answers, why), [name for name, there in found.items() if there])
