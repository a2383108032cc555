"""Sweeps of distill's ``compare:`` recipes read as one table: accuracies, gaps to vanilla KD, and slopes of the gap."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.running.intervals import interval

Row = dict[str, Any]


def run(recipe: str, out: Path, *words: str) -> None:
    """Run a recipe, or a sweep, by the real command where it has no result yet, or go on with it.

    Args:
        recipe: Its file, or the name of one that ships.
        out: Folder of the run or sweep.
        words: Further words of the command.
    """
    if not (out / "result.json").exists():
        again = ["--resume"] if (out / "recipe.yaml").exists() else []
        subprocess.run([sys.executable, "-m", "recipes.run", recipe, *words, "--out", str(out), *again], check=True)


def places(sweep: Path, rows_key: str, **named: str) -> list[Row]:
    """A row for every run of a finished sweep: updates, rows of data, and what the comparison found.

    Args:
        sweep: Its folder.
        rows_key: The key of the recipe that says how many rows are learned from.
        named: Further entries of every row.
    """
    found = json.loads((sweep / "result.json").read_text(encoding="utf-8"))
    made = []
    for one in found["runs"]:
        result = json.loads((sweep / one["folder"] / "result.json").read_text(encoding="utf-8"))
        place = {"updates": int(one["trainer.max_steps"]), "size": int(one[rows_key])}
        made.append({**named, **place, "result": result})
    return made


def by_seed(row: Row, method: str) -> list[float]:
    """Test accuracies of a method, in percent."""
    return [100 * cell["accuracy"][method] for cell in row["result"]["cells"]]


def gap_by_seed(row: Row) -> list[float]:
    """The best other method on validation minus vanilla KD, in points."""
    pairs = zip(by_seed(row, row["result"]["rival"]), by_seed(row, "kd"), strict=True)
    return [rival - kd for rival, kd in pairs]


def slopes(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """By how many points the gap grows with every doubling of updates and of rows: least squares for each seed.

    What does not vary has no slope, and neither has either where both grow together. The interval is over seeds.
    """
    varied = [key for key in ("updates", "size") if len({row[key] for row in rows}) > 1]
    design = np.array([[1.0, *(math.log2(row[key]) for key in varied)] for row in rows])
    gaps = np.array([gap_by_seed(row) for row in rows])
    fitted, _, rank, _ = np.linalg.lstsq(design, gaps, rcond=None)
    if rank < design.shape[1]:
        return {}
    names = {"updates": "updates", "size": "rows"}
    return {names[key]: interval(each) for key, each in zip(varied, fitted[1:].tolist(), strict=True)}


def table(rows: Sequence[Row]) -> list[Row]:
    """Of every place the mean accuracies in percent and the gap in points, ready for a results file."""
    lines = []
    for row in rows:
        place = {key: value for key, value in row.items() if key != "result"}
        result: Mapping[str, Any] = row["result"]
        means = {method: found["value"] for method, found in result["accuracy"].items()}
        lines.append({**place, "rival": result["rival"], **result["gap"], **means})
    return lines
