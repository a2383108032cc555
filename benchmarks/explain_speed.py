"""Time and memory of explaining one gap: all subsets, covariate and outcome terms, 5 folds, 2 processes.

``seconds_linear`` and ``seconds_boosting``: the design of `benchmarks.explain_coverage` with 3 variables and 4,000 rows
a domain, 0-1 loss. ``seconds_8_groups``: the same with 5 further variables without effect, 8 groups and so 256 subsets,
linear nuisances. ``peak_mb``: the largest resident memory of this process and its workers together. Bare seconds hold
for the machine in the file alone.
"""

import contextlib
import threading
import time
from typing import Any

import numpy as np
import psutil
from joblib import parallel_config

from benchmarks.common import write_results
from benchmarks.explain_coverage import table
from explain import GapExplainer

ROWS = 4000
CASES = {
    "seconds_linear": {"learners": "linear"},
    "seconds_boosting": {"learners": "hist_gb"},
    "seconds_8_groups": {"learners": "linear", "extra": 5},
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


def measure(learners: str, extra: int = 0) -> tuple[float, float]:
    """Seconds and peak megabytes."""
    rng = np.random.default_rng(1)
    frames: list[Any] = []
    for domain in (0, 1):
        noise = {f"noise{i}": rng.normal(size=ROWS) for i in range(extra)}
        frames.append(table(domain, ROWS, rng).assign(**noise))
    memory = Memory()
    memory.start()
    start = time.perf_counter()
    GapExplainer(["w"], learners=learners, n_jobs=2).fit(*frames)
    seconds = time.perf_counter() - start
    memory.over.set()
    memory.join()
    return seconds, memory.peak


def main() -> None:
    """Measure, print and write the figures."""
    found, rows, peak = {}, [], 0.0
    with parallel_config(backend="loky", inner_max_num_threads=1):
        for name, options in CASES.items():
            seconds, megabytes = measure(**options)  # type: ignore[arg-type]
            found[name], peak = seconds, max(peak, megabytes)
            rows.append({"case": name, "seconds": seconds, "mb": megabytes})
            print(f"{name}: {seconds:.1f} s, {megabytes:.0f} MB", flush=True)
    print(write_results("explain_speed", {**found, "peak_mb": peak}, {"cases": rows}, 1))


if __name__ == "__main__":
    main()
