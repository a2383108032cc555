"""Four tasks of a small language model merged over three seeds: the routed twin against every static merge.

Runs ``merge_lm.yaml`` once a seed through the real command, and once more with two tasks left out of the merge, each
into its own folder; finished cells are kept and a broken one is resumed, so that an interrupted run goes on where it
stopped. About two hours of one core a seed, of which the experts take half; they are cached.
"""

import statistics
from typing import Any

from benchmarks.cells import Row, kept_run
from benchmarks.common import Figure, write_results
from recipes.running.intervals import interval

SEEDS = (0, 1, 2)
UNSEEN = (("inflect", "dialogue"), ("pronounce", "trec"), ("trec", "dialogue"))  # left out, a pair for each seed


def main() -> None:
    """Run the missing cells, then write the results."""
    found = [(run(seed), without(seed)) for seed in SEEDS]
    runs, left_out = [one for one, _ in found], [other["unseen"] for _, other in found]
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


def run(seed: int) -> Row:
    """One merge, gone on with where it stopped."""
    return kept_run("merge_lm", f"seed-{seed}", "merge_lm.yaml", f"seed={seed}", resumed=True)


def without(seed: int) -> Row:
    """One merge that two of the tasks are left out of."""
    changes = (f"seed={seed}", f"unseen=[{','.join(UNSEEN[seed])}]")
    return kept_run("merge_lm", f"unseen-{seed}", "merge_lm.yaml", *changes, resumed=True)


def best_static(run: dict[str, Any]) -> float:
    """The highest test score of all static methods, each tuned on validation: the strictest to compare with."""
    return float(max(run["rows"][method]["normalised"] for method in run["tuned"]))


if __name__ == "__main__":
    main()
