"""MuJoCo wrestling that can tell: a target that was recorded only when it was tired, and is strong before.

The task is `rl.envs.half_sumo.HalfSumo`. Before anything is trained, ``csp_ladder`` measures with scripted policies
that it can tell methods apart, and the run ends if it cannot. Cells, values and tuning are those of
``csp_predator_prey``; the true target, strong wherever the data do not show it, counts among the adversaries of the
reported seeds. To show what plan is played, CSP and the best response to a fitted model are watched: in how many of the
matches that begin where the target is strong they go and tire it first. Five seeds take an estimated six hours of one
core; an interrupted run goes on where it was. ``tiny`` runs one small cell.
"""

from __future__ import annotations

import json
import sys

import torch

from benchmarks import csp_mujoco
from benchmarks.csp_predator_prey import CELLS, Setup, cell, main as measure, make, record, run
from recipes.running.files import write_json
from recipes.running.intervals import interval
from recipes.running.quiet import silent_trainer
from rl.csp.data import RolloutDataModule
from rl.csp.policies import ScriptedPolicy
from rl.csp.rollout import play

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


def tires_first(setup: Setup, method: str, seed: int) -> float:
    """Of the matches that begin where the target is strong, the share in which a policy gets behind the line in time.

    CSP's policy is that of its cell, which has to be there; another method is trained again, without an attack.
    """
    path = CELLS / setup.name / f"plan-{method}-{seed}.json"
    if path.is_file():
        return float(json.loads(path.read_text(encoding="utf-8")))
    scenario, data = record(setup, seed)
    assert scenario.target is not None
    module = make(setup, method, {}, seed, scenario, data.pairs())
    if method == "csp":
        module.load_state_dict(torch.load(CELLS / setup.name / f"proxy-{seed}.pt", weights_only=True))
    else:
        trainer = silent_trainer(max_epochs=1, limit_val_batches=0)
        trainer.fit(module, RolloutDataModule(setup.iterations, setup.episodes, seed=seed))
    states: list[dict[str, torch.Tensor]] = []
    policies, matches = (module.agent, ScriptedPolicy(scenario.target)), setup.attack["test_episodes"]
    play(scenario.game, policies, matches, torch.Generator().manual_seed(seed + 1), watch=states.append)
    share = float(states[-1]["tired"][~states[0]["tired"]].float().mean())
    write_json(path, share)
    return share


def main(words: list[str]) -> None:
    """Check the conditions, then run everything and write the figures."""
    if words == ["tiny"]:
        print(cell(TINY, "csp", TINY.candidates["csp"][0], 0), "kept in", CELLS / TINY.name)
        return
    from benchmarks.csp_ladder import measured

    figures, _ = measured()
    run(SETUP)  # CSP's policies are watched
    for method in ("csp", "bc_first"):
        shares = [tires_first(SETUP, method, seed) for seed in range(SETUP.seeds)]
        figures[f"{method}_tires_first"] = interval(shares)
    measure(SETUP, figures)


if __name__ == "__main__":
    main(sys.argv[1:])
