"""A game of one's own: a tabular one, named in YAML by `gapbridge_example.coin.Coin`."""

import numpy as np

from rl.envs.tabular import TabularGame
from rl.exact.markov import MarkovGame


class Coin(TabularGame):
    """Matching pennies, one decision: we win 1 where both show the same side and lose 1 otherwise."""

    def __init__(self) -> None:
        reward = np.zeros((2, 2, 2))
        reward[0] = [[1, -1], [-1, 1]]
        transition = np.broadcast_to([0.0, 1.0], (2, 2, 2, 2)).copy()
        super().__init__(MarkovGame(transition, reward, 0.99, np.array([1.0, 0.0])), [1], 1, seats=("us", "them"))
