"""What a policy that acts outside its game takes and gives: observations, masks and memories, actions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rl.envs.markov_game import BatchedGame


class Seat(NamedTuple):
    """What the players of a seat see and may do.

    Attributes:
        name: Of the seat.
        players: How many it has.
        observation_dim: Length O of a player's observation.
        n_actions: Number of discrete actions A; 0 for real ones.
        action_dim: Length D of a real action; 0 for discrete ones.
        masked: Whether the game says which actions are legal.
    """

    name: str
    players: int
    observation_dim: int
    n_actions: int
    action_dim: int
    masked: bool

    @classmethod
    def of(cls, game: BatchedGame, seat: str | None = None) -> Seat:
        """A seat of a game.

        Args:
            game: The game; it is begun once, to see whether it has masks.
            seat: Its name; ours when None.

        Raises:
            ValueError: If the game has no such seat.
        """
        name = game.seats[0] if seat is None else seat
        if name not in game.seats:
            raise ValueError(f"the game has no seat {name!r}; it has {' and '.join(map(repr, game.seats))}.")
        masks = game.action_mask(game.reset(1, torch.Generator().manual_seed(0))) or {}
        return cls(
            name,
            game.players[name],
            game.observation_dim[name],
            game.n_actions[name],
            game.action_dim[name],
            name in masks,
        )


class Decision(NamedTuple):
    """What a policy decides.

    Attributes:
        action: int64 (...), or real numbers in [-1, 1], (..., D).
        memory: To be given with the next observation of the same episode, (..., H), or None.
    """

    action: Tensor
    memory: Tensor | None


@torch.no_grad()
def decide(
    policy: nn.Module,
    seat: Seat,
    observation: object,
    mask: object = None,
    memory: Tensor | None = None,
    *,
    deterministic: bool = False,
    generator: torch.Generator | None = None,
) -> Decision:
    """Ask a policy for actions.

    Actions are drawn from the policy's law unless told otherwise: what a policy is worth in the worst case may rest on
    not being predictable, and all values of a report are of drawn actions.

    Args:
        policy: As :func:`rl.csp.check_policy` describes it.
        seat: What it plays.
        observation: Of one player (O,), of several (K, O), or of all players of several episodes (N, players, O); a
            tensor or anything that becomes one.
        mask: Legal actions, (A,), (K, A) or (N, players, A); required where the game has masks.
        memory: What the last decision of the same episode gave back; None at an episode's start.
        deterministic: Take the likeliest action, or the mean of real ones.
        generator: Of the draws; torch's own when None.

    Returns:
        Actions and memories, with the leading axes of the observation.

    Raises:
        ValueError: If an argument has another shape or is not finite, a mask is missing or allows nothing, or the
            policy has no likeliest action.
    """
    place = next(policy.parameters(), torch.zeros(()))
    seen = torch.as_tensor(observation, dtype=torch.float32, device=place.device)
    if seen.dim() not in {1, 2, 3} or seen.shape[-1] != seat.observation_dim:
        raise ValueError(
            f"the observation has shape {tuple(seen.shape)}, but {seat.name} sees {seat.observation_dim} numbers: give "
            f"({seat.observation_dim},), (K, {seat.observation_dim}) or "
            f"(N, {seat.players}, {seat.observation_dim})."
        )
    if not bool(seen.isfinite().all()):
        raise ValueError("the observation is not finite, so nothing can be decided; give finite numbers.")
    leading = tuple(seen.shape[:-1])
    # A row of the batch is an episode with its players, so that those of a team may look at each other.
    team = len(leading) == 1 and leading[0] == seat.players
    batch = leading if len(leading) == 2 else (1, seat.players) if team else (seen[..., 0].numel(), 1)
    legal = _legal(mask, seat, leading, seen.device)
    width = int(getattr(policy, "memory", 0))
    if memory is not None and tuple(memory.shape) != (*leading, width):
        raise ValueError(
            f"the memory has shape {tuple(memory.shape)}, but it must be {(*leading, width)}, as the last decision "
            "gave it."
        )
    law, after = policy(
        seen.reshape(1, *batch, seat.observation_dim),
        None if legal is None else legal.reshape(1, *batch, seat.n_actions),
        None if memory is None else memory.to(seen.device).reshape(*batch, width),
    )
    if not deterministic:
        drawn = law.sample(torch.default_generator if generator is None else generator)
    elif hasattr(law, "mode"):
        drawn = law.mode()
    else:
        raise ValueError(f"a law of type {type(law).__name__} has no likeliest action; give deterministic=False.")
    actions = drawn if seat.n_actions else drawn.clamp(-1, 1)
    wanted = leading if seat.n_actions else (*leading, seat.action_dim)
    return Decision(actions.reshape(wanted), None if after is None else after.reshape(*leading, width))


def _legal(mask: object, seat: Seat, leading: tuple[int, ...], device: torch.device) -> Tensor | None:
    """The mask as a boolean tensor (..., A)."""
    if mask is None:
        if seat.masked:
            raise ValueError(
                f"the game tells {seat.name} which actions are legal, but no mask is given: the policy may choose a "
                "forbidden one."
            )
        return None
    legal = torch.as_tensor(mask, device=device).bool()
    wanted = (*leading, seat.n_actions)
    if tuple(legal.shape) != wanted or not seat.n_actions or not bool(legal.any(-1).all()):
        raise ValueError(
            f"the mask has shape {tuple(legal.shape)}, but it must be {wanted} and allow an action in every row."
        )
    return legal
