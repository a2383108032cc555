"""Episodes that stand in the data twice: they count twice, and make every promise too high."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import numpy as np

from rl.csp.pairs import Pairs
from rl.csp.stationarity import change_warning

ALARM = 0.01  # repetitions expected by chance, below which they are reported


def copied_episodes(pairs: Pairs) -> int:
    """How many of the last episodes repeat the first ones in the same order, where chance does not explain it.

    Joining files that overlap leaves this. In a small game two episodes are often the same: with the share c of equal
    ones among all pairs of n episodes, about n c^b repetitions of b episodes are expected.

    Args:
        pairs: The data; episodes are numbered in their order.

    Returns:
        The number b of repeated episodes, or 0.

    Reference:
        Knuth, Morris and Pratt (1977), "Fast pattern matching in strings", for the longest border of a sequence.
    """
    numbers = pairs.episodes.tolist()
    actions = pairs.actions.reshape(len(numbers), -1).double().numpy()
    steps = np.concatenate([pairs.observations.double().numpy(), actions], axis=1)
    played = [steps[list(rows)].tobytes() for _, rows in groupby(range(len(numbers)), numbers.__getitem__)]
    n, borders = len(played), [0]
    for episode in played[1:]:
        length = borders[-1]
        while length and episode != played[length]:
            length = borders[length - 1]
        borders.append(length + (episode == played[length]))
    alike = sum(count * (count - 1) for count in Counter(played).values()) / max(1, n * (n - 1))
    return borders[-1] if borders[-1] and n * alike ** borders[-1] < ALARM else 0


def data_warnings(pairs: Pairs) -> list[str]:
    """What a reader of the numbers must know of the data, one sentence each.

    Args:
        pairs: The data; see :func:`copied_episodes` and :func:`rl.csp.stationarity.change_over_time`.
    """
    found = [changed] if (changed := change_warning(pairs)) else []
    if copied := copied_episodes(pairs):
        found.append(
            f"the last {copied} episodes repeat the first {copied} in the same order, as if files had been joined that "
            "overlap: they count twice, and every promise is too high; leave them out"
        )
    return found
