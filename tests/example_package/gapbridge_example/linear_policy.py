"""A hybrid policy of one's own for `HPOModule(networks=...)`: the children discrete, continuous and critic."""

from torch import nn


class LinearPolicy(nn.Module):
    """One linear layer each."""

    def __init__(self, observation_dim: int, n_modes: int, action_dim: int) -> None:
        super().__init__()
        self.discrete = nn.Linear(observation_dim, n_modes)
        self.continuous = nn.Linear(observation_dim, n_modes * action_dim)
        self.critic = nn.Linear(observation_dim, 1)
