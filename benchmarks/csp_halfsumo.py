"""MuJoCo wrestling that can tell: a target that was recorded only when it was tired, and is strong before.

The task is `rl.envs.half_sumo.HalfSumo`. Before anything is trained, ``csp_ladder`` measures with scripted policies
that it can tell methods apart, and the run ends if it cannot. Cells, values and tuning are those of
``csp_predator_prey``; the true target, strong wherever the data do not show it, counts among the adversaries of the
reported seeds. Five seeds take an estimated six hours of one core; an interrupted run goes on where it was. ``tiny``
runs one small cell.
"""

from __future__ import annotations

import sys

from benchmarks import csp_mujoco
from benchmarks.csp_predator_prey import CELLS, Setup, cell, main as measure

SETUP = Setup(
    name="csp_halfsumo",
    game="half_sumo",
    game_arguments={},
    arguments={**csp_mujoco.SETUP.arguments, "radius": 0.6},
    candidates={
        "csp": [{"coefficient": 0.2}, {"coefficient": 1.0}, {"coefficient": 5.0}],
        "rnr": csp_mujoco.SETUP.candidates["rnr"],
        "dbr": [
            {"gate_limit": 0.9, "radius": 0.6},
            {"gate_limit": 0.99, "radius": 0.3},
            {"gate_limit": 0.99, "radius": 0.6},
        ],
    },
    iterations=360,
    episodes=96,
    recorded=400,
    attack={"iterations": 30, "episodes": 96, "test_episodes": 1024, "coefficient": 0.2, "slack": 0.05},
    seeds=5,
    target_counts=True,
)
TINY = SETUP._replace(
    name="csp_halfsumo_tiny",
    game_arguments={"horizon": 10},
    iterations=2,
    episodes=8,
    recorded=8,
    attack={**SETUP.attack, "iterations": 1, "episodes": 8, "test_episodes": 16},
)


def main(words: list[str]) -> None:
    """Check the conditions, then run everything and write the figures."""
    if words == ["tiny"]:
        print(cell(TINY, "csp", TINY.candidates["csp"][0], 0), "kept in", CELLS / TINY.name)
        return
    from benchmarks.csp_ladder import measured

    figures, _ = measured()
    measure(SETUP, figures)


if __name__ == "__main__":
    main(sys.argv[1:])
