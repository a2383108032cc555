"""Does the advantage of DKD and DIST over tuned vanilla KD shrink with stronger training and with more data?

Runs ``distill_grid.yaml`` through the real command into one folder; finished cells are kept, so that an interrupted run
goes on where it stopped. A gap is the better of DKD and DIST (chosen on validation under the tuning's seed) minus
vanilla KD, in points of test accuracy, paired by seed, with a 95 % Student interval. ``gap_slope_updates`` and
``gap_slope_rows`` are points of the gap for every doubling of updates and of training rows under the strong recipe,
``gap_strong_large`` is the gap where both are largest. The grid can tell where ``teacher_over_ce``, how far the teacher
is above the best cell of labels alone, is at least 5 points, and where ``ce_gain_of_strong``, what the strong recipe
adds to labels alone with most rows, is above 0. Draws ``docs/distill_grid.png``, beside what the paper printed. Two and
a half hours of one core.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import Figure, write_results
from recipes.distill.grid_block import METHODS

OUT = Path("runs") / "distill_grid"
PICTURE = Path("docs") / "distill_grid.png"
# Accuracy minus vanilla KD's in points, by training: Hao et al., NeurIPS 2023, arXiv 2305.15781, figure 1.
PAPER = {"DIST": (2.17, 0.17, 0.01, -0.46), "DKD": (0.76, 0.28, 0.14, 0.01)}
TRAININGS = ("CIFAR-100", "ImageNet 30 %", "60 %", "100 %")


def main() -> None:
    """Run what is missing, then write the results and the picture."""
    if not (OUT / "result.json").exists():
        command = [sys.executable, "-m", "recipes.run", "distill_grid.yaml", "--out", str(OUT)]
        subprocess.run([*command, *(["--resume"] if (OUT / "recipe.yaml").exists() else [])], check=True)
    result = json.loads((OUT / "result.json").read_text(encoding="utf-8"))
    strongest = result["gaps"][-1]
    figures: dict[str, Figure] = {name: result[name] for name in ("teacher", "teacher_over_ce", "ce_gain_of_strong")}
    figures |= {f"gap_slope_{name}": slope for name, slope in result["slopes"].items()}
    figures["gap_strong_large"] = _interval(strongest)
    for gap, score in zip(result["gaps"], result["scores"], strict=True):
        place = f"{gap['recipe']}_{gap['size']}".replace("-", "_")
        figures[f"gap_{place}"] = _interval(gap)
        figures |= {f"{method}_{place}": score[method] for method in METHODS}
    tables = {name: result[name] for name in ("gaps", "scores", "cells")}
    tables["conditions"] = [{"condition": line} for line in result["conditions"]]
    write_results("distill_grid", figures, tables, seeds=len({cell["seed"] for cell in result["cells"]}))
    picture(result["gaps"])


def _interval(row: dict[str, Any]) -> dict[str, float]:
    return {key: row[key] for key in ("value", "low", "high")}


def picture(gaps: list[dict[str, Any]]) -> None:
    """The gap over updates, a line for each number of rows, beside the paper's over its trainings."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (here, there) = pyplot.subplots(1, 2, figsize=(10, 4))
    strong = [row for row in gaps if row["recipe"] != gaps[0]["recipe"]]
    for place, size in enumerate(dict.fromkeys(row["size"] for row in strong)):
        rows = sorted((row for row in strong if row["size"] == size), key=lambda row: row["updates"])
        spread = [[row["value"] - row["low"] for row in rows], [row["high"] - row["value"] for row in rows]]
        along = [row["updates"] * 1.06 ** (place - 1) for row in rows]  # side by side, so that bars do not cover
        here.errorbar(along, [row["value"] for row in rows], spread, marker="o", label=f"{size:,} rows")
    updates = sorted({row["updates"] for row in strong})
    here.set(xscale="log", xlabel="updates", ylabel="accuracy minus vanilla KD's (points)", title="This grid")
    here.set_xticks(updates, [f"{count:,}" for count in updates])
    here.minorticks_off()
    for name, points in PAPER.items():
        there.plot(TRAININGS, points, marker="o", label=name)
    there.set(xlabel="data", title="Figure 1 of the paper")
    for axes in (here, there):
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.legend()
    figure.savefig(PICTURE, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
