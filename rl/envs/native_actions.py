"""Actions of PettingZoo's spaces as the numbers of a batched game, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import gymnasium
import numpy as np
from numpy.typing import NDArray

MOST_ACTIONS = 1024  # of several discrete choices, numbered through


def action_size(space: gymnasium.Space[object], name: str) -> tuple[int, int]:
    """Number of discrete actions and length of real ones, one of them 0.

    Several discrete choices at once, in MultiDiscrete, MultiBinary, and Dict and Tuple of any depth, are numbered
    through; several boxes are put one after the other.

    Args:
        space: Of an agent's actions.
        name: Of the agent.

    Raises:
        ValueError: If the space is of another kind, mixes choices with real numbers, or has too many choices.
    """
    leaves = list(_leaves(space))
    choices = [_choices(leaf) for leaf in leaves]
    if leaves and all(sizes is not None for sizes in choices):
        joint = math.prod(size for sizes in choices for size in sizes or ())
        if joint <= MOST_ACTIONS or isinstance(space, gymnasium.spaces.Discrete):
            return joint, 0
        raise ValueError(
            f"{name} acts in {space}, which is {joint} actions when they are numbered through, but at most "
            f"{MOST_ACTIONS} can be; wrap the environment so that it decides one thing at a time"
        )
    if leaves and all(_bounded(leaf) for leaf in leaves):
        return 0, sum(int(math.prod(leaf.shape or ())) for leaf in leaves)
    if all(sizes is not None or _bounded(leaf) for leaf, sizes in zip(leaves, choices, strict=True)):
        raise ValueError(
            f"{name} acts in {space}, which mixes choices with real numbers; wrap the environment so that it takes one "
            "or the other, a choice among a few real actions for example"
        )
    raise ValueError(
        f"{name} acts in {space}, but actions must be Discrete, MultiDiscrete or a bounded Box, or a Dict or Tuple of "
        "them; wrap the environment"
    )


def native_action(space: gymnasium.Space[object], action: int | NDArray[np.floating]) -> object:
    """An action of a game in the environment's own space.

    Args:
        space: Of the agent's actions, one that :func:`action_size` takes.
        action: Its number, or real numbers in [-1, 1], which are clipped to it and scaled to the bounds.
    """
    if isinstance(action, int | np.integer):
        sizes = [size for leaf in _leaves(space) for size in _choices(leaf) or ()]
        return _joined(space, iter([float(number) for number in np.unravel_index(int(action), sizes)] if sizes else []))
    return _joined(space, iter(np.clip(action, -1, 1)))


def game_action(space: gymnasium.Space[object], action: object) -> int | NDArray[np.float32]:
    """The inverse of :func:`native_action`.

    Args:
        space: Of the agent's actions.
        action: An element of it.

    Returns:
        Its number, or real numbers in [-1, 1].

    Raises:
        ValueError: If the action is outside the space.
    """
    values: list[float] = []
    sizes: list[int] = []
    for leaf, part in _parts(space, action):
        array = np.asarray(part)
        if isinstance(leaf, gymnasium.spaces.Box):
            low, high = leaf.low.astype(np.float64), leaf.high.astype(np.float64)
            scaled = 2 * (array.astype(np.float64) - low) / np.where(high > low, high - low, 1.0) - 1
            values += scaled.reshape(-1).tolist()
            continue
        start = np.asarray(getattr(leaf, "start", 0))
        values += (array - start).reshape(-1).tolist()
        sizes += _choices(leaf) or []
    if not sizes:
        real = np.asarray(values, dtype=np.float32)
        if not (np.abs(real) <= 1 + 1e-4).all():
            raise ValueError(f"the action {action!r} is outside {space}; record actions as the environment takes them")
        return real.clip(-1, 1)
    if any(not 0 <= value < size or value % 1 for value, size in zip(values, sizes, strict=True)):
        raise ValueError(f"the action {action!r} is outside {space}; record actions as the environment takes them")
    return int(np.ravel_multi_index([int(value) for value in values], sizes))


def _leaves(space: gymnasium.Space[object]) -> Iterator[gymnasium.Space[object]]:
    """The spaces that a space is made of, in order."""
    if isinstance(space, gymnasium.spaces.Dict):
        for part in space.spaces.values():
            yield from _leaves(part)
    elif isinstance(space, gymnasium.spaces.Tuple):
        for part in space.spaces:
            yield from _leaves(part)
    else:
        yield space


def _parts(space: gymnasium.Space[object], action: object) -> Iterator[tuple[gymnasium.Space[object], object]]:
    """The spaces that a space is made of, each with its part of an action."""
    if isinstance(space, gymnasium.spaces.Dict):
        if not isinstance(action, Mapping) or set(action) != set(space.spaces):
            raise ValueError(f"the action {action!r} is no element of {space}; give one value for each of its keys")
        for name, part in space.spaces.items():
            yield from _parts(part, action[name])
    elif isinstance(space, gymnasium.spaces.Tuple):
        if not isinstance(action, tuple | list) or len(action) != len(space.spaces):
            raise ValueError(f"the action {action!r} is no element of {space}; give one value for each of its parts")
        for one, value in zip(space.spaces, action, strict=True):
            yield from _parts(one, value)
    else:
        yield space, action


def _choices(leaf: gymnasium.Space[object]) -> list[int] | None:
    """Sizes of the discrete choices of a space, or None where it is none."""
    if isinstance(leaf, gymnasium.spaces.Discrete):
        return [int(leaf.n)]
    if isinstance(leaf, gymnasium.spaces.MultiDiscrete):
        return [int(size) for size in leaf.nvec.reshape(-1)]
    if isinstance(leaf, gymnasium.spaces.MultiBinary):
        return [2] * math.prod(leaf.shape)
    return None


def _bounded(leaf: gymnasium.Space[object]) -> bool:
    if not isinstance(leaf, gymnasium.spaces.Box):
        return False
    return bool(np.isfinite(leaf.low).all() and np.isfinite(leaf.high).all())


def _joined(space: gymnasium.Space[object], values: Iterator[float]) -> object:
    """An element of a space from its numbers, one after the other."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {name: _joined(part, values) for name, part in space.spaces.items()}
    if isinstance(space, gymnasium.spaces.Tuple):
        return tuple(_joined(part, values) for part in space.spaces)
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(next(values)) + int(space.start)
    found = np.asarray([next(values) for _ in range(math.prod(space.shape or ()))]).reshape(space.shape or ())
    if isinstance(space, gymnasium.spaces.Box):
        return (space.low + (found + 1) / 2 * (space.high - space.low)).astype(space.dtype)
    return (found + getattr(space, "start", 0)).astype(space.dtype)
