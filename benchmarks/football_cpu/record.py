"""Records a scripted defender: runs in the environment of Google Football, `python record.py FILE MATCHES`."""

import sys

import numpy as np
from numpy.typing import NDArray

from rl.csp import Recorder
from rl.envs.football import football_env

SHORT_PASS, SHOT = 11, 12


def main(path: str, matches: int) -> None:
    """Play, and write what the defender saw and did."""
    env, chance = Recorder(football_env(), ["right_0"]), np.random.default_rng(0)
    for match in range(matches):
        seen, _ = env.reset(seed=match)
        while env.agents:
            attack = {name: attacker(seen[name], chance) for name in env.agents if name != "right_0"}
            seen, *_ = env.step(attack | {"right_0": defender(seen["right_0"])})
    env.save(path)


def defender(look: NDArray[np.float32]) -> int:
    """Runs at the ball."""
    return towards(look, look[88:90])


def attacker(look: NDArray[np.float32], chance: np.random.Generator) -> int:
    """Runs at the goal; with the ball, passes or shoots now and then."""
    if chance.random() < 0.2 and np.linalg.norm(look[88:90] - place(look)) < 0.03:
        return SHOT if chance.random() < 0.5 else SHORT_PASS
    return towards(look, np.array([1.0, 0.0]))


def place(look: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where the player stands: the number of who is controlled begins at 97, places of its own team at 0."""
    return look[:22].reshape(11, 2)[look[97:108].argmax()]


def towards(look: NDArray[np.float32], goal: NDArray[np.float32]) -> int:
    """The action that runs there: 1 is to the left, and seven more follow clockwise."""
    x, y = goal - place(look)
    return 1 + (round(np.arctan2(y, x) / (np.pi / 4)) + 4) % 8


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
