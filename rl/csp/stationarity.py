"""Whether the target of the data behaves alike from first to last: what every promise about it rests on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rl.csp.pairs import Pairs

FEWEST_EPISODES = 16  # from how many on episodes, and not single stretches of steps, are exchanged
BLOCKS = 4  # stretches of time that are compared
ALARM = 0.01  # p-value at which a change is reported
ROWS = 4096  # pairs that are looked at, at most
NEIGHBOURS = 30
STATES = 64


class Change(NamedTuple):
    """A test for change over time.

    Attributes:
        p_value: Probability of so much change, or more, if the target never changed, in (0, 1].
        units: Episodes, or stretches of steps where there are few episodes, that were compared.
    """

    p_value: float
    units: int


def change_over_time(pairs: Pairs, permutations: int = 999, seed: int = 0) -> Change:
    """Test whether the target's actions, given what it saw, changed in the course of the data.

    An adaptive opponent, one that learns or answers to us, is no fixed policy, and nothing that the data show of it
    holds tomorrow. What is compared is each action with the mean action at that observation (the same one where
    observations repeat, else the nearest ones), so that what our own side did differently over time does not count.
    Sums of these differences, state by state, in four stretches of time are compared with those after the episodes have
    been exchanged at random. With fewer than 16 episodes, stretches of steps are exchanged instead. The test sees slow
    change; it does not see a target that reacts within an episode in the same way every time, which is a fixed policy
    with memory.

    Args:
        pairs: The data; episodes are numbered in the order in which they were played.
        permutations: Random exchanges; the smallest p-value is one over one more.
        seed: Of the exchanges and of which pairs are looked at.

    Returns:
        The p-value and how many units of time it rests on.

    Raises:
        ValueError: If there is no pair.

    Reference:
        Phipson and Smyth (2010), "Permutation p-values should never be zero".
    """
    n = len(pairs.actions)
    if n == 0:
        raise ValueError("there are no pairs to test; record the target for at least one episode")
    generator = torch.Generator().manual_seed(seed)
    names, episode = torch.unique(pairs.episodes, return_inverse=True)
    if len(names) >= FEWEST_EPISODES:
        unit, units = episode, len(names)
    else:
        units = max(1, min(2 * FEWEST_EPISODES, n // 4))
        unit = ((episode + _progress(pairs.tracks)) / len(names) * units).long().clamp(max=units - 1)
    if n > ROWS:
        chosen = torch.randperm(n, generator=generator)[:ROWS].sort().values
        pairs, unit = pairs.rows(chosen), unit[chosen]
    if units < BLOCKS:
        return Change(1.0, units)
    residuals, state = _residuals(pairs)
    A, S = residuals.shape[1], int(state.max()) + 1
    sums = torch.zeros(units * S, A, dtype=torch.float64).index_add(0, unit * S + state, residuals)
    sums = sums.reshape(units, S, A)
    scale = torch.zeros(S, A, dtype=torch.float64).index_add(0, state, residuals.square()).clamp(min=1e-12).sqrt()
    sums = (sums / scale).flatten(1)
    block = torch.arange(units) * BLOCKS // units
    members = torch.nn.functional.one_hot(block, BLOCKS).double().T

    def statistic(order: Tensor) -> float:
        return float((members @ sums[order]).square().sum())

    found = statistic(torch.arange(units))
    # A hair's breadth below: sums in another order round differently.
    others = (statistic(torch.randperm(units, generator=generator)) >= found * (1 - 1e-9) for _ in range(permutations))
    return Change((1 + sum(others)) / (1 + permutations), units)


def change_warning(pairs: Pairs) -> str | None:
    """A sentence for a reader of the numbers where the data show that the target changed, else None.

    Args:
        pairs: The data; see :func:`change_over_time`.
    """
    change = change_over_time(pairs)
    if change.p_value > ALARM:
        return None
    return (
        f"the target changes over the data (p = {change.p_value:.3f}): no promise holds for a target that learns or "
        "answers to us; record it anew once it is fixed, or keep the episodes in which it did not change"
    )


def _progress(tracks: Tensor) -> Tensor:
    """How far along its episode and player each row is, in [0, 1)."""
    _, lengths = torch.unique_consecutive(tracks, return_counts=True)
    return torch.cat([torch.arange(int(length)) / length for length in lengths])


def _residuals(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Actions minus the mean action at their observation (n, A), and the number of a state for each row (n,)."""
    actions = pairs.actions
    if actions.dim() == 1:
        actions = torch.nn.functional.one_hot(actions, int(actions.max()) + 1)
    actions = actions.double()
    rows, group, counts = torch.unique(pairs.observations, dim=0, return_inverse=True, return_counts=True)
    if len(group) >= 4 * len(rows):
        means = torch.zeros(len(rows), actions.shape[1], dtype=torch.float64).index_add(0, group, actions)
        frequent = counts.argsort(descending=True, stable=True)
        place = torch.full((len(rows),), STATES)
        place[frequent[:STATES]] = torch.arange(min(STATES, len(rows)))  # rare states are one together
        return actions - (means / counts[:, None])[group], place[group]
    seen = pairs.observations.double()
    seen = (seen - seen.mean(0)) / seen.std(0, correction=0).clamp(min=1e-6)
    near = min(NEIGHBOURS, len(seen))
    smoothed = [
        actions[torch.cdist(part, seen).topk(near, largest=False).indices].mean(1) for part in torch.split(seen, 512)
    ]
    return actions - torch.cat(smoothed), torch.zeros(len(seen), dtype=torch.int64)
