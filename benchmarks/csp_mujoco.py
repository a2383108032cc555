"""MuJoCo wrestling: what CSP and its baselines are worth against fresh adversaries that agree with the data.

Two bodies in a ring, real actions. The target charges whom it sees ahead and idles when flanked; its data come from
matches that start face to face, the test starts with any headings. Cells and values are those of
``csp_predator_prey``. Takes two and a half hours of one core; an interrupted run goes on where it was.
"""

from __future__ import annotations

from benchmarks.csp_predator_prey import Setup, main

SETUP = Setup(
    name="csp_mujoco",
    game="sumo",
    game_arguments={},
    arguments={
        "agent_rate": 2e-3,
        "proxy_rate": 1e-3,
        "epochs": 4,
        "minibatches": 4,
        "divergence": "forward",
        "entropy_start": 0.01,
        "entropy_end": 0.0,
        "discount": 0.995,
        "radius": 0.5,
        "count_power": 1.0,
        "hidden": [64, 64],
    },
    candidates={
        "csp": [{"coefficient": 0.2}, {"coefficient": 1.0}],
        "rnr": [{"model_share": 0.5}, {"model_share": 0.75}, {"model_share": 0.9}],
        "dbr": [{"gate_limit": 0.99, "radius": 0.3}, {"gate_limit": 0.99, "radius": 0.5}],
    },
    iterations=360,
    episodes=96,
    recorded=200,
    attack={"iterations": 30, "episodes": 96, "test_episodes": 1024, "coefficient": 0.2, "slack": 0.05},
    seeds=3,
)

if __name__ == "__main__":
    main(SETUP)
