"""MuJoCo wrestling: what CSP and its baselines are worth against fresh adversaries that agree with the data.

Two bodies in a ring, real actions. The target charges whom it sees ahead and idles when flanked; its data come from
matches that start face to face, the test starts with any headings. Cells, values and tuning are those of
``csp_predator_prey``. Takes about an hour and a half of one core; an interrupted run goes on where it was.
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
    iterations=120,
    episodes=96,
    recorded=200,
    attack={"iterations": 40, "episodes": 96, "test_episodes": 1024, "coefficient": 1.0, "slack": 0.05},
    seeds=3,
)

if __name__ == "__main__":
    main(SETUP)
