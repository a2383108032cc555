"""What a grid of distillations says: whether it can tell, gaps to vanilla KD, and how these move with both axes.

A gap is the better of DKD and DIST, chosen on validation in the tuning, minus vanilla KD, in points of test accuracy,
paired by seed. Hao et al. (NeurIPS 2023, arXiv 2305.15781, figure 1) find that it goes away with stronger training and
more data. That can be seen only where the teacher knows more than the students do without it, and where the stronger
recipe helps them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from recipes.distill.grid_block import Grid
from recipes.distill.schema import Values
from recipes.running.intervals import half_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recipes.running.folder import RunFolder

__all__ = ["conditions", "gap", "report", "slopes"]

Row = Mapping[str, Any]
Results = Sequence[Row]  # of every cell: recipe, size, seed, rival, and the accuracy of every method
LEAD = 5.0  # points by which the teacher is to be ahead of labels alone


def conditions(grid: Grid, ce: Mapping[tuple[str, int], float], teacher: float) -> dict[str, str]:
    """Whether the grid can tell, by validation accuracies of the tuning, a sentence for each condition.

    Args:
        grid: The grid.
        ce: Accuracy of labels alone by recipe and rows.
        teacher: The teacher's accuracy.
    """
    lead = 100 * (teacher - max(ce.values()))
    found = {
        "teacher_over_ce": f"condition {'holds' if lead >= LEAD else 'FAILS'}: on validation the teacher is {lead:.1f} "
        f"points above the best student of labels alone; the grid can tell from {LEAD:g} on"
    }
    if (size := _common(grid)) is not None:
        weak, strong = _ends(grid)
        gain = 100 * (ce[strong, size] - ce[weak, size])
        found["ce_gain_of_strong"] = (
            f"condition {'holds' if gain > 0 else 'FAILS'}: on validation, with {size} rows, the recipe {strong} adds "
            f"{gain:.1f} points to labels alone over {weak}; the grid can tell where it adds some"
        )
    return found


def gap(rows: Results) -> list[float]:
    """Rival minus vanilla KD, in points, by seed; the rival is the better of DKD and DIST on validation when tuning."""
    return [100 * (row[row["rival"]] - row["kd"]) for row in rows]


def slopes(grid: Grid, results: Results) -> dict[str, dict[str, float]]:
    """By how many points the gap grows with every doubling of updates and of rows: least squares for each seed.

    Only the recipes count that are the last one but for updates and rows; what does not vary among them has no slope.
    The interval is over seeds.
    """
    import numpy as np

    last = list(grid.settings.values())[-1]
    alike = [
        name
        for name, setting in grid.settings.items()
        if (setting.regime, setting.changes, setting.augment) == (last.regime, last.changes, last.augment)
    ]
    rows = [row for row in results if row["recipe"] in alike]

    def doublings(name: str, row: Row) -> float:
        return math.log2(row["size"] if name == "rows" else grid.settings[row["recipe"]].updates)

    varied = [name for name in ("updates", "rows") if len({doublings(name, row) for row in rows}) > 1]
    found: dict[str, list[float]] = {name: [] for name in varied}
    for seed in grid.seeds if varied else []:
        own = [row for row in rows if row["seed"] == seed]
        design = np.array([[1.0, *(doublings(name, row) for name in varied)] for row in own])
        fitted, _, rank, _ = np.linalg.lstsq(design, np.array(gap(own)), rcond=None)
        if rank < design.shape[1]:  # updates and rows grow together
            return {}
        for name, slope in zip(varied, fitted[1:].tolist(), strict=True):
            found[name].append(slope)
    return {name: interval(values) for name, values in found.items()}


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean with a 95 % Student interval; of one value, the value."""
    mean, half = statistics.fmean(values), half_interval(values) or 0.0
    return {"value": mean, "low": mean - half, "high": mean + half}


def _ends(grid: Grid) -> tuple[str, str]:
    """The weakest and the strongest recipe."""
    names = list(grid.settings)
    return names[0], names[-1]


def _common(grid: Grid) -> int | None:
    """The most rows that the weakest and the strongest recipe both have; None where they share none, or are one."""
    weak, strong = _ends(grid)
    shared = {size for name, size in grid.places if name == weak} & {s for name, s in grid.places if name == strong}
    return max(shared, default=None) if weak != strong else None


def report(grid: Grid, results: Results, teacher: float, told: list[str], folder: RunFolder) -> None:
    """Tables of accuracies and gaps, a figure of the gaps, and the result.

    Args:
        grid: The grid.
        results: Of all cells.
        teacher: The teacher's test accuracy.
        told: What `conditions` said.
        folder: Of the run.
    """
    scores: list[Row] = []
    gaps: list[Row] = []
    for name, size in grid.places:
        rows = [row for row in results if (row["recipe"], row["size"]) == (name, size)]
        place = {"recipe": name, "updates": grid.settings[name].updates, "size": size}
        means = {method: 100 * statistics.fmean(row[method] for row in rows) for method in grid.candidates}
        scores.append({**place, **means})
        gaps.append({**place, "rival": rows[0]["rival"], **interval(gap(rows))})
    found = slopes(grid, results)
    result: Values = {"teacher": 100 * teacher, "gaps": gaps, "scores": scores, "cells": list(results)}
    result |= {"conditions": told, "slopes": found}
    result["teacher_over_ce"] = 100 * teacher - max(row["ce"] for row in scores)
    if (most := _common(grid)) is not None:
        by_seed = {(row["recipe"], row["seed"]): row["ce"] for row in results if row["size"] == most}
        weak, strong = _ends(grid)
        result["ce_gain_of_strong"] = interval([100 * (by_seed[strong, s] - by_seed[weak, s]) for s in grid.seeds])
    columns = ("recipe", "updates", "size", "rival", "value", "low", "high")
    folder.figure(
        "gaps",
        drawn(gaps),
        [[row[c] for c in columns] for row in gaps],
        columns,
        title="How far the better of DKD and DIST is ahead of vanilla KD",
        told="Left over training rows, a line for each recipe; right over updates, a line for each number of rows. A "
        "line that falls towards 0 says that the advantage goes away; bars are 95 % intervals over seeds.",
    )
    per_doubling = [{"doubling": name, **slope} for name, slope in found.items()]
    tables: dict[str, Results] = {"Gap to vanilla KD (points)": gaps, "Test accuracy (%)": scores}
    tables |= {"Change of the gap with every doubling (points)": per_doubling} if per_doubling else {}
    folder.finish(
        result,
        {**tables, "Can the grid tell?": [{"condition": line} for line in told]},
        summary="; ".join(
            f"{r['recipe']}, {r['size']} rows: {r['value']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]" for r in gaps
        ),
    )


def drawn(gaps: Results) -> Figure:
    """The gap over training rows, a line for each recipe, and over updates, a line for each number of rows."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    panels = (("size", "recipe", "training rows", ""), ("updates", "size", "updates", " rows"))
    figure, both = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axes, (along, line, name, unit) in zip(both, panels, strict=True):
        for value in dict.fromkeys(row[line] for row in gaps):
            rows = sorted((row for row in gaps if row[line] == value), key=lambda row: row[along])
            spread = [[r["value"] - r["low"] for r in rows], [r["high"] - r["value"] for r in rows]]
            axes.errorbar([r[along] for r in rows], [r["value"] for r in rows], spread, label=f"{value}{unit}")
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set(xscale="log", xlabel=name)
        axes.legend()
    both[0].set(ylabel="better of DKD and DIST − KD (points)")
    return cast("Figure", figure)
