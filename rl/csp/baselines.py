"""What conservative adaptation is compared with, each as a setting of the same module or a fit without any."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rl.csp.cloning import clone
from rl.csp.module import CSPModule
from rl.csp.pairs import Pairs
from rl.envs.markov_game import BatchedGame

BASELINES: dict[str, dict[str, Any]] = {
    "bc_first": {"model_share": 1.0},
    "bc_ensemble": {"model_share": 1.0, "models": 5},
    "self_play": {"coefficient": 0.0, "warm_start": False},
    "rnr": {"coefficient": 0.0, "warm_start": False, "model_share": 0.75},
    "dbr": {"constraint": "gate", "gate_limit": 0.99},
    "oracle": {"model_share": 1.0},
}


def baseline(
    name: str, game: str | BatchedGame, data: str | Pairs, *, target: nn.Module | None = None, **arguments: object
) -> CSPModule:
    """A baseline by name, trained as `CSPModule` is.

    - ``bc_first``: best response to a model fitted to the data, whatever it extrapolates;
    - ``bc_ensemble``: to five models fitted from different seeds;
    - ``self_play``: no data term, so the equilibrium of the game;
    - ``rnr``: restricted Nash response (Johanson et al. 2007): the target plays the model in a share ``model_share`` of
      the episodes, and is free in the others;
    - ``dbr``: data-biased response (Johanson and Bowling 2009): it plays the model with a probability that grows with
      the number of visits, at most ``gate_limit``;
    - ``oracle``: best response to the true target, which nobody has.

    Args:
        name: One of the above; imitation needs no game, see :func:`imitate`.
        game: As of `CSPModule`.
        data: As of `CSPModule`.
        target: For ``oracle``, the true target's policy.
        arguments: Further ones of `CSPModule`; they win.

    Returns:
        The module.

    Raises:
        ValueError: If there is no such baseline, or the oracle has no target.
    """
    if name not in BASELINES:
        raise ValueError(f"there is no baseline {name!r}; there are {', '.join(BASELINES)}.")
    if (name == "oracle") != (target is not None):
        raise ValueError(
            f"baseline {name!r} got {'no' if target is None else 'a'} target; give one to the oracle alone."
        )
    return CSPModule(game, data, model=target, **(BASELINES[name] | arguments))


def imitate(problem: CSPModule, own: Pairs, seed: int = 0) -> nn.Module:
    """The dataset-only baseline: our own seat's policy cloned from the episodes that the data come from.

    Args:
        problem: Says which game and networks.
        own: Pairs of our seat.
        seed: Of the split and the weights.

    Returns:
        The policy.
    """
    train, held_out = own.split(problem.hparams["held_out"], seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = problem.new_policy(problem.game.seats[0])
    clone(policy, train, held_out, torch.Generator().manual_seed(seed))
    return policy
