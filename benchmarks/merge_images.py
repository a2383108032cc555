"""Four image tasks merged over three seeds: the routed twin against every static merge, bytes, and what rank costs.

Every seed is one run of ``merge_images.yaml`` through the real command; beside it stand runs of the same experts at
other densities of the exclusive experts, which is the paper's curve of score against density. Experts are cached and
finished cells are kept, so that an interrupted run goes on where it stopped. About a quarter of an hour of one core a
seed; a seed that is named as an argument is run first.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import Figure, write_results
from recipes.running.intervals import interval
from twinmerge.methods import methods

SEEDS = (0, 1, 2)
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.5)
MAIN = 0.5  # density of the recipe
CELLS = Path("runs") / "images"


def main() -> None:
    """Run the missing cells, then write the results."""
    for seed in sorted(SEEDS, key=lambda one: str(one) not in sys.argv[1:]):
        for density in (MAIN, *(d for d in DENSITIES if d != MAIN)):
            out = cell(seed, density)
            if (out / "result.json").exists():
                continue
            changes = [f"seed={seed}", f"exclusive.density={density}"]
            if density != MAIN:  # the other rows do not depend on it
                changes += ["baselines.scales=[0.3]"]
            command = [sys.executable, "-m", "recipes.run", "merge_images.yaml", *changes]
            subprocess.run([*command, "--out", str(out), "--force"], check=True)
    runs = [json.loads((cell(seed, MAIN) / "result.json").read_text()) for seed in SEEDS]
    curve = [(d, [json.loads((cell(s, d) / "result.json").read_text()) for s in SEEDS]) for d in DENSITIES]
    write_results("merge_images", figures_of(runs) | curve_of(curve), tables_of(runs, curve), seeds=len(SEEDS))


def cell(seed: int, density: float) -> Path:
    """Run folder of one cell."""
    return CELLS / f"{seed}-{density}"


def static_of(run: dict[str, Any]) -> list[str]:
    """The rows of static merges."""
    return [name for name in run["rows"] if name in methods()]


def figures_of(runs: list[dict[str, Any]]) -> dict[str, Figure]:
    """Means over seeds with intervals, and the routed row against the best static merge of each seed, by test score."""
    figures: dict[str, Figure] = {}
    for name in runs[0]["rows"]:
        slug = name.replace(", ", " ").replace(" ", "_")
        figures[f"{slug}_normalised"] = interval([run["rows"][name]["normalised"] for run in runs])
    routed = [run["rows"]["routed"]["normalised"] for run in runs]
    figures["routed_normalised_min_seed"] = min(routed)
    over = {
        name: interval([r - run["rows"][name]["normalised"] for r, run in zip(routed, runs, strict=True)])
        for name in static_of(runs[0])
    }
    figures |= {f"advantage_over_{name}": value for name, value in over.items()}
    figures["advantage_low"] = min(value["low"] for value in over.values())  # over the strongest of them
    figures["router_accuracy"] = interval([run["router"]["accuracy"] for run in runs])
    last = runs[-1]["rows"]
    figures["bytes_over_experts"] = last["routed"]["bytes"] / last["experts"]["bytes"]
    figures["bytes_over_base"] = last["routed"]["bytes"] / last["pretrained"]["bytes"]
    return figures


def curve_of(curve: list[tuple[float, list[dict[str, Any]]]]) -> dict[str, Figure]:
    """The routed row by density, and the megabytes of its twin."""
    figures: dict[str, Figure] = {}
    for density, found in curve:
        rows = [run["rows"]["routed"] for run in found]
        figures[f"density_{100 * density:.0f}_normalised"] = interval([row["normalised"] for row in rows])
        figures[f"density_{100 * density:.0f}_megabytes"] = rows[-1]["bytes"] / 1e6
    return figures


def tables_of(runs: list[dict[str, Any]], curve: list[tuple[float, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Rows by seed, scores by task and seed, and the curve of score and bytes against density."""
    return {
        "rows": [
            {"row": name, **interval([run["rows"][name]["normalised"] for run in runs]), "bytes": values["bytes"]}
            for name, values in runs[-1]["rows"].items()
        ],
        "tasks": [
            {"seed": seed, "row": name, **values["tasks"]}
            for seed, run in zip(SEEDS, runs, strict=True)
            for name, values in run["rows"].items()
        ],
        "density": [
            {
                "density": density,
                **interval([run["rows"]["routed"]["normalised"] for run in found]),
                "bytes": found[-1]["rows"]["routed"]["bytes"],
            }
            for density, found in curve
        ],
    }


if __name__ == "__main__":
    main()
