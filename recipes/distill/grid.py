"""The paper's argument at a size that fits a desk: data size x recipe x method, tuned alike, over seeds.

One teacher; then for every recipe and data size a tuning cell, in which every candidate of every method trains once and
the best on validation is kept, and a cell for each seed, in which every method trains as tuned. The students of a cell
share the teacher's pass and the views. The last checkpoint is scored, on test rows. A finished cell
is a file under `cells/` and is not trained again by ``--resume``.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError
from distill.regimes import method, regime
from recipes.distill.schema import RIVALS, Grid, Setting, Terms, Values
from recipes.errors import RecipeError
from recipes.running.files import write_json
from recipes.running.intervals import half_interval
from recipes.running.quiet import hush_libraries, silent_trainer
from recipes.running.seals import seal, sealed

if TYPE_CHECKING:
    from torch import nn

    from distill.models import Network
    from recipes.distill.schema import Recipe
    from recipes.running.folder import RunFolder


def check_grid(recipe: Recipe, grid: Grid) -> Iterator[str]:
    """Say what would be trained; write nothing."""
    from distill.losses import check_terms

    budget = 1 + len(grid.candidates["kd"])
    for name, tried in grid.candidates.items():
        for number, terms in enumerate(tried):
            try:
                check_terms(terms)
            except DistillError as error:
                raise RecipeError(f"grid.candidates.{name}.{number}: {error}") from error
    cells = len(grid.sizes) * len(grid.settings)
    yield (
        f"plan: {cells} tuning cells of {4 * budget} students, {cells * len(grid.seeds)} cells of 4; sizes "
        f"{', '.join(map(str, grid.sizes))}; recipes {', '.join(grid.settings)}"
    )


def run_grid(recipe: Recipe, grid: Grid, folder: RunFolder) -> None:
    """Train what is missing cell by cell, then the table and the figure."""
    teach(recipe, grid, folder.path)
    places = [(name, size) for name in grid.settings for size in grid.sizes]
    tuned = _all(folder, "tuning cells", grid, [(recipe, grid, folder.path, *place) for place in places])
    seeds = [(recipe, grid, folder.path, *place, seed) for place in places for seed in grid.seeds]
    done = _all(folder, "cells", grid, seeds)
    results = []
    for number, (_, _, _, name, size, seed) in enumerate(seeds):
        rival = tuned[number // len(grid.seeds)]["rival"]
        results.append({"recipe": name, "size": size, "seed": seed, "rival": rival, **done[number]})
    accuracy = json.loads((folder.path / "teacher" / "result.json").read_text(encoding="utf-8"))["test"]["teacher"]
    report(grid, results, accuracy, folder)


def _all(folder: RunFolder, title: str, grid: Grid, cells: Sequence[tuple[object, ...]]) -> list[Values]:
    """The contents of all cells, in their order, made side by side."""
    from joblib import Parallel, delayed

    made = []
    with folder.phase(title, len(cells)) as progress:
        for content in Parallel(grid.processes, return_as="generator")(delayed(cell)(*place) for place in cells):
            made.append(content)
            progress.advance()
    return made


def cell(recipe: Recipe, grid: Grid, out: Path, name: str, size: int, seed: int | None = None) -> Values:
    """The content of a cell's file, made where it is missing; without a seed it is the tuning."""
    path = out / "cells" / f"{name}-{size}-{'tuning' if seed is None else seed}.json"
    if not sealed(path):
        hush_libraries()
        teacher, setting = teach(recipe, grid, out), grid.settings[name]
        if seed is None:
            content = tune(recipe, grid, setting, size, teacher)
        else:
            tuned = cell(recipe, grid, out, name, size)["terms"]
            content = run_cell(recipe, grid, setting, size, teacher, tuned, seed)["test"]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
        seal(path)
    read: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return read


def teach(recipe: Recipe, grid: Grid, out: Path) -> Network:
    """The teacher, trained on labels alone under the last setting where it is not there yet."""
    from recipes.distill.networks import load_network, network, save_network, saved_network

    made = network(recipe, recipe.teacher, recipe.data.classes, student=False)
    target = out / "teacher"
    if (target / "result.json").is_file() and saved_network(target, print):
        load_network(made, target)
        return made
    last = list(grid.settings.values())[-1]
    setting = Setting(last.regime, {**last.changes, **recipe.teacher.changes}, grid.teacher_updates, last.augment)
    terms: dict[str, Terms] = {"teacher": {"hard": {}}}
    scores = train(recipe, grid, setting, grid.teacher_rows, {"teacher": made}, None, terms, recipe.seed)
    (target / "result.json").unlink(missing_ok=True)  # of a damaged network: it belongs to none of the new files
    save_network(made, target, {})
    write_json(target / "result.json", scores)
    return made


def tune(recipe: Recipe, grid: Grid, setting: Setting, size: int, teacher: nn.Module) -> Values:
    """The best candidate of every method on validation, the published one among them."""
    tried = {
        f"{name}_{number}": terms
        for name, own in grid.candidates.items()
        for number, terms in enumerate([method(name, setting.regime), *own])
    }
    scores = run_cell(recipe, grid, setting, size, teacher, tried, grid.tuning_seed)["validation"]
    budget = 1 + len(grid.candidates["kd"])
    chosen = {name: max(range(budget), key=lambda i: scores[f"{name}_{i}"]) for name in grid.candidates}
    rival = max(RIVALS, key=lambda name: scores[f"{name}_{chosen[name]}"])
    return {
        "scores": scores,
        "chosen": chosen,
        "terms": {name: tried[f"{name}_{i}"] for name, i in chosen.items()},
        "rival": rival,
    }


def run_cell(
    recipe: Recipe, grid: Grid, setting: Setting, size: int, teacher: nn.Module, terms: Mapping[str, Terms], seed: int
) -> dict[str, dict[str, float]]:
    """Train one student for every entry of the terms, all from the same weights and on the same views."""
    import lightning

    from recipes.distill.networks import network

    students = {}
    for name in terms:
        lightning.seed_everything(seed, workers=True, verbose=False)
        students[name] = network(recipe, recipe.student, recipe.data.classes, student=False)
    return train(recipe, grid, setting, size, students, teacher, terms, seed)


def train(
    recipe: Recipe,
    grid: Grid,
    setting: Setting,
    size: int,
    students: Mapping[str, nn.Module | str],
    teacher: nn.Module | None,
    terms: Mapping[str, Terms],
    seed: int,
) -> dict[str, dict[str, float]]:
    """Train and return accuracies: split -> student -> share of right answers."""
    import lightning

    from distill.module import DistillModule
    from distill.transforms import mixup
    from recipes.distill.glyph_module import GlyphData

    lightning.seed_everything(seed, workers=True, verbose=False)
    regime_ = regime(setting.regime, setting.changes)
    module = DistillModule(
        dict(students),
        teacher,
        dict(terms),
        regime=setting.regime,
        changes=setting.changes,
        classes=recipe.data.classes,
        log_gradients_every=0,
    )
    data = GlyphData(
        size,
        regime_.batch_size,
        setting.updates,
        setting.augment,
        mixup(regime_, recipe.data.classes) if regime_.mixes else None,
        seed,
        grid.test_rows,
    )
    trainer = silent_trainer(max_steps=setting.updates, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    trainer.limit_val_batches = 1.0
    measured = {
        "validation": trainer.validate(module, datamodule=data, verbose=False)[0],
        "test": trainer.test(module, datamodule=data, verbose=False)[0],
    }
    several = len(students) > 1
    return {
        split: {name: found[f"{split}/{name}/accuracy" if several else f"{split}/accuracy"] for name in students}
        for split, found in measured.items()
    }


def gap(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Rival minus vanilla KD, in points, by seed; the rival is the better of DKD and DIST on validation when tuning."""
    return [100 * (row[row["rival"]] - row["kd"]) for row in rows]


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean with a 95 % Student interval; of one value, the value."""
    mean, half = statistics.fmean(values), half_interval(values) or 0.0
    return {"value": mean, "low": mean - half, "high": mean + half}


def report(grid: Grid, results: Sequence[Mapping[str, Any]], teacher: float, folder: RunFolder) -> None:
    """Tables of accuracies and gaps, a figure of the gaps, and the result."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    scores, gaps = [], []
    for name in grid.settings:
        for size in grid.sizes:
            rows = [row for row in results if row["recipe"] == name and row["size"] == size]
            means = {method: 100 * statistics.fmean(row[method] for row in rows) for method in grid.candidates}
            scores.append({"recipe": name, "size": size, **means})
            gaps.append({"recipe": name, "size": size, "rival": rows[0]["rival"], **interval(gap(rows))})
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name in grid.settings:
        line = [row for row in gaps if row["recipe"] == name]
        spread = [[r["value"] - r["low"] for r in line], [r["high"] - r["value"] for r in line]]
        axes.errorbar([r["size"] for r in line], [r["value"] for r in line], spread, label=name)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="training rows", ylabel="better of DKD and DIST − KD (points)")
    axes.legend()
    columns = ("recipe", "size", "rival", "value", "low", "high")
    folder.figure(
        "gaps",
        figure,
        [[row[c] for c in columns] for row in gaps],
        columns,
        title="How far the better rival is above vanilla KD",
        told="Below the grey line vanilla KD is the better one; whiskers are 95 % intervals over seeds.",
    )
    pyplot.close(figure)
    folder.finish(
        {"teacher": 100 * teacher, "gaps": gaps, "scores": scores, "cells": list(results)},
        {"Gap to vanilla KD (points)": gaps, "Test accuracy (%)": scores},
        summary="; ".join(
            f"{r['recipe']}, {r['size']} rows: {r['value']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]" for r in gaps
        ),
    )
