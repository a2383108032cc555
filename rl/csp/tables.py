"""A policy that is a table: what exact solvers give, played and saved as trained policies are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from rl.csp.policies import CategoricalLaw


class TablePolicy(nn.Module):
    """A law for every observation that a player can make; for any other, that of the nearest.

    Args:
        observations: All of them, (K, O).
        plan: Probabilities of actions, (K, A).

    Raises:
        ValueError: If shapes differ or a row is no distribution.

    Example:
        >>> from rl.envs import VaultMaze
        >>> maze = VaultMaze()
        >>> law, _ = TablePolicy(maze.observations, [[0.5, 0.5, 0.0]] * 7)(maze.observations[None, :2, None])
        >>> law.log_probs.exp().round(decimals=2).tolist()
        [[[[0.5, 0.5, 0.0]], [[0.5, 0.5, 0.0]]]]
    """

    memory = 0
    seen: Tensor
    logs: Tensor

    def __init__(self, observations: Tensor, plan: ArrayLike) -> None:
        super().__init__()
        table = np.asarray(plan, dtype=np.float64)
        if table.ndim != 2 or len(table) != len(observations) or not np.isfinite(table).all():
            raise ValueError(
                f"the plan has shape {table.shape}, but it must hold one row of finite probabilities for each of the "
                f"{len(observations)} observations"
            )
        if (table < -1e-9).any() or np.abs(table.sum(1) - 1).max() > 1e-6:
            raise ValueError("a row of the plan is no distribution; its entries must be at least 0 and sum to 1")
        self.register_buffer("seen", observations.float())
        self.register_buffer("logs", torch.from_numpy(table.clip(0)).log().float())

    def forward(
        self,
        observations: Tensor,
        masks: Tensor | None = None,
        memories: Tensor | None = None,
        active: Tensor | None = None,
    ) -> tuple[CategoricalLaw, None]:
        """Laws along sequences, as of `rl.csp.SeatPolicy`."""
        near = (observations[..., None, :] - self.seen).square().sum(-1).argmin(-1)
        return CategoricalLaw(self.logs[near], masks), None
