"""Speed on one core: predator-prey's steps beside mpe2's simple_tag, and CSP's iterations beside plain PPO's.

A step moves all four players and gives all observations and the reward. Ours runs a batch of 1,024 episodes for 25
steps, the peer two episodes of 25 steps, both with random moves drawn beforehand; ``steps_ratio_vs_mpe2`` is the median
ratio of seconds per step over interleaved rounds. ``iteration_vs_ppo`` compares a whole training step of CSP in a
Trainer on predator-prey, data term, logging and all, with a plain loop of two-player PPO on as many episodes and
updates. Takes about two minutes.
"""

import numpy as np
import torch
from mpe2 import simple_tag_v3

from benchmarks.common import interleaved_times, median_ratio, write_results
from benchmarks.csp_predator_prey import iteration_times
from recipes.running.quiet import hush_libraries
from rl.envs.pursuit import PredatorPrey

BATCH = 1024
STEPS = 25
PEER_EPISODES = 2
REPEATS = 15


def main() -> None:
    """Measure, print and write the figures."""
    torch.set_num_threads(1)
    game, env = PredatorPrey(horizon=STEPS), simple_tag_v3.parallel_env(max_cycles=STEPS)
    generator = torch.Generator().manual_seed(0)
    moves = {seat: torch.randint(5, (STEPS, BATCH, game.players[seat]), generator=generator) for seat in game.seats}
    peer_moves = np.random.default_rng(0).integers(0, 5, (PEER_EPISODES, STEPS, 4))

    def ours() -> None:
        state = game.reset(BATCH, generator)
        for t in range(STEPS):
            state, _, _ = game.step(state, {seat: chosen[t] for seat, chosen in moves.items()}, generator)
            game.observe(state)

    def peer() -> None:
        for episode in range(PEER_EPISODES):
            env.reset(seed=episode)
            for t in range(STEPS):
                env.step({name: int(move) for name, move in zip(env.agents, peer_moves[episode, t], strict=True)})

    times = interleaved_times({"ours": ours, "mpe2": peer}, repeats=REPEATS)
    per_step = {
        "ours": [seconds / (BATCH * STEPS) for seconds in times["ours"]],
        "mpe2": [seconds / (PEER_EPISODES * STEPS) for seconds in times["mpe2"]],
    }
    ratio = median_ratio(per_step["mpe2"], per_step["ours"])
    rows = [
        {"simulator": name, "microseconds a step": 1e6 * float(np.median(values))} for name, values in per_step.items()
    ]
    for row in rows:
        print(*row.values(), sep="  ")
    hush_libraries()
    iterations = iteration_times(iterations=100)
    figures = {"steps_ratio_vs_mpe2": ratio, "iteration_vs_ppo": median_ratio(iterations["csp"], iterations["ppo"])}
    trainers = [{"trainer": name, "seconds an iteration": float(np.median(t))} for name, t in iterations.items()]
    print(figures, write_results("csp_speed", figures, {"simulators": rows, "trainers": trainers}, 1))


if __name__ == "__main__":
    main()
