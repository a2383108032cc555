"""Check a batched game against its protocol: shapes, replay, kept inputs and episodes that stay done."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.envs.markov_game import BatchedGame, State

BATCH = 5


def check_game(game: BatchedGame, seed: int = 0, *, must_repeat: bool = True) -> list[str]:
    """Play random episodes and refuse a game that would spoil training without a word.

    Args:
        game: What to check.
        seed: Of chance and actions.
        must_repeat: Whether an episode that does not follow from generator and actions is refused; else a warning says
            so.

    Returns:
        What was checked, one sentence each.

    Raises:
        ValueError: For the first breach, in one sentence.
    """
    rewards, state = _episode(game, seed)
    after, reward, done = game.step(state, _random_actions(game, state, torch.Generator()), torch.Generator())
    if not done.all() or reward.any():
        raise ValueError("an episode that is done must stay done, with reward 0, when its batch goes on")
    if any(not torch.equal(game.observe(after)[seat], game.observe(state)[seat]) for seat in game.seats):
        raise ValueError("an episode that is done must not change when its batch goes on")
    repeats = "the same generator and actions give the same episodes"
    again, last = _episode(game, seed)
    same = [torch.equal(game.observe(last)[seat], game.observe(state)[seat]) for seat in game.seats]
    if not (torch.equal(rewards, again) and all(same)):
        repeats = "two episodes with the same generator and actions differ; draw all chance from the generator"
        if must_repeat:
            raise ValueError(repeats)
        repeats = f"warning: {repeats}"
    return [
        f"{game.seats[0]} and {game.seats[1]} see, act and are masked by their declared sizes",
        "rewards are finite, no step writes into its inputs, and every episode is done within the horizon and stays so",
        repeats,
    ]


def _episode(game: BatchedGame, seed: int) -> tuple[Tensor, State]:
    """Rewards (horizon, batch) of random episodes and their last state."""
    source, choices = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    state, rewards = game.reset(BATCH, source), []
    _check_state(state, "reset")
    for t in range(game.horizon):
        _check_looks(game, state)
        actions = _random_actions(game, state, choices)
        before = {name: value.clone() for name, value in state.items()}
        following, reward, done = game.step(state, actions, source)
        _check_state(following, f"step {t}")
        if any(not torch.equal(before[name], state[name]) for name in before):
            raise ValueError(f"step {t} writes into the state that it is given; return new tensors")
        if reward.shape != (BATCH,) or reward.dtype != torch.float32 or not reward.isfinite().all():
            raise ValueError(f"the reward of step {t} is not a finite float32 ({BATCH},), but {reward}")
        if done.shape != (BATCH,) or done.dtype != torch.bool or not torch.equal(done, following["done"]):
            raise ValueError(f"done of step {t} is not the boolean ({BATCH},) that the state holds, but {done}")
        if (state["done"] & ~done).any():
            raise ValueError(f"an episode that was done is not done after step {t}")
        rewards.append(reward)
        state = following
    if not state["done"].all():
        raise ValueError(f"an episode is not done after the horizon of {game.horizon} steps")
    return torch.stack(rewards), state


def _check_state(state: State, source: str) -> None:
    """A mapping of tensors (batch, ...), with ``done`` among them."""
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"the state of {source} must be a dict of tensors, but is a {type(state).__name__}")
    done = state.get("done")
    if done is None or done.shape != (BATCH,) or done.dtype != torch.bool:
        raise ValueError(
            f"the state of {source} must hold done, boolean ({BATCH},), but holds {_described(done)} under that name "
            f"among {', '.join(state) or 'nothing'}"
        )
    for name, value in state.items():
        if value.shape[:1] != (BATCH,):
            raise ValueError(
                f"{name} in the state of {source} has shape {tuple(value.shape)}, but its first axis must be the "
                f"episodes, {BATCH}"
            )


def _check_looks(game: BatchedGame, state: State) -> None:
    """Observations and masks by their declared sizes."""
    looks, masks = game.observe(state), game.action_mask(state) or {}
    for seat in game.seats:
        wanted = (BATCH, game.players[seat], game.observation_dim[seat])
        if seat not in looks or looks[seat].shape != wanted or looks[seat].dtype != torch.float32:
            raise ValueError(f"{seat} must observe float32 {wanted}, but observes {_described(looks.get(seat))}")
        if not looks[seat].isfinite().all():
            raise ValueError(f"{seat} observes NaN or infinite numbers")
        if (game.n_actions[seat] > 0) == (game.action_dim[seat] > 0):
            raise ValueError(f"{seat} must have either n_actions or action_dim above 0")
        wanted = (BATCH, game.players[seat], game.n_actions[seat])
        if seat in masks and (masks[seat].shape != wanted or masks[seat].dtype != torch.bool):
            raise ValueError(f"the mask of {seat} must be boolean {wanted}, but is {_described(masks[seat])}")
        if seat in masks and not masks[seat].any(2).all():
            raise ValueError(f"{seat} has no legal action in some row, but every row needs one, also when it is done")


def _random_actions(game: BatchedGame, state: State, generator: torch.Generator) -> dict[str, Tensor]:
    """Legal random actions of all seats."""
    masks, actions = game.action_mask(state) or {}, {}
    for seat in game.seats:
        batch, players = len(state["done"]), game.players[seat]
        if game.n_actions[seat]:
            weights = masks.get(seat, torch.ones(batch, players, game.n_actions[seat], dtype=torch.bool)).float()
            actions[seat] = torch.multinomial(weights.flatten(0, 1), 1, generator=generator).reshape(batch, players)
        else:
            actions[seat] = 2 * torch.rand(batch, players, game.action_dim[seat], generator=generator) - 1
    return actions


def _described(tensor: Tensor | None) -> str:
    """Type and shape, or nothing."""
    return "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
