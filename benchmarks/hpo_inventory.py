"""HPO on inventory with a fixed ordering cost: gap to the optimum for one item, to the best heuristic for 5, 10 and 20.

``gap_to_optimum_single`` is the mean over 5 seeds of the last policy's cost over that of the optimal (s, S) policy on
the same demand, minus 1, with its 95 % interval; its modes are the likeliest or sampled ones, whichever cost less on
the validation episodes. ``gap_to_heuristic_<items>`` compares with the cheaper of (R, S) and (Q, S), and with
``_likeliest`` always by the likeliest modes; the lower bound stands beside it in the table. ``gap_single_<variant>`` is
one item with no cross term, ``cross: auto``, one-step branching, and hybrid PPO, 3 seeds. ``seconds_per_seed`` is the
longest training of one item. Every training is a cell under runs/benchmarks; ``--only PART`` runs the cells whose name
contains PART and writes nothing.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import write_results
from benchmarks.hpo_cells import cell, rows_of
from recipes.running.intervals import interval

SEEDS = 5
UPDATES, BATCH = 300, 256
ONE = (
    "rl.envs.inventory.Inventory",
    {"mean": [10.0], "holding": 1.0, "shortage": 9.0, "fixed_cost": 64.0, "lead_time": 2},
)
TRAINING: dict[str, Any] = {"discount": 0.99, "max_norm": 0.5}
VARIANTS: dict[str, dict[str, Any]] = {
    "no cross": {"cross": "off"},
    "cross auto": {"cross": "auto", "diagnose_every": 20},
    "branching": {"branch": True},
    "hybrid PPO": {
        "estimator": "score",
        "reuse": 4,
        "learning_rate": 1e-3,
        "discrete_rate": 1e-3,
        "entropy_start": 0.01,
    },
}


def names() -> list[tuple[str, str, dict[str, Any], dict[str, Any], int]]:
    """Name, simulator, its arguments, training and seed of every cell."""
    path, arguments = ONE
    found = [("single", path, {**arguments, "orders": "up_to"}, TRAINING, seed) for seed in range(SEEDS)]
    for items in (5, 10, 20):
        many = {"items": items, "orders": "up_to"}
        found += [
            (f"{items} items", "rl.envs.inventory.joint_replenishment", many, TRAINING, seed) for seed in range(3)
        ]
    for name, changes in VARIANTS.items():
        found += [
            (f"single, {name}", path, {**arguments, "orders": "up_to"}, {**TRAINING, **changes}, seed)
            for seed in range(3)
        ]
    return found


def main() -> None:
    """Train what is missing, then write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run only the cells whose name contains this")
    parser.add_argument("--updates", type=int, default=UPDATES, help="other than the full number: a trial")
    options = parser.parse_args()
    rows = [
        cell("hpo_inventory", name, path, arguments, training, seed=seed, updates=options.updates, batch=BATCH)
        for name, path, arguments, training, seed in names()
        if options.only in name
    ]
    if options.only or options.updates != UPDATES:
        return
    for row in rows:
        validated = row["curve"][-1]
        row["likeliest_gap"], row["acts"] = row["gap"], min(("cost", "sampled_cost"), key=validated.__getitem__)
        row["gap"] = row[row["acts"]] / row["reference_cost"] - 1
    figures = {"gap_to_optimum_single": interval([row["gap"] for row in rows if row["cell"] == "single"])}
    for items in (5, 10, 20):
        found = [row for row in rows if row["cell"] == f"{items} items"]
        figures[f"gap_to_heuristic_{items}"] = interval([row["gap"] for row in found])
        figures[f"gap_to_heuristic_{items}_likeliest"] = interval([row["likeliest_gap"] for row in found])
    for name in VARIANTS:
        gaps = [row["gap"] for row in rows if row["cell"] == f"single, {name}"]
        figures[f"gap_single_{name.replace(' ', '_')}"] = interval(gaps)
    figures["seconds_per_seed"] = max(row["seconds"] for row in rows if row["cell"] == "single")
    print(write_results("hpo_inventory", figures, {"cells": rows_of(rows)}, seeds=3))


if __name__ == "__main__":
    main()
