"""One training of a hybrid policy for a benchmark: run once, kept under runs/, and read from there ever after."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recipes.hpo.curves import Curve
from recipes.hpo.sb3 import cost_of, train_sb3
from recipes.running.quiet import silent_trainer
from rl.envs.hybrid import HybridSimulator, Noise
from rl.hpo.data import SeedDataModule
from rl.hpo.known_optima import BestKnown, best_known
from rl.hpo.module import HPOModule

CELLS = Path("runs") / "benchmarks"


def cell(
    benchmark: str,
    name: str,
    simulator: str,
    arguments: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    seed: int,
    updates: int,
    batch: int,
    sb3: bool = False,
    validations: int = 10,
    test_episodes: int = 8192,
    known: Callable[[HybridSimulator, Noise], BestKnown | None] = best_known,
) -> dict[str, Any]:
    """Train, test the last policy against the best known one on the same episodes, and keep the row.

    Args:
        benchmark: Name of the script; the row lies in ``runs/benchmarks/<benchmark>/<name>-<seed>-<updates>.json``.
        name: Of the cell, without its seed. A kept row is used only if everything that makes it is the same.
        simulator: Import path.
        arguments: Of the simulator.
        training: Changes of `HPOModule`'s arguments.
        seed: Of weights and episodes.
        updates: Updates in all.
        batch: Episodes of an update.
        sb3: Train Stable-Baselines3's PPO instead.
        validations: Points of the curve.
        test_episodes: Episodes of the test.
        known: What the cost is compared with, on given episodes.

    Returns:
        The row.
    """
    makes = {
        "simulator": simulator,
        "arguments": dict(arguments),
        "training": dict(training),
        "seed": seed,
        "updates": updates,
        "batch": batch,
        "sb3": sb3,
        "test_episodes": test_episodes,
    }
    file = CELLS / benchmark / f"{name}-{seed}-{updates}.json"
    if file.is_file():
        row: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if row["makes"] == json.loads(json.dumps(makes)):
            return row
    _hush()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    every = max(1, updates // validations)
    module = HPOModule(simulator, dict(arguments), seed=seed, **{"diagnose_every": 0, **training})
    data = SeedDataModule(every, batch, seed=seed, test_episodes=test_episodes)
    noises = [
        module.draw(next(iter(loader)), greedy=True, noisy=False)[0]
        for loader in (data.val_dataloader(), data.test_dataloader())
    ]
    found = [known(module.simulator, noise) for noise in noises]
    if found[0] is None or found[1] is None:
        raise ValueError(f"nothing is known of {simulator}; a benchmark needs a simulator with a reference.")
    module.references = {"validation": found[0].cost, "test": found[1].cost}
    wall, cpu = time.perf_counter(), time.process_time()
    costs: dict[str, float]
    if sb3:
        hp = module.hparams
        model = train_sb3(
            module.simulator,
            updates=updates,
            batch=batch,
            seed=seed,
            hidden=list(hp["hidden"]),
            learning_rate=hp["learning_rate"],
            discount=module.discount,
        )
        costs, points = {"cost": cost_of(model, module.simulator, noises[1])}, []
    else:
        curve = Curve(batch * module.simulator.horizon)
        trainer = silent_trainer(max_epochs=updates // every, callbacks=[curve])
        trainer.fit(module, datamodule=data)
        tested = trainer.test(module, datamodule=data, verbose=False)[0]
        costs, points = {key: tested[f"test/{key}"] for key in ("cost", "sampled_cost")}, curve.rows
    row = {
        "cell": name,
        "seed": seed,
        **costs,
        "gap": costs["cost"] / found[1].cost - 1,
        "reference": found[1].name,
        "reference_cost": found[1].cost,
        **found[1].others,
        "updates": updates,
        "simulator_steps": updates * batch * module.simulator.horizon,
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.perf_counter() - wall,
        "curve": points,
        "makes": makes,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(row) + "\n", encoding="utf-8")
    temporary.replace(file)
    print(
        f"{name} seed {seed}: {row['cost']:.4f}, gap {row['gap']:+.2%}, {row['cpu_seconds']:.0f} s of CPU", flush=True
    )
    return row


def rows_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as a results file keeps them: without curves and what made them."""
    return [{key: value for key, value in row.items() if key not in ("curve", "makes")} for row in rows]


def _hush() -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
