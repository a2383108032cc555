"""Methods compared fairly: each tuned alike on validation, then trained over seeds and scored on test rows.

One training under the tuning's seed holds a student for every loss that is tried, of every method, at every learning
rate, all on one teacher pass; the best of each method on validation is kept. Then a training for each seed holds a
student of every method as tuned. The last checkpoint is scored, on test rows. A finished training is a file under
``cells/`` and is not made again by ``--resume``; one that was stopped begins anew.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from recipes.distill.compare_block import Compare
from recipes.distill.data import data_module
from recipes.distill.schema import Recipe, Terms, Values
from recipes.distill.training import figures, fit, side_by_side
from recipes.errors import RecipeError
from recipes.running.environment import process_rank
from recipes.running.files import write_json
from recipes.running.intervals import interval
from recipes.running.seals import seal, sealed
from recipes.running.trainer import instantiate

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from recipes.running.folder import RunFolder

__all__ = ["check_compare", "run_compare"]

LEAD = 5.0  # points by which the teacher is to be ahead of labels alone


def check_compare(recipe: Recipe, compare: Compare) -> str:
    """Say what is trained.

    Args:
        recipe: The recipe.
        compare: Its block.

    Raises:
        RecipeError: For a callback that keeps checkpoints or watches validation, which these trainings do not have.
    """
    from lightning.pytorch.callbacks import Checkpoint

    made = instantiate(recipe.trainer, loggers=False)["callbacks"]
    for callback in made if isinstance(made, list) else [made]:
        if isinstance(callback, Checkpoint) or str(getattr(callback, "monitor", "")).startswith("validation"):
            raise RecipeError(
                f"trainer.callbacks: expected none that keeps checkpoints or watches validation with compare, whose "
                f"trainings are scored once, at their end, and begin anew when they are stopped; got "
                f"{type(callback).__name__}"
            )
    tried = len(recipe.tried) * len(compare.rates)
    return (
        f"comparison: one tuning of {tried} students ({len(recipe.tried)} losses at {len(compare.rates)} learning "
        f"rates), then {len(compare.seeds)} trainings of {len(recipe.methods)}; gaps to {compare.baseline}"
    )


def run_compare(
    recipe: Recipe, compare: Compare, folder: RunFolder, teacher: nn.Module | None, labels: list[str] | None
) -> None:
    """Tune, train over seeds, and report the gaps.

    Args:
        recipe: The recipe.
        compare: Its block.
        folder: Of the run.
        teacher: As it teaches.
        labels: Names of the classes of texts.
    """
    tuning = _kept(folder, "tuning", lambda: tune(recipe, compare, folder, teacher, labels))
    if lead := tuning["condition"]:
        folder.say(lead)
    chosen: dict[str, Values] = tuning["chosen"]
    terms = {name: choice["terms"] for name, choice in chosen.items()}
    rates = {name: choice["rate"] for name, choice in chosen.items()}
    cells = []
    for seed in compare.seeds:
        own = replace(recipe, seed=seed)
        name = f"seed{seed}"
        scores = _kept(folder, name, lambda o=own, n=name: train(o, folder, n, teacher, terms, rates, labels)["test"])  # type: ignore[misc]
        cells.append({"seed": seed, **scores})
    report(compare, tuning, cells, folder)


def _kept(folder: RunFolder, name: str, make: Callable[[], Values]) -> Values:
    """What a training found, made where it is missing."""
    path = folder.path / "cells" / f"{name}.json"
    if sealed(path):
        read: Values = json.loads(path.read_text(encoding="utf-8"))
        return read
    made = make()
    if process_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, made)
        seal(path)
    return made


def tune(
    recipe: Recipe, compare: Compare, folder: RunFolder, teacher: nn.Module | None, labels: list[str] | None
) -> Values:
    """The best loss and learning rate of every method on validation, and whether the comparison can tell."""
    tried = {
        f"{name}_{place}_{turn}": (name, terms, rate)
        for name in recipe.methods
        for place, terms in enumerate(recipe.candidates(name).values())
        for turn, rate in enumerate(compare.rates)
    }
    own = replace(recipe, seed=compare.tuning_seed)
    losses = {key: terms for key, (_, terms, _) in tried.items()}
    rates = {key: rate for key, (_, _, rate) in tried.items()}
    found = train(own, folder, "tuning", teacher, losses, rates, labels)["validation"]
    scores: dict[str, float] = found["accuracy"]
    chosen: dict[str, Values] = {}
    for name in recipe.methods:
        best = max((key for key in tried if tried[key][0] == name), key=scores.__getitem__)
        chosen[name] = {"terms": tried[best][1], "rate": tried[best][2], "validation": scores[best]}
    alone = [name for name in chosen if set(chosen[name]["terms"]) == {"hard"}]
    others = [name for name in chosen if name != compare.baseline]
    rivals = [name for name in others if name not in alone] or others
    ends = [chosen[name]["validation"] for name in alone]
    condition = can_tell(found["teacher"], max(ends)) if ends and found["teacher"] is not None else ""
    return {
        "scores": [
            {"method": tried[key][0], "candidate": key, "rate": rates[key], "validation": scores[key]} for key in tried
        ],
        "chosen": chosen,
        "rival": max(rivals, key=lambda name: chosen[name]["validation"]),
        "condition": condition,
        "warning": found["warning"],
    }


def can_tell(teacher: float, alone: float) -> str:
    """Whether methods can be told apart, in a sentence: that the teacher knows more than students do without it.

    Args:
        teacher: Its accuracy on validation.
        alone: That of the best student of labels alone.

    """
    lead = round(100 * (teacher - alone), 9)
    return (
        f"condition {'holds' if lead >= LEAD else 'FAILS'}: on validation the teacher is {abs(lead):.1f} points "
        f"{'above' if lead >= 0 else 'below'} the best student of labels alone; from {LEAD:g} above it on a comparison "
        "can tell"
    )


def train(
    recipe: Recipe,
    folder: RunFolder,
    name: str,
    teacher: nn.Module | None,
    terms: Mapping[str, Terms],
    rates: Mapping[str, float],
    labels: list[str] | None,
) -> dict[str, Values]:
    """Train students side by side; by split their accuracies and the teacher's, as shares of right answers.

    Args:
        recipe: Under the seed of this training.
        folder: Of the run.
        name: Of this training.
        teacher: As it teaches.
        terms: Losses by student.
        rates: What the learning rate is multiplied with, by student.
        labels: Names of the classes of texts.
    """
    import lightning

    data = data_module(recipe, recipe.changes)
    module = side_by_side(recipe, teacher, terms, data, labels, rate_factors=dict(rates))
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    quick = replace(recipe.trainer, enable_checkpointing=False, limit_val_batches=0, num_sanity_val_steps=0)
    trainer = fit(replace(recipe, trainer=quick), module, data, folder, name, recipe.training)
    limit = recipe.trainer.limit_val_batches
    trainer.limit_val_batches = 1.0 if limit is None else limit
    found = {
        "validation": trainer.validate(module, datamodule=data, verbose=False)[0],
        "test": trainer.test(module, datamodule=data, verbose=False)[0],
    }
    return {
        split: {
            "accuracy": {student: figures(measured, student, len(terms), split)["accuracy"] for student in terms},
            "teacher": measured.get(f"{split}/teacher_accuracy"),
            "warning": module.doubts.get(f"{split} chance", ""),
        }
        for split, measured in found.items()
    }


def report(compare: Compare, tuning: Values, cells: Sequence[Mapping[str, Any]], folder: RunFolder) -> None:
    """Accuracies and gaps with their intervals over seeds: tables, a figure, and the result.

    Args:
        compare: The block.
        tuning: What the tuning found.
        cells: Test accuracies of every seed.
        folder: Of the run.
    """
    chosen, baseline, rival = tuning["chosen"], compare.baseline, tuning["rival"]
    points = [{name: 100 * cell["accuracy"][name] for name in chosen} for cell in cells]
    accuracy = {name: interval([row[name] for row in points]) for name in chosen}
    gaps = {name: interval([row[name] - row[baseline] for row in points]) for name in chosen if name != baseline}
    result: Values = {"accuracy": accuracy, "gaps": gaps, "gap": gaps[rival], "rival": rival, "cells": list(cells)}
    warnings = [told for told in dict.fromkeys(found["warning"] for found in (tuning, *cells)) if told]
    result |= {"chosen": chosen, "tuning": tuning["scores"], "condition": tuning["condition"], "warnings": warnings}
    if cells[0]["teacher"] is not None:
        result["teacher"] = 100 * statistics.fmean(cell["teacher"] for cell in cells)
    columns = ("method", "value", "low", "high")
    drawn = [(name, gap["value"], gap["low"], gap["high"]) for name, gap in gaps.items()]
    folder.figure(
        "gaps",
        _picture(drawn, baseline),
        drawn,
        columns,
        title=f"How far methods are ahead of {baseline}",
        told=f"Points of test accuracy above {baseline}'s; bars are 95 % intervals over seeds. A bar that holds 0 says "
        "that these seeds do not tell the two apart.",
    )
    best = f"best on validation beside {baseline}: {rival}"
    shown = "; ".join(
        f"{name} {gap['value']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]" for name, gap in gaps.items()
    )
    folder.finish(result, _tables(baseline, result), summary=f"Points above {baseline}: {shown}; {best}.")


def _tables(baseline: str, result: Values) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The tables of a result: gaps, accuracies, what was chosen, and what speaks against it."""
    over = f"mean over {len(result['cells'])} seeds, 95 % interval"
    gaps = [{"method": name, **gap} for name, gap in result["gaps"].items()]
    scores = [{"method": name, **found} for name, found in result["accuracy"].items()]
    taught = [{"method": "teacher", "value": result["teacher"]}] if "teacher" in result else []
    chosen = [
        {
            "method": name,
            "losses": json.dumps(choice["terms"]),
            "rate": choice["rate"],
            "validation accuracy in %": 100 * choice["validation"],
        }
        for name, choice in result["chosen"].items()
    ]
    tables = {
        f"Gap to {baseline} in points of test accuracy ({over})": gaps,
        f"Test accuracy in % ({over})": [*scores, *taught],
        "What the tuning chose": chosen,
        "Can it tell?": [{"condition": result["condition"]}] if result["condition"] else [],
        "Warnings": [{"warning": told} for told in result["warnings"]],
    }
    return {title: rows for title, rows in tables.items() if rows}


def _picture(rows: Sequence[tuple[str, float, float, float]], baseline: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, value, low, high) in enumerate(rows):
        axes.errorbar(value, place, xerr=[[value - low], [high - value]], marker="o", capsize=3, color="tab:blue")
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel=f"test accuracy minus {baseline}'s (points)")
    return figure
