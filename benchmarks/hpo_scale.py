"""The sizes of the paper: joint replenishment of up to 60 items, the switched LQR at dimension 48, and many stores.

Replenishment has 20, 40 and 60 items, the LQR dimension 24 and 48, and a warehouse 10 and 20 stores.

HPO, and beside it hybrid PPO: its actions are bounded and its observations normalised, so that it does not blow up. The
learning rate of each is the best of three or four, tuned alike: at the largest size, where a rate that is too high
shows first, under seeds of its own, by the mean validation cost of the last policy. Both take as many simulator steps,
with networks whose hidden layers grow with the dimension: 4 times it, at least 64; 64 for inventory and stores, which
are alike.
``<problem>_cost`` is the mean cost of the last policy over 3 seeds on test episodes, ``gap_to_reference_<problem>``
compares with the better of (R, S) and (Q, S), with the pruned Riccati policy or with triggers of orders and trucks
whose four numbers are tuned, on the same episodes,
``<problem>_ppo_cost`` is hybrid PPO's, and ``<problem>_seconds`` the longest training. Every training is a cell under
runs/benchmarks, so that an interrupted run goes on where it was; ``--only PART`` and ``--method`` run some of the cells
and write nothing.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any, NamedTuple

from benchmarks.common import write_results
from benchmarks.hpo_cells import cell, rows_of
from recipes.running.intervals import interval

SEEDS = 3
TUNING_SEEDS = (100, 101)
ITEMS = "rl.envs.inventory.joint_replenishment"
LQR = "rl.envs.switched_lqr.switched_lqr"
STORES = "rl.envs.stores.several_stores"
RATES = {ITEMS: (3e-4, 1e-3, 3e-3, 1e-2), LQR: (1e-3, 3e-3, 1e-2), STORES: (1e-3, 3e-3, 1e-2)}  # of the policies
COMMON = {"estimator": "score", "reuse": 4, "entropy_start": 0.01, "normalise": True}
PPO: dict[str, dict[str, Any]] = {
    ITEMS: {**COMMON, "log_std": -1.5},
    STORES: {**COMMON, "log_std": -1.5},
    # By trials under the first tuning seed: it explores widely, and many dimensions reach any limit of the divergence.
    LQR: {**COMMON, "log_std": 0.5, "trace": 0.9, "kl_limit": math.inf},
}


class Problem(NamedTuple):
    """What is trained, and with what."""

    path: str
    arguments: dict[str, Any]
    training: dict[str, Any]
    updates: int


def lqr(dimension: int, updates: int) -> Problem:
    """The switched LQR with 2 modes and networks 4 times as wide as the state."""
    width = max(64, 4 * dimension)
    return Problem(LQR, {"dimension": dimension, "modes": 2}, {"hidden": [width, width], "entropy_start": 0.3}, updates)


def items(count: int) -> Problem:
    """Joint replenishment."""
    training = {"discount": 0.99, "max_norm": 0.5, "entropy_start": 0.3}
    return Problem(ITEMS, {"items": count, "orders": "up_to"}, training, 200)


def stores(count: int) -> Problem:
    """Stores behind a warehouse, with what replenishment is trained with."""
    return Problem(STORES, {"stores": count}, items(count).training, 200)


PROBLEMS = {
    "items60": items(60),
    "lqr48": lqr(48, 900),
    "items20": items(20),
    "items40": items(40),
    "lqr24": lqr(24, 600),
    "stores20": stores(20),
    "stores10": stores(10),
}
LARGEST = {ITEMS: "items60", LQR: "lqr48", STORES: "stores20"}


def train(method: str, name: str, rate: float, seed: int) -> dict[str, Any]:
    """The row of a method on a problem, with a learning rate of its policies."""
    problem = PROBLEMS[name]
    arguments, training = problem.arguments, {**problem.training, "learning_rate": rate}
    if method == "ppo":
        training |= {**PPO[problem.path], "discrete_rate": rate}
        arguments = arguments | ({"bound": 10.0} if problem.path == LQR else {})
    return cell(
        "hpo_scale",
        f"{name} {method} {rate:g}",
        problem.path,
        arguments,
        training,
        seed=seed,
        updates=problem.updates,
        batch=128,
        validations=4,  # the last of them after the last update
    )


def tuned(method: str, path: str) -> dict[float, float]:
    """The mean validation cost of the last policy at the largest size, by learning rate."""
    return {
        rate: statistics.fmean(train(method, LARGEST[path], rate, seed)["curve"][-1]["cost"] for seed in TUNING_SEEDS)
        for rate in RATES[path]
    }


def main() -> None:
    """Train what is missing, then write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run only the cells of this problem, and write nothing")
    parser.add_argument("--method", choices=("hpo", "ppo"), help="run only these cells, and write nothing")
    options = parser.parse_args()
    rows, tuning = [], []
    for method in ("hpo", "ppo"):
        for path, largest in LARGEST.items():
            mine = [name for name in PROBLEMS if PROBLEMS[name].path == path and options.only in name]
            if options.method not in (None, method) or not mine:
                continue
            costs = tuned(method, path)
            best = min(costs, key=costs.__getitem__)
            tuning += [
                {"method": method, "problem": largest, "rate": rate, "validation_cost": cost, "taken": rate == best}
                for rate, cost in costs.items()
            ]
            rows += [
                {**train(method, name, best, seed), "method": method, "problem": name}
                for name in mine
                for seed in range(SEEDS)
            ]
    if options.only or options.method:
        return
    figures: dict[str, Any] = {}
    for name in PROBLEMS:
        own = {
            method: [row for row in rows if row["problem"] == name and row["method"] == method]
            for method in ("hpo", "ppo")
        }
        figures[f"{name}_cost"] = statistics.fmean(row["cost"] for row in own["hpo"])
        figures[f"{name}_ppo_cost"] = statistics.fmean(row["cost"] for row in own["ppo"])
        figures[f"{name}_reference_cost"] = statistics.fmean(row["reference_cost"] for row in own["hpo"])
        figures[f"gap_to_reference_{name}"] = interval([row["gap"] for row in own["hpo"]])
        figures[f"{name}_seconds"] = max(row["seconds"] for row in own["hpo"])
        if "lower bound" in own["hpo"][0]:
            figures[f"{name}_lower_bound"] = statistics.fmean(row["lower bound"] for row in own["hpo"])
    print(write_results("hpo_scale", figures, {"cells": rows_of(rows), "tuning": tuning}, SEEDS))


if __name__ == "__main__":
    main()
