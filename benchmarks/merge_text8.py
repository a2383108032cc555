"""Eight text tasks merged in both regimes over three seeds: the routed twin against all that serves eight experts.

The experts are made by plain transformers (`benchmarks/text8_experts.py`) and merged as the folders that they are by
``merge_text8.yaml``, once per regime and seed, through the real command; beside the twin stand every static merge (TIES
and TSV-Merge among them), EMR-Merging and a kNN router with the twin's own inputs, and a linear probe. Finished experts
and cells are kept, so that an interrupted run goes on where it stopped. Some hours of one core; a regime that is named
as an argument is run first.
"""

import statistics
import sys
from typing import Any

from benchmarks.cells import KEPT, Row, kept_run
from benchmarks.common import Figure, write_results
from benchmarks.text8_experts import REGIMES, SEEDS, TASKS, expert, make
from recipes.running.intervals import interval


def main() -> None:
    """Run the missing cells, then write the results."""
    for regime in sorted(REGIMES, key=lambda one: one not in sys.argv[1:]):
        for seed in SEEDS:
            run_of(regime, seed)
    figures: dict[str, Figure] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    for regime in REGIMES:
        runs = [run_of(regime, seed) for seed in SEEDS]
        figures |= figures_of(regime, runs)
        tables |= tables_of(regime, runs)
    figures["router_accuracy"] = figures["router_accuracy_fixed"]
    write_results("merge_text8", figures, tables, seeds=len(SEEDS))


def run_of(regime: str, seed: int) -> Row:
    """What one merge found; its experts are made first where it is not kept."""
    name = f"{regime}-{seed}"
    if not (KEPT / "merge_text8" / f"{name}.json").exists():
        for task in TASKS:
            make(regime, seed, task)
    given = [f"experts.{task}={expert(regime, seed, task)}" for task in TASKS]
    return kept_run("merge_text8", name, "merge_text8.yaml", f"seed={seed}", *given)


def figures_of(regime: str, runs: list[dict[str, Any]]) -> dict[str, Figure]:
    """Means over seeds with intervals of every row, and the worst seed of the routed one."""
    figures: dict[str, Figure] = {}
    for name in runs[0]["rows"]:
        mine = [run["rows"][name] for run in runs]
        slug = name.replace(", ", " ").replace(" ", "_")
        figures[f"{slug}_normalised_{regime}"] = interval([m["normalised"] for m in mine])
        figures[f"{slug}_gap_recovered_{regime}"] = interval([m["gap_recovered"] for m in mine])
    routed = [run["rows"]["routed"] for run in runs]
    for column in ("normalised", "gap_recovered"):
        figures[f"routed_{column}_{regime}_min_seed"] = min(row[column] for row in routed)
    static = [run["best_static_normalised"] for run in runs]
    figures[f"best_static_normalised_{regime}"] = interval(static)
    over = [row["normalised"] - best for row, best in zip(routed, static, strict=True)]
    figures[f"advantage_over_best_static_{regime}"] = interval(over)
    figures[f"routed_gap_over_probe_{regime}"] = interval([over_probe(run["rows"]) for run in runs])
    figures[f"router_accuracy_{regime}"] = interval([run["router"]["accuracy"] for run in runs])
    return figures


def tables_of(regime: str, runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows over seeds, scores by task and seed, and what was tuned."""
    return {
        f"rows_{regime}": [row(name, runs) for name in runs[0]["rows"]],
        f"tasks_{regime}": [
            {"seed": seed, "row": name, **values["tasks"]}
            for seed, run in zip(SEEDS, runs, strict=True)
            for name, values in run["rows"].items()
        ],
        f"tuned_{regime}": [
            {"seed": seed, "method": method, "best": method == run["best_static"], **options}
            for seed, run in zip(SEEDS, runs, strict=True)
            for method, options in run["tuned"].items()
        ],
    }


def over_probe(rows: dict[str, Any]) -> float:
    """The stricter gap: from a linear probe on the frozen base, instead of the experts' heads on it, to the experts."""
    probe = rows["linear probe"]["mean"]
    return float((rows["routed"]["mean"] - probe) / (rows["experts"]["mean"] - probe))


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
