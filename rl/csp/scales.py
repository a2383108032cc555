"""Observations of a size at which networks do not learn: a number that everybody shares drowns those that tell."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.csp.opponents import random_policy
from rl.csp.pairs import Pairs
from rl.csp.rollout import play
from rl.envs.check_batched import BATCH
from rl.envs.markov_game import BatchedGame

LARGE = 10.0  # networks take observations as they are; from about this size on they visibly learn less


def scale_warnings(pairs: Pairs, game: BatchedGame) -> list[str]:
    """A sentence for either seat that sees numbers of more than 10 in size.

    Args:
        pairs: The target's data, which say what it sees.
        game: Played in a few random episodes, which say what we see.
    """
    ours, theirs = game.seats
    policies = [random_policy(game, seat) for seat in game.seats]
    lived = play(game, policies, BATCH, torch.Generator().manual_seed(0))
    return [*_told(ours, lived.observations[ours].flatten(0, -2)), *_told(theirs, pairs.observations)]


def _told(seat: str, seen: Tensor) -> list[str]:
    largest, column = seen.abs().amax(0).max(0)
    if float(largest) <= LARGE:
        return []
    return [
        f"what {seat} sees reaches {float(largest):.4g} in column {int(column)}, and networks learn little beside such "
        "numbers: bring every column to about 1 where observations are made, and record them so"
    ]
