"""Eight text tasks merged in both regimes over three seeds: the routed twin against every static merge.

Runs ``merge_text8.yaml`` once per regime and seed through the real command, each into its own folder; finished cells
are kept, so that an interrupted run goes on where it stopped. About two hours of one core; cells can be run side by
side.
"""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from benchmarks.common import Figure, write_results

REGIMES = ("fixed", "trained")
SEEDS = (0, 1, 2)
CELLS = Path("runs") / "merge_text8"


def main() -> None:
    """Run the missing cells, then write the results."""
    for seed in SEEDS:
        for regime in REGIMES:
            out = cell(regime, seed)
            if not (out / "result.json").exists():
                command = [sys.executable, "-m", "recipes.run", "merge_text8.yaml", f"seed={seed}"]
                command += [f"training.heads={regime}", "--out", str(out), "--force"]
                subprocess.run(command, check=True)
    figures: dict[str, Figure] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    for regime in REGIMES:
        runs = [json.loads((cell(regime, seed) / "result.json").read_text()) for seed in SEEDS]
        for name in runs[0]["rows"]:
            mine = [run["rows"][name] for run in runs]
            slug = name.replace(", ", " ").replace(" ", "_")
            figures[f"{slug}_normalised_{regime}"] = interval([m["normalised"] for m in mine])
            figures[f"{slug}_gap_recovered_{regime}"] = interval([m["gap_recovered"] for m in mine])
        figures[f"best_static_normalised_{regime}"] = interval([r["best_static_normalised"] for r in runs])
        figures[f"advantage_over_best_static_{regime}"] = interval(
            [r["rows"]["routed"]["normalised"] - r["best_static_normalised"] for r in runs]
        )
        figures[f"routed_gap_over_probe_{regime}"] = interval([over_probe(r["rows"]) for r in runs])
        figures[f"router_accuracy_{regime}"] = interval([r["router"]["accuracy"] for r in runs])
        tables[f"rows_{regime}"] = [row(name, runs) for name in runs[0]["rows"]]
        tables[f"tasks_{regime}"] = [
            {"seed": seed, "row": name, **values["tasks"]}
            for seed, run in zip(SEEDS, runs, strict=True)
            for name, values in run["rows"].items()
        ]
        tables[f"tuned_{regime}"] = [
            {"seed": seed, "method": method, "best": method == run["best_static"], **options}
            for seed, run in zip(SEEDS, runs, strict=True)
            for method, options in run["tuned"].items()
        ]
    figures["router_accuracy"] = figures["router_accuracy_fixed"]
    write_results("merge_text8", figures, tables, seeds=len(SEEDS))


def cell(regime: str, seed: int) -> Path:
    """Run folder of one cell."""
    return CELLS / f"{regime}-{seed}"


def over_probe(rows: dict[str, Any]) -> float:
    """The stricter gap: from a linear probe on the frozen base, instead of the experts' heads on it, to the experts."""
    probe = rows["linear probe"]["mean"]
    return float((rows["routed"]["mean"] - probe) / (rows["experts"]["mean"] - probe))


def interval(values: list[float]) -> dict[str, float]:
    """Mean over seeds with a 95 % Student interval."""
    mean = statistics.fmean(values)
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return {"value": mean, "low": mean - half, "high": mean + half}


def row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table: means over seeds, intervals for the two headline columns."""
    mine = [run["rows"][name] for run in runs]
    gaps = [m["gap_recovered"] for m in mine]
    made: dict[str, Any] = {"row": name, "mean": statistics.fmean(m["mean"] for m in mine)}
    for title, values in (("normalised", [m["normalised"] for m in mine]), ("gap_recovered", gaps)):
        made |= {title if k == "value" else f"{title}_{k}": v for k, v in interval(values).items()}
    made["megabytes"] = mine[-1]["bytes"] / 1e6
    made["ms_per_input"] = statistics.fmean(m["ms_per_input"] for m in mine)
    return made


if __name__ == "__main__":
    main()
