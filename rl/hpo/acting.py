"""What a policy that acts outside the simulator takes and gives: observations and masks, modes and actions."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from rl.envs.hybrid import State, chosen_action, law_columns


class Action(NamedTuple):
    """What a policy decides.

    Attributes:
        mode: int64, (batch,) or (); with heads (batch, heads) or (heads,).
        parameters: The feasible continuous action of that mode, in the simulator's terms, (batch, m) or (m,).
    """

    mode: Tensor
    parameters: Tensor


class Actor:
    """Decides from observations.

    Attributes:
        observation_dim: Length O of an observation.
        shape: Number of modes J, and length m of their continuous parts; with heads 1 and m.
        heads: Number of modes of each head, none for a single choice.
        masked: Whether it was trained with mode masks.
    """

    observation_dim: int
    shape: tuple[int, int]
    heads: tuple[int, ...]
    masked: bool

    @property
    def law_shape(self) -> tuple[int, ...]:
        """Shape of the law of one decision: (J,), or with heads (heads, modes of the largest head)."""
        return (len(self.heads), max(self.heads)) if self.heads else self.shape[:1]

    @abstractmethod
    def _law(self, seen: Tensor, mask: Tensor | None) -> Tensor:
        """Log-probabilities of all modes (batch, J), or with heads (batch, H, J)."""

    @abstractmethod
    def _actions(self, seen: Tensor, mode: Tensor, state: State | None) -> Tensor:
        """Feasible actions of all modes (batch, J, m), or with heads that of these modes (batch, 1, m)."""

    @property
    @abstractmethod
    def _place(self) -> Tensor:
        """A tensor on the device and of the floating type of the policy."""

    @torch.no_grad()
    def act(
        self,
        observation: object,
        mask: object = None,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
        state: State | None = None,
    ) -> Action:
        """Decide, in the simulator's terms.

        Args:
            observation: (batch, O), or (O,) for a single decision; a tensor or anything that becomes one.
            mask: Boolean (batch, J) or (J,), true where a mode may be chosen; with heads (batch, H, J) or (H, J).
                Required where training had masks.
            deterministic: Take the likeliest mode, of every head; else draw it from its law.
            generator: Of the draws.
            state: The simulator's state, for an ``action_map`` that reads of it what observations do not show.

        Returns:
            Modes and their actions, single if the observation is.

        Raises:
            ValueError: If an argument has another shape or is not finite, a mask is missing or forbids all modes, or
                the actions cannot be told from observations.
        """
        found = torch.as_tensor(observation, dtype=self._place.dtype, device=self._place.device)
        seen, allowed = self.readable(found.unsqueeze(0) if found.dim() == 1 else found, mask)
        mode = drawn(self._law(seen, allowed), deterministic, generator)
        chosen = chosen_action(self._actions(seen, mode, state), mode)
        return Action(mode[0], chosen[0]) if found.dim() == 1 else Action(mode, chosen)

    def readable(self, seen: Tensor, mask: object) -> tuple[Tensor, Tensor | None]:
        """Observations and their mask as :meth:`act` can use them, the mask as a boolean tensor (batch, J).

        Raises:
            ValueError: As for :meth:`act`.
        """
        if seen.dim() != 2 or seen.shape[1] != self.observation_dim:
            raise ValueError(
                f"the observation has shape {tuple(seen.shape)}, but it must be (batch, {self.observation_dim}) or "
                f"({self.observation_dim},)."
            )
        if not bool(torch.isfinite(seen).all()):
            raise ValueError("the observation is not finite, so nothing can be decided; give finite numbers.")
        if mask is None:
            if self.masked:
                raise ValueError(
                    "the policy was trained with mode masks, but none is given: it may choose a forbidden mode."
                )
            return seen, None
        found = torch.as_tensor(mask, device=seen.device).bool()
        wanted = (len(seen), *self.law_shape)
        found = found.unsqueeze(0) if found.dim() == len(wanted) - 1 else found
        allowed = found & law_columns(self.heads, found.device) if self.heads and found.shape == wanted else found
        if found.shape != wanted or not bool(allowed.any(-1).all()):
            raise ValueError(
                f"the mask has shape {tuple(found.shape)}, but it must be {wanted} and allow a mode in every row."
            )
        return seen, allowed


def drawn(law: Tensor, deterministic: bool, generator: torch.Generator | None) -> Tensor:
    """The likeliest mode of each row, or a drawn one, int64 (batch,), or with heads (batch, H).

    Args:
        law: Log-probabilities (batch, J), or (batch, H, J).
        deterministic: Take the likeliest.
        generator: Of the draws.
    """
    if deterministic:
        return law.argmax(-1)
    return torch.multinomial(law.exp().flatten(0, -2), 1, generator=generator).reshape(law.shape[:-1])
