"""Runs in the environment of Google Football: what the engine costs, as JSON on the last line of the output."""

import json
import resource
import time

from rl.envs.football import football_env

ENGINES, STEPS = 12, 40


def main() -> None:
    """Make engines, step them one after the other, and print what that took of one core's time and of memory."""
    envs = [football_env()]
    envs[0].reset(seed=0)
    before, begun = peak(), time.process_time()
    envs += [football_env() for _ in range(ENGINES - 1)]
    made, played = time.process_time() - begun, 0
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    after, begun = peak(), time.process_time()
    for _ in range(STEPS):
        for env in envs:
            if env.agents:
                env.step(dict.fromkeys(env.agents, 5))
                played += 1
    found = {
        "steps_per_second": played / (time.process_time() - begun),
        "engine_mb": (after - before) / (ENGINES - 1),
        "engine_seconds": made / (ENGINES - 1),
    }
    print(json.dumps(found))


def peak() -> float:
    """The most memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
