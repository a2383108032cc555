"""The hybrid policy: separate networks for the modes, for the continuous part of every mode, and for the value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


def network(inputs: int, outputs: int, hidden: Sequence[int], gain: float) -> nn.Sequential:
    """SiLU layers with orthogonal weights, the last one scaled by ``gain`` so that outputs begin near 0.

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        hidden: Widths between them.
        gain: Of the last layer.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.SiLU()]
        inputs = width
    layers.append(nn.Linear(inputs, outputs))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, 2**0.5 if layer is not layers[-1] else gain)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class HybridPolicy(nn.Module):
    """Modes by a categorical law, then the deterministic action of the sampled mode.

    The three networks share nothing. A shared trunk would keep the full estimator unbiased, but without the cross term
    it would also lose a part of its own gradient, and the value's loss would move the policy.

    Args:
        observation_dim: Length of an observation.
        n_modes: Number of modes J.
        action_dim: Length of the continuous part m.
        hidden: Widths of the SiLU layers of each network.
        log_std: Initial log standard deviation of the continuous part where it is made random; of the raw output.
    """

    def __init__(
        self,
        observation_dim: int,
        n_modes: int,
        action_dim: int,
        hidden: Sequence[int] = (64, 64),
        log_std: float = -0.5,
    ) -> None:
        super().__init__()
        self.shape = (n_modes, action_dim)
        self.discrete = network(observation_dim, n_modes, hidden, 0.01)
        self.continuous = network(observation_dim, n_modes * action_dim, hidden, 0.01)
        self.critic = network(observation_dim, 1, hidden, 1.0)
        self.log_std = nn.Parameter(torch.full((action_dim,), log_std))

    def log_probs(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probabilities of the modes (..., J); minus infinity where the mask is false.

        Args:
            observation: (..., O).
            mask: Boolean (..., J), true where a mode may be chosen.
        """
        logits = self.discrete(observation.to(self.log_std.dtype)).to(observation.dtype)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return cast(Tensor, logits.log_softmax(-1))

    def raw_actions(self, observation: Tensor) -> Tensor:
        """Unconstrained continuous parts of all modes (..., J, m)."""
        raw: Tensor = self.continuous(observation.to(self.log_std.dtype)).to(observation.dtype)
        return raw.reshape(*raw.shape[:-1], *self.shape)

    def value(self, observation: Tensor) -> Tensor:
        """Standardised value (...)."""
        value: Tensor = self.critic(observation.to(self.log_std.dtype)).to(observation.dtype)
        return value.squeeze(-1)
