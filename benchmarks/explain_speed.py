"""Time and memory of explaining one gap: all subsets, covariate and outcome terms, 5 folds, 2 processes.

``seconds_linear`` and ``seconds_boosting``: the linear design of `benchmarks.explain_designs` with 3 variables and
4,000 rows a domain, 0-1 loss. ``seconds_8_groups``: the same with 5 further variables without effect, 8 groups and so
256 subsets, linear nuisances. ``seconds_200k``: 200,000 rows a domain and 15 columns in 4 groups, default learners;
``peak_mb_200k`` is its peak. ``seconds_p30``: 30 ungrouped variables beside the baseline, 2,000 rows a domain, so that
subsets are sampled. ``peak_mb``: the largest resident memory of this process and its workers together, without the
case of 200,000 rows. Bare seconds hold for the machine in the file alone. A case that was measured is kept under
runs/explain_speed/.
"""

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from joblib import parallel_config

from benchmarks.common import write_results
from benchmarks.explain_designs import DESIGNS
from explain import GapExplainer

KEPT = Path("runs/explain_speed")
GROUPS = {
    "first": ["z1", "noise0", "noise1"],
    "second": ["z2", "noise2", "noise3"],
    "third": ["z3", "noise4", "noise5", "noise6"],
    "rest": ["noise7", "noise8", "noise9", "noise10"],
}
CASES: dict[str, dict[str, Any]] = {
    "linear": {"learners": "linear"},
    "boosting": {"learners": "hist_gb"},
    "8_groups": {"learners": "linear", "extra": 5},
    "200k": {"learners": "auto", "extra": 11, "rows": 200_000, "groups": GROUPS},
    "p30": {"learners": "linear", "extra": 27, "rows": 2000},
}


class Memory(threading.Thread):
    """Watches the resident megabytes of this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.over = 0.0, threading.Event()

    def run(self) -> None:
        """Look five times a second."""
        here = psutil.Process()
        while not self.over.wait(0.2):
            total = 0.0
            for process in (here, *here.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss / 1e6
            self.peak = max(self.peak, total)

    def stop(self) -> float:
        """The peak so far, in megabytes."""
        self.over.set()
        self.join()
        return self.peak


def measure(learners: str, extra: int = 0, rows: int = 4000, groups: Any = None) -> dict[str, float]:
    """Seconds and peak megabytes."""
    rng = np.random.default_rng(1)
    frames: list[Any] = []
    for domain in (0, 1):
        noise = {f"noise{i}": rng.normal(size=rows) for i in range(extra)}
        frames.append(DESIGNS[0].table(domain, rows, rng).assign(**noise))
    memory = Memory()
    memory.start()
    start = time.perf_counter()
    GapExplainer(["w"], groups, learners=learners, n_jobs=2).fit(*frames)
    return {"seconds": time.perf_counter() - start, "mb": memory.stop()}


def main() -> None:
    """Measure what was not measured, print and write the figures."""
    KEPT.mkdir(parents=True, exist_ok=True)
    found, rows = {}, []
    with parallel_config(backend="loky", inner_max_num_threads=1):
        for name, options in CASES.items():
            kept = KEPT / f"{name}.json"
            if not kept.exists():
                kept.write_text(json.dumps(measure(**options)), encoding="utf-8")
            row = json.loads(kept.read_text(encoding="utf-8"))
            found[f"seconds_{name}"] = row["seconds"]
            rows.append({"case": name, **row})
            print(f"{name}: {row['seconds']:.1f} s, {row['mb']:.0f} MB", flush=True)
    found["peak_mb_200k"] = next(row["mb"] for row in rows if row["case"] == "200k")
    found["peak_mb"] = max(row["mb"] for row in rows if row["case"] != "200k")
    print(write_results("explain_speed", found, {"cases": rows}, 1))


if __name__ == "__main__":
    main()
