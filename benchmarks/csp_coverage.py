"""How much of a test the recorded data cover, in the games without an exact solution.

The share of the target's steps that the data saw, within the radius with which CSP counts, where we play as recorded
and matches start as in the test. Data that cover all of it leave nothing to be careful about, and data that cover none
of it say nothing of the target. A minute of one core.
"""

from __future__ import annotations

import torch

from benchmarks import csp_halfsumo, csp_mujoco, csp_predator_prey
from benchmarks.common import write_results
from benchmarks.csp_predator_prey import Setup, record
from rl.csp.pairs import Coverage
from rl.csp.policies import Act, ScriptedPolicy
from rl.csp.rollout import pairs_of, play


def coverage(setup: Setup, ours: Act | None = None, seed: int = 0, episodes: int = 256) -> float:
    """The share of the target's steps that the data saw.

    Args:
        setup: Which game, how much is recorded, and the radius.
        ours: How we play in the test; None plays as recorded.
        seed: Of the data and the matches.
        episodes: Of the test.
    """
    scenario, data = record(setup, seed)
    counted = Coverage(data.pairs().observations, setup.arguments["radius"])
    scripts = (ScriptedPolicy(ours or scenario.ours), ScriptedPolicy(scenario.target))
    lived = play(scenario.game, scripts, episodes, torch.Generator().manual_seed(seed + 1))
    seen = counted(pairs_of(lived, scenario.game.seats[1]).observations) >= 1
    return float(seen.float().mean())


def main() -> None:
    """Measure, and write the figures."""
    setups = [module.SETUP for module in (csp_predator_prey, csp_mujoco, csp_halfsumo)]
    print(write_results("csp_coverage", {setup.name: coverage(setup) for setup in setups}, {}, seeds=1))


if __name__ == "__main__":
    main()
