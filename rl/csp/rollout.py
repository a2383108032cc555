"""Play a batched game with two policies, and cut what each side lived through out of the episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rl.csp.pairs import Pairs
from rl.csp.update import Experience
from rl.envs.markov_game import BatchedGame, State


class Episodes(NamedTuple):
    """N episodes of at most T steps; mappings are by seat.

    Attributes:
        observations: (T, N, P, O).
        actions: As the laws drew them, (T, N, P) or (T, N, P, D); games get real ones clipped to [-1, 1].
        masks: (T, N, P, A), or None.
        log_probs: (T, N, P).
        memories: Before each step, (T, N, P, H), or None.
        rewards: Ours, (T, N).
        live: Whether the step was played, boolean (T, N).
        active: Whether each player was there and decided, boolean (T, N, P), or None where all always do.
    """

    observations: Mapping[str, Tensor]
    actions: Mapping[str, Tensor]
    masks: Mapping[str, Tensor] | None
    log_probs: Mapping[str, Tensor]
    memories: Mapping[str, Tensor | None]
    rewards: Tensor
    live: Tensor
    active: Mapping[str, Tensor] | None = None

    @property
    def returns(self) -> Tensor:
        """Our undiscounted return of each episode, (N,)."""
        return self.rewards.sum(0)

    def discounted(self, discount: float) -> Tensor:
        """Our discounted return of each episode, (N,)."""
        steps = torch.arange(len(self.rewards), device=self.rewards.device)
        return (self.rewards * (discount**steps)[:, None]).sum(0)

    def experience(self, seat: str, *, sign: float) -> Experience:
        """What one seat lived through, with ``sign`` times our reward as its own."""
        central = torch.cat([x.flatten(2) for x in self.observations.values()], -1)
        masks = None if self.masks is None else self.masks.get(seat)
        return Experience(
            self.observations[seat],
            self.actions[seat],
            masks,
            self.log_probs[seat],
            self.memories[seat],
            central,
            sign * self.rewards,
            self.live,
            None if self.active is None else self.active.get(seat),
        )


@torch.no_grad()
def play(
    game: BatchedGame,
    policies: Sequence[nn.Module],
    episodes: int,
    generator: torch.Generator,
    watch: Callable[[State], None] | None = None,
) -> Episodes:
    """Play episodes from their start to their end.

    Args:
        game: The game.
        policies: Ours and the target's: ``policy(observations, masks, memories)`` as `SeatPolicy`.
        episodes: How many, N.
        generator: The only source of chance.
        watch: Called with every state, the last one included.

    Returns:
        The episodes.
    """
    most = game.at_once or episodes
    if episodes <= most:
        return _batch(game, policies, episodes, generator, watch)
    counts = [min(most, episodes - begun) for begun in range(0, episodes, most)]
    return join([_batch(game, policies, count, generator, watch) for count in counts])


def _batch(
    game: BatchedGame,
    policies: Sequence[nn.Module],
    episodes: int,
    generator: torch.Generator,
    watch: Callable[[State], None] | None,
) -> Episodes:
    """Episodes that are played at the same time."""
    seats = dict(zip(game.seats, policies, strict=True))
    where = next((parameter.device for policy in policies for parameter in policy.parameters()), game.device)
    memories: dict[str, Tensor | None] = dict.fromkeys(game.seats)
    steps: list[dict[str, object]] = []
    state = game.reset(episodes, generator)
    done = state["done"]
    if watch is not None:
        watch(state)
    for _ in range(game.horizon):
        observations = {seat: x.to(where) for seat, x in game.observe(state).items()}
        masks = game.action_mask(state)
        masks = None if masks is None else {seat: x.to(where) for seat, x in masks.items()}
        active = game.active(state)
        active = None if active is None else {seat: x.to(where) for seat, x in active.items()}
        actions, log_probs, before = {}, {}, dict(memories)
        for seat, policy in seats.items():
            mask = None if masks is None or seat not in masks else masks[seat][None]
            law, after_look = policy(observations[seat][None], mask, memories[seat])
            if after_look is not None and active is not None and seat in active:  # who waits remembers nothing of it
                earlier = memories[seat]
                kept = torch.zeros_like(after_look) if earlier is None else earlier
                after_look = torch.where(active[seat][..., None], after_look, kept)
            memories[seat] = after_look
            drawn = law.sample(generator)
            actions[seat], log_probs[seat] = drawn[0].to(where), law.log_prob(drawn)[0].to(where)
        played = {seat: (a.clamp(-1, 1) if a.is_floating_point() else a).to(game.device) for seat, a in actions.items()}
        state, rewards, ended = game.step(state, played, generator)
        steps.append(
            {
                "observations": observations,
                "masks": masks,
                "actions": actions,
                "log_probs": log_probs,
                "memories": {
                    seat: None if memories[seat] is None else _or_zeros(before[seat], memories[seat]) for seat in seats
                },
                "rewards": rewards.to(where),
                "live": ~done.to(where),
                "active": active,
            }
        )
        done = ended
        if watch is not None:
            watch(state)
        if bool(done.all()):
            break
    return _stack(steps, game.seats)


def join(parts: Sequence[Episodes]) -> Episodes:
    """Several batches of episodes as one; shorter ones are padded with steps that were not played."""
    if len(parts) == 1:
        return parts[0]
    length = max(len(part.live) for part in parts)

    def glue(tensors: Sequence[Any]) -> Any:
        if tensors[0] is None:
            return None
        if isinstance(tensors[0], Mapping):
            return {name: glue([t[name] for t in tensors]) for name in tensors[0]}
        if len({t.shape[2:] for t in tensors}) > 1:  # memories of different opponents, whom nobody trains on these
            return None
        padded = [torch.cat([t, t[-1:].expand(length - len(t), *t.shape[1:])]) for t in tensors]
        return torch.cat(padded, 1)

    whole = Episodes(*(glue([getattr(part, name) for part in parts]) for name in Episodes._fields))
    real = torch.cat(
        [(torch.arange(length) < len(part.live))[:, None].expand(-1, part.live.shape[1]) for part in parts], 1
    ).to(whole.live.device)
    return whole._replace(live=whole.live & real, rewards=whole.rewards * real)


def _or_zeros(before: Tensor | None, after: Tensor | None) -> Tensor | None:
    return torch.zeros_like(after) if before is None and after is not None else before


def _stack(steps: list[dict[str, Any]], seats: tuple[str, str]) -> Episodes:
    def column(name: str) -> Any:
        values = [step[name] for step in steps]
        if values[0] is None:
            return None
        if not isinstance(values[0], Mapping):
            return torch.stack(values)
        return {
            seat: None if values[0][seat] is None else torch.stack([v[seat] for v in values])
            for seat in seats
            if seat in values[0]
        }

    return Episodes(*(column(name) for name in Episodes._fields))


def pairs_of(episodes: Episodes, seat: str) -> Pairs:
    """What the players of a seat saw and did, as data to imitate, episode by episode and player by player.

    Steps at which a player was not there or waited are left out.

    Args:
        episodes: Played before.
        seat: Whose.
    """
    steps, batch, players = episodes.log_probs[seat].shape
    live = episodes.live[..., None].expand(-1, -1, players)
    if episodes.active is not None and seat in episodes.active:
        live = live & episodes.active[seat]
    live = live.permute(1, 2, 0)
    tracks = torch.arange(batch * players).reshape(batch, players, 1).expand(-1, -1, steps)[live.to("cpu")]

    def rows(x: Tensor) -> Tensor:
        return x.permute(1, 2, 0, *range(3, x.dim()))[live.to(x.device)]

    masks = None if episodes.masks is None or seat not in episodes.masks else rows(episodes.masks[seat])
    seen, done = rows(episodes.observations[seat]), rows(episodes.actions[seat])
    return Pairs(seen, done, masks, tracks // players, tracks)
