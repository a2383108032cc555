"""Check a user's parallel environment before anything is trained in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import gymnasium
import numpy as np

from rl.envs.native_actions import action_size, native_action
from rl.envs.parallel import ParallelGame
from rl.envs.petting_zoo import (
    as_parallel,
    flat,
    in_turn,
    is_masked,
    look_space,
    require_parallel,
    require_seats,
    require_seen_masks,
)

if TYPE_CHECKING:
    from pettingzoo import ParallelEnv

EPISODES = 3


def check_parallel_env(
    make: Callable[..., object],
    ours: Sequence[str],
    target: Sequence[str],
    horizon: int = 1000,
    *,
    must_end: bool = True,
    must_repeat: bool = True,
) -> list[str]:
    """Play random episodes and refuse an environment that would break training, or spoil its results without a word.

    Args:
        make: Makes the environment, without arguments.
        ours: Names of our agents.
        target: Names of the target's agents.
        horizon: Within how many steps an episode must end.
        must_end: Whether that is required; else episodes will be cut there.
        must_repeat: Whether an episode that does not follow from seed and actions is refused; else a warning says so.

    Returns:
        What was checked, one sentence each.

    Raises:
        ValueError: For the first breach, in one sentence.
    """
    env = as_parallel(make())
    require_parallel(env)
    require_seats(env, {"ours": ours, "target": target})
    ParallelGame(make, ours, target, horizon)
    lengths = [_play(env, seed, horizon, ours) for seed in range(EPISODES)]
    if must_end and not all(ended for _, ended, _ in lengths):
        raise ValueError(
            f"an episode has no end within {horizon} steps; make the environment end it, give a longer horizon, or let "
            "episodes be cut there with must_end=False"
        )
    repeats = "the same seed and actions give the same episode"
    if _play(env, 0, horizon, ours)[2] != lengths[0][2]:
        repeats = "two episodes with the same seed and actions differ; reset(seed=...) must seed all chance"
        if must_repeat:
            raise ValueError(repeats)
        repeats = f"warning: {repeats}"
    longest = max(steps for steps, _, _ in lengths)
    return [
        f"{len(ours)} agents of ours and {len(target)} of the target's, with equal spaces in a side",
        f"{EPISODES} random episodes of at most {longest} steps keep to their spaces, without NaN",
        repeats,
    ]


def _play(env: ParallelEnv, seed: int, horizon: int, ours: Sequence[str]) -> tuple[int, bool, list[float]]:
    """Steps of a random episode, whether it ended, and everything it showed and paid."""
    generator = np.random.default_rng(seed)
    answer = env.reset(seed=seed)
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise ValueError("reset must return observations and infos, two dictionaries by agent")
    require_seen_masks(env, answer[1])
    seen = answer[0]
    found = _check_looks(env, seen)
    for step in range(horizon):
        if not env.agents:
            return step, True, found
        moves = {name: _random_action(env, name, seen.get(name), generator) for name in env.agents}
        answer = env.step(moves)
        if not (isinstance(answer, tuple) and len(answer) == 5):
            raise ValueError(
                "step must return five dictionaries by agent: observations, rewards, terminations, truncations, infos"
            )
        seen, rewards = answer[0], answer[1]
        found += _check_looks(env, seen)
        if unpaid := [name for name in ours if name in moves and name not in rewards]:
            raise ValueError(f"the environment pays {unpaid[0]} nothing for a step that it took; return its reward")
        for name, reward in rewards.items():
            number = np.asarray(reward)
            if number.shape != () or number.dtype.kind not in "biuf" or not np.isfinite(number):
                raise ValueError(f"the reward of {name} in step {step} is {reward!r}, but it must be a finite number")
            found.append(float(number))
    return horizon, not env.agents, found


def _check_looks(env: ParallelEnv, seen: Mapping[str, object]) -> list[float]:
    """Observations of the agents that are there, as numbers: present, of the right shape, finite."""
    numbers: list[float] = []
    for name in env.agents:
        if name not in seen:
            raise ValueError(f"{name} is in agents, but the environment gives it no observation")
    for name, observed in seen.items():
        space = look_space(env, name)
        masks = observed if is_masked(env, name) and isinstance(observed, Mapping) else {}
        look = masks.get("observation", observed)
        if isinstance(space, gymnasium.spaces.Box) and np.shape(look) != space.shape:
            raise ValueError(
                f"{name} observes an array of shape {np.shape(look)}, but its space has shape {space.shape}"
            )
        numbers += flat(space, look).tolist()
        if not np.isfinite(numbers).all():
            raise ValueError(f"{name} observes NaN or infinite numbers")
        if masks and not np.asarray(masks["action_mask"]).any() and in_turn(env, name):
            raise ValueError(f"{name} has no legal action: its action_mask is all 0")
    return numbers


def _random_action(env: ParallelEnv, name: str, observed: object, generator: np.random.Generator) -> object:
    """A legal action drawn from the test's own generator."""
    space = env.action_space(name)
    n_actions, width = action_size(space, name)
    if not n_actions:
        return native_action(space, generator.uniform(-1, 1, width))
    legal = np.arange(n_actions)
    if is_masked(env, name) and isinstance(observed, Mapping):
        legal = np.flatnonzero(observed["action_mask"])
    return native_action(space, generator.choice(legal)) if len(legal) else None  # it waits for its turn
