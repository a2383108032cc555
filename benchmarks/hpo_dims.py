"""The gap against the dimension: HPO, HPO without its cross term, hybrid PPO and Stable-Baselines3's PPO.

Switched LQR with 2 modes at dimensions 3, 8, 16 and 24 (5 seeds), and joint replenishment of 1, 5 and 20 items (3
seeds); every method takes as many simulator steps. Each method's learning rate is the best of four, by the
cost under seed 100 at the middle dimension, which is no seed of the results.
``hppo_over_hpo_dim<n>`` is hybrid PPO's mean final cost over HPO's; ``gap_slope`` the slope of the difference of their
gaps over the dimension, with a 95 % interval from resampled seeds; ``<method>_lqr<n>`` and ``<method>_items<n>`` the
median gap over seeds. Every training is a cell under runs/benchmarks;
``--only PART`` runs the cells whose name contains PART and writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.common import write_results
from benchmarks.hpo_cells import cell, rows_of

BATCH = 128
SLQR = "rl.envs.switched_lqr.switched_lqr"
INVENTORY = "rl.envs.inventory.joint_replenishment"
DIMENSIONS, ITEMS = (3, 8, 16, 24), (1, 5, 20)
UPDATES = {SLQR: 600, INVENTORY: 200}
SHARED = {SLQR: {}, INVENTORY: {"discount": 0.99, "max_norm": 0.5}}
METHODS: dict[str, dict[str, Any]] = {
    "hpo": {"entropy_start": 0.3},
    "no_cross": {"cross": "off", "entropy_start": 0.3},
    "hppo": {"estimator": "score", "reuse": 4, "entropy_start": 0.01},
    "sb3": {},
}
RATES = {
    "hpo": (1e-3, 3e-3, 1e-2, 3e-2),
    "no_cross": (1e-3, 3e-3, 1e-2, 3e-2),
    "hppo": (3e-4, 1e-3, 3e-3, 1e-2),
    "sb3": (3e-4, 1e-3, 3e-3, 1e-2),
}


def train(problem: str, size: int, method: str, rate: float, seed: int, updates: int) -> dict[str, Any]:
    """The row of one cell."""
    arguments = {"dimension": size, "modes": 2} if problem == SLQR else {"items": size, "orders": "up_to"}
    training = {**SHARED[problem], **METHODS[method], "learning_rate": rate}
    if method == "hppo":
        training["discrete_rate"] = rate
    name = f"{problem.rpartition('.')[2]} {size} {method} {rate:g}"
    cells = {"seed": seed, "updates": updates, "batch": BATCH, "sb3": method == "sb3"}
    return {**cell("hpo_dims", name, problem, arguments, training, **cells), "method": method, "size": size}


def tuned_rate(problem: str, method: str, updates: int) -> float:
    """The rate with the lowest cost under a seed of its own; the same budget for every method."""
    middle = 8 if problem == SLQR else 5
    costs = {rate: train(problem, middle, method, rate, 100, updates)["cost"] for rate in RATES[method]}
    return min(costs, key=costs.__getitem__)


def slope(gaps: Mapping[str, Mapping[int, list[float]]]) -> dict[str, float]:
    """Slope of hybrid PPO's gap minus HPO's over the dimension, with an interval from resampled seeds."""
    rng = np.random.default_rng(0)

    def fitted(pick: Any) -> float:
        excess = [np.mean(pick(gaps["hppo"][n])) - np.mean(pick(gaps["hpo"][n])) for n in DIMENSIONS]
        return float(np.polyfit(DIMENSIONS, excess, 1)[0])

    draws = [fitted(lambda values: rng.choice(values, len(values))) for _ in range(2000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    value = fitted(lambda values: values)
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value)}


def main() -> None:
    """Train what is missing, then write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run only the cells of this method")
    parser.add_argument("--updates", type=int, help="other than the full number: a trial")
    options = parser.parse_args()
    rows, rates = [], []
    for problem, sizes, seeds in ((SLQR, DIMENSIONS, 5), (INVENTORY, ITEMS, 3)):
        for method in METHODS:
            if options.only not in method:
                continue
            updates = options.updates or UPDATES[problem]
            rate = tuned_rate(problem, method, updates)
            rates.append({"problem": problem, "method": method, "rate": rate, "tried": list(RATES[method])})
            rows += [train(problem, n, method, rate, seed, updates) for n in sizes for seed in range(seeds)]
    if options.only or options.updates:
        return

    def values(method: str, size: int, key: str, problem: str = "switched_lqr") -> list[float]:
        return [row[key] for row in rows if row["cell"].startswith(f"{problem} {size} {method} ")]

    ratios = {
        n: statistics.fmean(values("hppo", n, "cost")) / statistics.fmean(values("hpo", n, "cost")) for n in DIMENSIONS
    }
    steep = slope({method: {n: values(method, n, "gap") for n in DIMENSIONS} for method in ("hpo", "hppo")})
    figures = {f"hppo_over_hpo_dim{n}": ratio for n, ratio in ratios.items()}
    medians = {
        f"{method}_{short}{n}": statistics.median(values(method, n, "gap", problem))
        for problem, short, sizes in (("switched_lqr", "lqr", DIMENSIONS), ("joint_replenishment", "items", ITEMS))
        for method in METHODS
        for n in sizes
    }
    tables = {"cells": rows_of(rows), "rates": rates}
    figures |= medians
    print(write_results("hpo_dims", {**figures, "gap_slope": steep, "gap_slope_low": steep["low"]}, tables, seeds=5))


if __name__ == "__main__":
    main()
