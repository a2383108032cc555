"""Small games with known answers, data of their targets, and a trainer that says nothing."""

import numpy as np
import torch
from lightning import Trainer

from rl.csp.pairs import Pairs
from rl.csp.policies import ScriptedPolicy
from rl.csp.rollout import play
from rl.envs.tabular import TabularGame
from rl.exact.markov import MarkovGame

PUSH, WAIT, DOOR = range(3)
LEFT, RIGHT = range(2)


class Dilemma(TabularGame):
    """One decision: push wins 1 where the target yields (action 0) and loses 1 where it blocks; the door is worth 0.3.

    A target that yields with probability 0.9 makes pushing worth 0.8; against anyone at all the door is best.
    """

    def __init__(self) -> None:
        reward = np.zeros((2, 3, 2))
        reward[0] = [[1, -1], [0, 0], [0.3, 0.3]]
        transition = np.broadcast_to([0.0, 1.0], (2, 3, 2, 2)).copy()
        super().__init__(MarkovGame(transition, reward, 0.99, np.array([1.0, 0.0])), [1], 1, seats=("us", "them"))


YIELDS = np.array([[0.9, 0.1], [0.5, 0.5]])


def record(game, ours, theirs, episodes, seed=0, seat=1):
    """Pairs of one seat of episodes between two tables."""
    policies = tuple(ScriptedPolicy(game.policy(table)) for table in (ours, theirs))
    lived = play(game, policies, episodes, torch.Generator().manual_seed(seed))
    name, live = game.seats[seat], lived.live.T
    numbers = torch.arange(episodes)[:, None].expand_as(live)
    return Pairs(
        lived.observations[name][:, :, 0].transpose(0, 1)[live],
        lived.actions[name][:, :, 0].T[live],
        None,
        numbers[live],
        numbers[live],
    )


def dilemma_data(episodes=200, seed=0):
    game = Dilemma()
    return record(game, np.full((2, 3), 1 / 3), YIELDS, episodes, seed)


def trainer(epochs=1, **changes):
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
    }
    return Trainer(max_epochs=epochs, **(quiet | changes))


@torch.no_grad()
def probabilities(policy, game):
    """The policy's table (S, A)."""
    law, _ = policy(game.observations[None, :, None])
    table = law.log_probs[0, :, 0].exp().double()
    return (table / table.sum(-1, keepdim=True)).numpy()
