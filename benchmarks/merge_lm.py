"""Four tasks of a small language model merged over three seeds: the routed twin against every static merge.

Runs ``merge_lm.yaml`` once a seed through the real command, and once more with two tasks left out of the merge, each
into its own folder; finished cells are kept and a broken one is resumed, so that an interrupted run goes on where it
stopped. About two hours of one core a seed, of which the experts take half; they are cached.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import Figure, interval, write_results

SEEDS = (0, 1, 2)
UNSEEN = (("inflect", "dialogue"), ("pronounce", "trec"), ("trec", "dialogue"))  # left out, a pair for each seed
CELLS = Path("runs") / "merge_lm"


def main() -> None:
    """Run the missing cells, then write the results."""
    for seed in SEEDS:
        finish(CELLS / f"seed-{seed}", seed)
        finish(CELLS / f"unseen-{seed}", seed, f"unseen=[{','.join(UNSEEN[seed])}]")
    runs = [result(f"seed-{seed}") for seed in SEEDS]
    left_out = [result(f"unseen-{seed}")["unseen"] for seed in SEEDS]
    figures: dict[str, Figure] = {}
    for name in runs[0]["rows"]:
        figures[f"{name}_normalised"] = interval([run["rows"][name]["normalised"] for run in runs])
    advantage = interval([run["rows"]["routed"]["normalised"] - best_static(run) for run in runs])
    figures["advantage"] = advantage
    figures["advantage_low"] = advantage["low"]
    figures["router_accuracy"] = interval([run["router"]["accuracy"] for run in runs])
    figures["unseen_normalised"] = interval([one["rows"]["routed"]["normalised"] for one in left_out])
    for name in ("routed", "experts", "pretrained"):
        figures[f"{name}_megabytes"] = statistics.fmean(run["rows"][name]["bytes"] for run in runs) / 1e6
    tables = {
        "tasks": [
            {"seed": seed, "row": name, "normalised": row["normalised"], **row["tasks"]}
            for seed, run in zip(SEEDS, runs, strict=True)
            for name, row in run["rows"].items()
        ],
        "unseen": [
            {"seed": seed, "row": name, "normalised": row["normalised"], **row["tasks"]}
            for seed, one in zip(SEEDS, left_out, strict=True)
            for name, row in one["rows"].items()
        ],
        "tuned": [
            {"seed": seed, "method": method, **options}
            for seed, run in zip(SEEDS, runs, strict=True)
            for method, options in run["tuned"].items()
        ],
    }
    write_results("merge_lm", figures, tables, seeds=len(SEEDS))


def finish(out: Path, seed: int, *changes: str) -> None:
    """Run a cell that has no result yet, from where it stopped."""
    if (out / "result.json").exists():
        return
    begun = ["--resume"] if (out / "recipe.yaml").exists() else []
    command = [sys.executable, "-m", "recipes.run", "merge_lm.yaml", f"seed={seed}", *changes, "--out", str(out)]
    subprocess.run([*command, *begun], check=True)


def result(cell: str) -> dict[str, Any]:
    """What a cell found."""
    found: dict[str, Any] = json.loads((CELLS / cell / "result.json").read_text(encoding="utf-8"))
    return found


def best_static(run: dict[str, Any]) -> float:
    """The highest test score of all static methods, each tuned on validation: the strictest to compare with."""
    return float(max(run["rows"][method]["normalised"] for method in run["tuned"]))


if __name__ == "__main__":
    main()
