"""HPO on the switched LQR: gap to the exact optimum up to dimension 5, to the pruned Riccati policy beyond.

``gap_dim<n>`` is the mean over 3 seeds of the last policy's total cost over the reference's on the same first states,
minus 1, for 2 modes; ``gap_dim10_modes4`` is for 4 modes. The bound of the plant with all gains 1 is in the table.
Every training is a cell under runs/benchmarks; ``--only PART`` runs the cells whose name contains PART and writes
nothing.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import write_results
from benchmarks.hpo_cells import cell, rows_of
from recipes.running.intervals import interval

SEEDS = 3
UPDATES, BATCH = 600, 256
TRAINING: dict[str, Any] = {"entropy_start": 0.3}
CASES = {f"dim{n}": (n, 2) for n in (2, 3, 5, 10, 16, 24)} | {"dim10_modes4": (10, 4)}


def main() -> None:
    """Train what is missing, then write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run only the cells whose name contains this")
    parser.add_argument("--updates", type=int, default=UPDATES, help="other than the full number: a trial")
    options = parser.parse_args()
    path, rows = "rl.envs.switched_lqr.switched_lqr", []
    for name, (dimension, modes) in CASES.items():
        for seed in range(SEEDS if options.only in name else 0):
            arguments = {"dimension": dimension, "modes": modes}
            rows.append(
                cell("hpo_slqr", name, path, arguments, TRAINING, seed=seed, updates=options.updates, batch=BATCH)
            )
    if options.only or options.updates != UPDATES:
        return
    figures = {f"gap_{name}": interval([row["gap"] for row in rows if row["cell"] == name]) for name in CASES}
    print(write_results("hpo_slqr", figures, {"cells": rows_of(rows)}, SEEDS))


if __name__ == "__main__":
    main()
