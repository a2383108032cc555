"""The sizes of the paper: joint replenishment of 20, 40 and 60 items, and the switched LQR at dimensions 24 and 48.

HPO, and beside it hybrid PPO that is tuned for these sizes: actions are bounded and observations normalised, so that it
does not blow up, and its learning rate is the best of three at 20 items and at dimension 24, under a seed of its own.
Both take as many simulator steps, with networks whose hidden layers grow with the dimension: 4 times it, at least 64;
64 for inventory, whose items are alike. ``<problem>_cost`` is the mean cost of the last policy over 3 seeds on test
episodes, ``gap_to_reference_<problem>`` compares with the better of (R, S) and (Q, S) or with the pruned Riccati policy
on the same episodes, ``<problem>_ppo_cost`` is hybrid PPO's, and ``<problem>_seconds`` the longest training. Every
training is a cell under runs/benchmarks, so that an interrupted run goes on where it was; ``--only PART`` and
``--method`` run some of the cells and write nothing.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any, NamedTuple

from benchmarks.common import interval, write_results
from benchmarks.hpo_cells import cell, rows_of

SEEDS = 3
TUNING_SEED = 100
RATES = (3e-4, 1e-3, 3e-3)  # of hybrid PPO
ITEMS = "rl.envs.inventory.joint_replenishment"
LQR = "rl.envs.switched_lqr.switched_lqr"


class Problem(NamedTuple):
    """What is trained, and with what."""

    path: str
    arguments: dict[str, Any]
    training: dict[str, Any]
    updates: int
    tuned_on: str


def lqr(dimension: int, updates: int) -> Problem:
    """The switched LQR with 2 modes and networks 4 times as wide as the state."""
    width = max(64, 4 * dimension)
    training = {"hidden": [width, width], "entropy_start": 0.3, "learning_rate": 1e-2}
    return Problem(LQR, {"dimension": dimension, "modes": 2}, training, updates, "lqr24")


def items(count: int) -> Problem:
    """Joint replenishment."""
    training = {"discount": 0.99, "max_norm": 0.5, "entropy_start": 0.3, "learning_rate": 3e-3}
    return Problem(ITEMS, {"items": count, "orders": "up_to"}, training, 200, "items20")


PROBLEMS = {
    "items60": items(60),
    "lqr48": lqr(48, 900),
    "items20": items(20),
    "items40": items(40),
    "lqr24": lqr(24, 600),
}
PPO: dict[str, Any] = {"estimator": "score", "reuse": 4, "entropy_start": 0.01, "normalise": True, "log_std": -1.5}


def hpo(name: str, seed: int) -> dict[str, Any]:
    """HPO's row of a problem."""
    problem = PROBLEMS[name]
    return cell("hpo_scale", name, *problem[:3], seed=seed, updates=problem.updates, batch=128, validations=6)


def ppo(name: str, rate: float, seed: int) -> dict[str, Any]:
    """Hybrid PPO's, with a learning rate of its policies."""
    problem = PROBLEMS[name]
    training = {**problem.training, **PPO, "learning_rate": rate, "discrete_rate": rate}
    arguments = problem.arguments | ({"bound": 5.0} if problem.path == LQR else {})
    return cell(
        "hpo_scale",
        f"{name} ppo {rate:g}",
        problem.path,
        arguments,
        training,
        seed=seed,
        updates=problem.updates,
        batch=128,
        validations=6,
    )


def tuned_ppo(name: str, seed: int) -> dict[str, Any]:
    """With the rate that was best where it is tuned."""
    costs = {rate: ppo(PROBLEMS[name].tuned_on, rate, TUNING_SEED)["cost"] for rate in RATES}
    return ppo(name, min(costs, key=costs.__getitem__), seed)


def main() -> None:
    """Train what is missing, then write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run only the cells of this problem, and write nothing")
    parser.add_argument("--method", choices=("hpo", "ppo"), help="run only these cells, and write nothing")
    options = parser.parse_args()
    rows = [
        {**train(name, seed), "method": method, "problem": name}
        for method, train in (("hpo", hpo), ("ppo", tuned_ppo))
        for name in PROBLEMS
        for seed in range(SEEDS)
        if options.only in name and options.method in (None, method)
    ]
    if options.only or options.method:
        return
    figures: dict[str, Any] = {}
    for name in PROBLEMS:
        mine = [row for row in rows if row["problem"] == name]
        own = {method: [row for row in mine if row["method"] == method] for method in ("hpo", "ppo")}
        figures[f"{name}_cost"] = statistics.fmean(row["cost"] for row in own["hpo"])
        figures[f"{name}_ppo_cost"] = statistics.fmean(row["cost"] for row in own["ppo"])
        figures[f"{name}_reference_cost"] = statistics.fmean(row["reference_cost"] for row in own["hpo"])
        figures[f"gap_to_reference_{name}"] = interval([row["gap"] for row in own["hpo"]])
        figures[f"{name}_seconds"] = max(row["seconds"] for row in own["hpo"])
    print(write_results("hpo_scale", figures, {"cells": rows_of(rows)}, SEEDS))


if __name__ == "__main__":
    main()
