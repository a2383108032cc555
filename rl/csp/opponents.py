"""Against whom the agent plays: the episodes of an update, or a game with an opponent that knows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rl.csp.policies import ScriptedPolicy
from rl.envs.markov_game import BatchedGame


def deal(
    episodes: int,
    proxy: nn.Module,
    models: nn.ModuleList,
    pool: Sequence[nn.Module],
    generator: torch.Generator,
    shares: Mapping[str, float],
) -> list[tuple[nn.Module, int]]:
    """Deal episodes out to the proxy, one of its snapshots, and the fitted models.

    Args:
        episodes: How many there are.
        proxy: It plays what is left over.
        models: They share ``model_share`` of all episodes evenly.
        pool: Snapshots of the proxy; one of them, drawn at random, plays ``pool_share`` of the others. May be empty.
        generator: For that draw.
        shares: Holds ``model_share`` and ``pool_share``, both in [0, 1].

    Returns:
        Opponents with the number of episodes of each; all are above 0 and add up to ``episodes``.
    """
    to_models = round(shares["model_share"] * episodes)
    to_pool = round(shares["pool_share"] * (episodes - to_models)) if pool else 0
    dealt = [(proxy, episodes - to_models - to_pool)]
    if to_pool:
        dealt.append((pool[int(torch.randint(len(pool), (), generator=generator))], to_pool))
    for number, model in enumerate(models):
        dealt.append((model, to_models * (number + 1) // len(models) - to_models * number // len(models)))
    return [(opponent, count) for opponent, count in dealt if count]


def random_policy(game: BatchedGame, seat: str) -> ScriptedPolicy:
    """A policy that draws evenly: of the legal actions, or of [-1, 1] in every dimension.

    Args:
        game: The game.
        seat: The seat that it plays.
    """
    n_actions, width = game.n_actions[seat], game.action_dim[seat]

    def act(seen: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
        if not n_actions:
            return 2 * torch.rand(*seen.shape[:-1], width, generator=generator) - 1
        weights = torch.ones(*seen.shape[:-1], n_actions) if mask is None else mask.float()
        return torch.multinomial(weights.flatten(0, -2), 1, generator=generator).reshape(seen.shape[:-1])

    return ScriptedPolicy(act)
