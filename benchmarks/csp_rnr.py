"""Predator-prey on seven further seeds: CSP's lead over restricted Nash responses, which five seeds left undecided.

Settings of both are those that were chosen for the table of ``csp_predator_prey``, and its seeds are not used again. An
interrupted run goes on where it was. Half an hour of one core.
"""

from __future__ import annotations

import json

import torch

from benchmarks.common import RESULTS, write_results
from benchmarks.csp_predator_prey import SETUP, cell
from recipes.running.intervals import interval
from recipes.running.quiet import hush_libraries

SEEDS = range(SETUP.seeds, SETUP.seeds + 7)
RIVAL = "rnr"


def main() -> None:
    """Train and attack both on every seed, and write the figures."""
    hush_libraries()
    torch.set_num_threads(1)
    table = json.loads((RESULTS / f"{SETUP.name}.json").read_text(encoding="utf-8"))["tables"]["methods"]
    chosen = {row["method"]: row["chosen"] for row in table}
    rows = [{method: cell(SETUP, method, chosen[method], seed) for method in ("csp", RIVAL)} for seed in SEEDS]
    figures = {
        f"{method}_{key}": interval([row[method][key] for row in rows])
        for method in ("csp", RIVAL)
        for key in ("worst", "true")
    }
    figures["lead"] = interval([row["csp"]["worst"] - row[RIVAL]["worst"] for row in rows])
    print(write_results("csp_rnr", figures, {"cells": [row[m] for row in rows for m in row]}, len(SEEDS)))


if __name__ == "__main__":
    main()
