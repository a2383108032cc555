"""The vault maze: deep CSP's worst value over all guards that agree with the true one on the data, computed exactly.

Five seeds, 500 recorded episodes each, 200 iterations. The value is that of the trained network's policy against the
worst guard who plays like the true one at every node the data visit and anything elsewhere: exact robust dynamic
programming, whose optimum is 0.7335. Baselines are trained on the same budget; C is swept. ``seconds_per_seed`` is the
longest training of CSP, the fit of the model included, and depends on the machine. Players see the grid, on which
unseen nodes resemble a seen one. Cells are kept under ``runs/``, so an interrupted run goes on where it was. Takes
about ten minutes on two idle cores.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import write_results
from recipes.csp.report import policy_table
from recipes.running.files import write_json
from recipes.running.quiet import hush_libraries, silent_trainer
from rl.csp.baselines import BASELINES, imitate
from rl.csp.data import RolloutDataModule
from rl.csp.dataset import record_target
from rl.csp.module import CSPModule
from rl.csp.policies import ScriptedPolicy
from rl.csp.rollout import pairs_of, play
from rl.envs.vault_maze import VaultMaze, behaviour, pinned_guard, true_guard
from rl.exact.markov import best_response, robust_plan, worst_case
from rl.exact.sets import Free

CELLS = Path("runs/benchmarks/csp_maze")
SEEDS = 5
EPISODES, ITERATIONS, RECORDED = 256, 200, 500
# Every row, by what it changes in the module's arguments; C is 30 unless it says otherwise.
ROWS: dict[str, dict[str, Any]] = {
    "csp": {},
    "csp C=0.1": {"coefficient": 0.1},
    "csp C=1": {"coefficient": 1.0},
    "csp C=10": {"coefficient": 10.0},
    "csp C=100": {"coefficient": 100.0},
    "csp lagrangian": {"constraint": "lagrangian"},
    "csp gate": {"constraint": "gate"},
    "bc_first": BASELINES["bc_first"],
    "bc_ensemble": BASELINES["bc_ensemble"],
    "self_play": BASELINES["self_play"],
    "dataset only": {},
    "rnr 0.5": BASELINES["rnr"] | {"model_share": 0.5},
    "rnr 0.75": BASELINES["rnr"],
    "dbr 0.99": BASELINES["dbr"],
}


def cell(row: str, seed: int, iterations: int = ITERATIONS, episodes: int = EPISODES) -> dict[str, Any]:
    """Train one row on one seed, or read what an earlier run found."""
    path = CELLS / f"{row.replace(' ', '-')}-{seed}-{iterations}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    game = VaultMaze("grid")
    ours, guard = game.policy(behaviour()), game.policy(true_guard())
    pairs = record_target(game, ours, guard, RECORDED, torch.Generator().manual_seed(seed)).pairs()
    started = time.perf_counter()
    module = CSPModule(game, pairs, seed=seed, **ROWS[row])
    agent: Any = module.agent
    excess = None
    if row == "dataset only":
        lived = play(game, (ScriptedPolicy(ours), ScriptedPolicy(guard)), RECORDED, torch.Generator().manual_seed(seed))
        agent = imitate(module, pairs_of(lived, game.seats[0]), seed)
    else:
        trainer = silent_trainer(max_epochs=1, limit_val_batches=0)
        trainer.fit(module, RolloutDataModule(iterations, episodes, seed=seed))
        if "train/excess" in trainer.callback_metrics:
            excess = float(trainer.callback_metrics["train/excess"])
    seconds = time.perf_counter() - started
    plan = policy_table(agent, game)
    found = {
        "method": row,
        "seed": seed,
        "true": game.exact.value(plan, true_guard()),
        "worst consistent": worst_case(game.exact, plan, pinned_guard()).value,
        "worst against anyone": worst_case(game.exact, plan, [Free(2)] * 7).value,
        "final excess": excess,
        "seconds": seconds,
    }
    write_json(path, found)
    return found


def main() -> None:
    """Run the cells that are missing, print, and write the figures."""
    hush_libraries()
    game, rows = VaultMaze().exact, []
    print("optimum", robust_plan(game, pinned_guard()).value, "best response", best_response(game, true_guard()).value)
    for row in ROWS:
        for seed in range(SEEDS):
            rows.append(cell(row, seed))
            print(*(f"{x:.4f}" if isinstance(x, float) else x for x in rows[-1].values()), sep="  ", flush=True)
    table = []
    for row in ROWS:
        mine = [found for found in rows if found["method"] == row]
        worst = [found["worst consistent"] for found in mine]
        table.append(
            {
                "method": row,
                "true": float(np.mean([found["true"] for found in mine])),
                "worst consistent, mean": float(np.mean(worst)),
                "worst consistent, lowest": min(worst),
                "worst against anyone": float(np.mean([found["worst against anyone"] for found in mine])),
            }
        )
    lowest = {line["method"]: line["worst consistent, lowest"] for line in table}
    figures = {
        "worst_consistent_min_over_seeds": lowest["csp"],
        "seconds_per_seed": max(found["seconds"] for found in rows if found["method"] == "csp"),
        "optimum": robust_plan(game, pinned_guard()).value,
        **{
            f"{name}_min_over_seeds": lowest[name.replace("_only", " only")]
            for name in ("bc_first", "self_play", "dataset_only")
        },
    }
    print(write_results("csp_maze", figures, {"means over seeds": table, "cells": rows}, SEEDS))


if __name__ == "__main__":
    main()
