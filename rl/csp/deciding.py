"""A LightningModule whose agent acts outside of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rl.checkpoints import GuardedModule
from rl.csp.acting import Decision, Seat, decide


class DecidingModule(GuardedModule):
    """A module whose agent acts outside of training.

    Attributes:
        agent: The policy.
        seat: What it plays.
    """

    agent: nn.Module
    seat: Seat

    def act(
        self,
        observation: object,
        mask: object = None,
        memory: Tensor | None = None,
        *,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Decision:
        """Actions of the agent for observations; see :func:`decide`, which says what is given and comes back."""
        return decide(
            self.agent, self.seat, observation, mask, memory, deterministic=deterministic, generator=generator
        )

    def predict_step(self, batch: Any, batch_index: int) -> Decision:
        """Decide for a batch: observations (K, O), or a loader's list of them and, where there are masks, the masks."""
        return self.act(*batch) if isinstance(batch, list | tuple) else self.act(batch)
