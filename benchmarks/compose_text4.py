"""Four text experts composed into dense students over six seeds: students against twin, experts and static merges.

Every seed is one run of ``compose.yaml`` through the real command; experts, twin and router are in the cache, and
finished seeds are kept, so that an interrupted benchmark goes on where it stopped. For one seed the run is
repeated with one more epoch of the student of the base's size (a run of its own, whose scores count for nothing here):
``reused_stages`` is how many of experts' merge, twin's router and other students it took from the cache. About half an
hour of one core a seed; a seed that is named as an argument is run first.
"""

import sys
from typing import Any

from benchmarks.cells import Row, kept_run
from benchmarks.common import Figure, write_results
from recipes.running.intervals import interval

SEEDS = (0, 1, 2, 3, 4, 5)
DENSE, SMALL = "dense", "small"


def main() -> None:
    """Run the missing seeds, then write the results."""
    for seed in sorted(SEEDS, key=lambda one: str(one) not in sys.argv[1:]):
        run(str(seed), [f"seed={seed}"])
    again = run("again", [f"seed={SEEDS[0]}", f"students.{DENSE}.changes.epochs=5"])
    runs = [run(str(seed), [f"seed={seed}"]) for seed in SEEDS]
    write_results("compose_text4", figures_of(runs, again), tables_of(runs, again), seeds=len(SEEDS))


def run(name: str, words: list[str]) -> Row:
    """The result of one composition, made where it is missing, with the seconds it took here."""
    return kept_run("compose_text4", name, "compose.yaml", *words)


def figures_of(runs: list[dict[str, Any]], again: dict[str, Any]) -> dict[str, Figure]:
    """Students over the twin, over the experts and over the best static merge; sizes; what was used again."""
    figures: dict[str, Figure] = {}
    for prefix, name in (("student", DENSE), ("small_student", SMALL)):
        figures[f"{prefix}_over_twin"] = interval([one["student_over_twin"][name] for one in runs])
        figures[f"{prefix}_normalised"] = interval([one["rows"][name]["normalised"] for one in runs])
        over = [one["rows"][name]["mean"] - one["rows"][best_static(one)]["mean"] for one in runs]
        figures[f"{prefix}_over_best_static"] = interval(over)
        figures[f"{prefix}_bytes_over_twin"] = runs[-1]["rows"][name]["bytes"] / runs[-1]["rows"]["twin"]["bytes"]
    figures["student_over_twin_min_seed"] = min(one["student_over_twin"][DENSE] for one in runs)
    figures["twin_normalised"] = interval([one["rows"]["twin"]["normalised"] for one in runs])
    figures["explained_equals_measured"] = max(one["explained_equals_measured"] for one in runs)
    figures["reused_stages"] = len(again["reused_stages"])
    figures["again_seconds"] = again["seconds"]
    return figures


def best_static(run: dict[str, Any]) -> str:
    """The row of the static merge that was best on validation."""
    return next(name for name in run["rows"] if name.startswith("best static"))


def tables_of(runs: list[dict[str, Any]], again: dict[str, Any]) -> dict[str, Any]:
    """Scores by task and seed, what every task adds at every step, and the stages that were used again."""
    return {
        "rows": [
            {"seed": seed, "model": name, "mean": row["mean"], "normalised": row["normalised"], **row["tasks"]}
            for seed, one in zip(SEEDS, runs, strict=True)
            for name, row in one["rows"].items()
        ],
        "steps": [
            {"seed": seed, "step": step, "task": task, **part}
            for seed, one in zip(SEEDS, runs, strict=True)
            for step, told in one["explained"].items()
            for task, part in told["by_task"].items()
        ],
        "runs": [
            {"run": name, "seconds": one["seconds"], "reused_stages": ", ".join(one["reused_stages"])}
            for name, one in zip([*map(str, SEEDS), "again"], [*runs, again], strict=True)
        ],
    }


if __name__ == "__main__":
    main()
