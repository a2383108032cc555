"""Random games shared by the tests of the exact solvers."""

import numpy as np

from rl.exact import MarkovGame

ROCK_PAPER_SCISSORS = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])


def random_game(rng, states=6, ours=3, theirs=3, discount=0.9):
    transition = rng.dirichlet(np.full(states, 0.3), (states, ours, theirs))
    reward = rng.uniform(-1, 1, (states, ours, theirs))
    return MarkovGame(transition, reward, discount, np.eye(states)[0])
