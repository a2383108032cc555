"""A policy of one's own for a seat of a game, for `CSPModule(policy=...)`: memory, and a law for every observation."""

from functools import partial

from torch import Tensor, nn

from rl.csp.policies import CategoricalLaw
from rl.envs.markov_game import BatchedGame


class LinearSeat(nn.Module):
    """One linear layer from what a player sees to its actions."""

    memory = 0

    def __init__(self, game: BatchedGame, seat: str) -> None:
        super().__init__()
        self.layer = nn.Linear(game.observation_dim[seat], game.n_actions[seat])

    def forward(
        self, observations: Tensor, masks: Tensor | None = None, memories: Tensor | None = None
    ) -> tuple[CategoricalLaw, None]:
        """Laws (L, ...) of the actions for observations (L, ..., O)."""
        return CategoricalLaw(self.layer(observations), masks), None


def linear_seats(game: BatchedGame) -> partial[LinearSeat]:
    """What makes the policies of a game's seats."""
    return partial(LinearSeat, game)
