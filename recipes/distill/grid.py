"""The paper's argument at a size that fits a desk: data size x recipe x method, tuned alike, over seeds.

One teacher; then for every recipe and data size a tuning cell, in which every candidate of every method trains once at
every learning rate and the best on validation is kept, and a cell for each seed, in which every method trains as tuned.
The students of a cell share the teacher's pass and the views. The last checkpoint is scored, on test rows. Whether the
grid can tell is said once the tuning is done, see `recipes.distill.gaps`. A finished cell is a file under `cells/` and
is not trained again by ``--resume``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import DistillError
from distill.regimes import method, regime
from recipes.distill.gaps import conditions, report
from recipes.distill.grid_block import RIVALS, Grid, Setting
from recipes.distill.schema import Terms, Values
from recipes.errors import RecipeError
from recipes.running.files import write_json
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

    for name, tried in grid.candidates.items():
        for number, terms in enumerate(tried):
            try:
                check_terms(terms)
            except DistillError as error:
                raise RecipeError(f"grid.candidates.{name}.{number}: {error}") from error
    cells, tried_each = len(grid.places), grid.budget * len(grid.rates)
    yield (
        f"plan: {cells} tuning cells of {len(grid.candidates) * tried_each} students, {cells * len(grid.seeds)} cells "
        f"of {len(grid.candidates)}: {'; '.join(_told(name, grid) for name in grid.settings)}"
    )


def _told(name: str, grid: Grid) -> str:
    """A recipe and its rows."""
    setting = grid.settings[name]
    return f"{name} with {setting.updates} updates and {', '.join(map(str, setting.sizes or grid.sizes))} rows"


def run_grid(recipe: Recipe, grid: Grid, folder: RunFolder) -> None:
    """Train what is missing cell by cell, then the table and the figure."""
    teach(recipe, grid, folder.path)
    scores = json.loads((folder.path / "teacher" / "result.json").read_text(encoding="utf-8"))
    tuned = _all(folder, "tuning cells", grid, [(recipe, grid, folder.path, *place) for place in grid.places])
    alone = {place: made["chosen"]["ce"]["validation"] for place, made in zip(grid.places, tuned, strict=True)}
    found = conditions(grid, alone, scores["validation"]["teacher"])
    for line in found.values():
        folder.say(line)
    seeds = [(recipe, grid, folder.path, *place, seed) for place in grid.places for seed in grid.seeds]
    done = _all(folder, "cells", grid, seeds)
    results = []
    for number, (_, _, _, name, size, seed) in enumerate(seeds):
        rival = tuned[number // len(grid.seeds)]["rival"]
        results.append({"recipe": name, "size": size, "seed": seed, "rival": rival, **done[number]})
    report(grid, results, scores["test"]["teacher"], list(found.values()), folder)


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
            chosen = cell(recipe, grid, out, name, size)["chosen"]
            content = {}
            for rate in sorted({choice["rate"] for choice in chosen.values()}):
                terms = {name: choice["terms"] for name, choice in chosen.items() if choice["rate"] == rate}
                content |= run_cell(recipe, grid, at_rate(setting, rate), size, teacher, terms, seed)["test"]
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


def at_rate(setting: Setting, rate: float) -> Setting:
    """A recipe with its learning rate multiplied."""
    own = regime(setting.regime, setting.changes).learning_rate
    return replace(setting, changes={**setting.changes, "learning_rate": own * rate})


def tune(recipe: Recipe, grid: Grid, setting: Setting, size: int, teacher: nn.Module) -> Values:
    """The best candidate of every method on validation, the published one among them, and its learning rate."""
    tried = {
        f"{name}_{number}": terms
        for name, own in grid.candidates.items()
        for number, terms in enumerate([method(name, setting.regime), *own])
    }
    scores: dict[tuple[str, float], float] = {}
    for rate in grid.rates:
        made = run_cell(recipe, grid, at_rate(setting, rate), size, teacher, tried, grid.tuning_seed)
        scores |= {(name, rate): accuracy for name, accuracy in made["validation"].items()}
    chosen: dict[str, Values] = {}
    for name in grid.candidates:
        places = [(f"{name}_{number}", rate) for number in range(grid.budget) for rate in grid.rates]
        key, rate = best = max(places, key=scores.__getitem__)
        chosen[name] = {"terms": tried[key], "rate": rate, "validation": scores[best]}
    return {
        "scores": [{"candidate": name, "rate": rate, "validation": score} for (name, rate), score in scores.items()],
        "chosen": chosen,
        "rival": max(RIVALS, key=lambda name: chosen[name]["validation"]),
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
