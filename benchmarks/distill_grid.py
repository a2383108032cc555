"""Does the advantage of DKD and DIST over tuned vanilla KD shrink with stronger training and with more data?

Runs ``distill_grid.yaml`` through the real command: once for its teacher, then as sweeps over training rows and
updates, under the older recipe (``weak``) and the stronger one. Finished runs are kept, so that an interrupted one goes
on where it stopped. A gap is the better of DKD and DIST (chosen on validation under the tuning's seed) minus vanilla
KD, in points of test accuracy, paired by seed, with a 95 % Student interval. ``gap_slope_updates`` and
``gap_slope_rows`` are points of the gap for every doubling of updates and of training rows under the strong recipe,
``gap_strong_large`` is the gap where both are largest. The grid can tell where ``teacher_over_ce``, how far the teacher
is above the best cell of labels alone, is at least 5 points, and where ``ce_gain_of_strong``, what the strong recipe
adds to labels alone with most rows, is above 0. Draws ``docs/distill_grid.png``, beside what the paper printed. Two and
a half hours of one core.
"""

from pathlib import Path

from benchmarks.common import Figure, write_results
from benchmarks.gaps import Row, by_seed, places, run, slopes, table
from recipes.running.intervals import interval

OUT = Path("runs/distill_grid")
PICTURE = Path("docs") / "distill_grid.png"
TEACHER = OUT / "teacher/students/ce/network.safetensors"
TAUGHT = f"teacher.options={{in_chans: 1, mean: [0.328], std: [0.179], checkpoint_path: {TEACHER}}}"
ALONE = ("compare=null", "teacher.model=", "student.model=small_cnn_32", "methods={ce: {hard: {}}}")
WEAK = ("regime=previous_cifar", "changes={batch_size: 128, image_size: 16, schedule_on: update}")
ROWS = (2000, 16000, 128000)
# Recipe, updates, rows, and what the recipe's file is changed by.
SWEEPS = (
    ("weak", (1200,), ROWS, WEAK),
    ("strong", (300, 1200), ROWS, ()),
    ("strong", (4800,), (2000, 128000), ()),
)
# Accuracy minus vanilla KD's in points, by training: Hao et al., NeurIPS 2023, arXiv 2305.15781, figure 1.
PAPER = {"DIST": (2.17, 0.17, 0.01, -0.46), "DKD": (0.76, 0.28, 0.14, 0.01)}
TRAININGS = ("CIFAR-100", "ImageNet 30 %", "60 %", "100 %")


def main() -> None:
    """Run what is missing, then write the results and the picture."""
    recipe = "distill_grid.yaml"
    long = ("changes.learning_rate=0.02", "data.rows=128000", "trainer.max_steps=9600")
    run(recipe, OUT / "teacher", *ALONE, *long)
    rows: list[Row] = []
    for name, updates, sizes, changes in SWEEPS:
        sweep = OUT / f"{name}-{updates[0]}"
        varied = [f"trainer.max_steps={','.join(map(str, updates))}", f"data.rows={','.join(map(str, sizes))}"]
        run(recipe, sweep, TAUGHT, *changes, *(word for one in varied for word in ("--sweep", one)), "--show", "gap")
        rows += places(sweep, "data.rows", recipe=name)
    write_results("distill_grid", figures(rows), {"places": table(rows), "cells": cells(rows)}, seeds=3)
    picture(table(rows))


def figures(rows: list[Row]) -> dict[str, Figure]:
    """What README and docs quote."""
    weak, strong = ([row for row in rows if row["recipe"] == name] for name in ("weak", "strong"))
    teacher, largest = rows[0]["result"]["teacher"], strong[-1]
    best = max(row["result"]["accuracy"]["ce"]["value"] for row in rows)
    most = max(row["size"] for row in weak)
    plain = next(row for row in weak if row["size"] == most)
    gain = [high - low for high, low in zip(by_seed(largest, "ce"), by_seed(plain, "ce"), strict=True)]
    made: dict[str, Figure] = {"teacher": teacher, "teacher_over_ce": teacher - best}
    made |= {"ce_gain_of_strong": interval(gain), "gap_strong_large": largest["result"]["gap"]}
    made |= {f"gap_slope_{name}": slope for name, slope in slopes(strong).items()}
    for row in rows:
        place = f"weak_{row['size']}" if row["recipe"] == "weak" else f"strong_{row['updates']}_{row['size']}"
        made[f"gap_{place}"] = row["result"]["gap"]
        made |= {f"{method}_{place}": found["value"] for method, found in row["result"]["accuracy"].items()}
    return made


def cells(rows: list[Row]) -> list[Row]:
    """Every seed of every place."""
    return [
        {key: row[key] for key in ("recipe", "updates", "size")} | {"seed": cell["seed"], **cell["accuracy"]}
        for row in rows
        for cell in row["result"]["cells"]
    ]


def picture(gaps: list[Row]) -> None:
    """The gap over updates, a line for each number of rows, beside the paper's over its trainings."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (here, there) = pyplot.subplots(1, 2, figsize=(10, 4))
    strong = [row for row in gaps if row["recipe"] == "strong"]
    for place, size in enumerate(sorted({row["size"] for row in strong})):
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
