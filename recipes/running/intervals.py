"""The interval over seeds that reports give: Student's, with 95 %."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % Student interval of the mean of independent values; None where there is one alone.

    >>> half_interval([1.0]) is None, round(half_interval([1.0, 2.0, 3.0]), 4)
    (True, 2.4841)
    """
    if len(values) < 2:
        return None
    from scipy.stats import t as student

    return float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean of independent values, such as those of seeds, with its 95 % Student interval; of one value, the value."""
    mean, half = statistics.fmean(values), half_interval(values) or 0.0
    return {"value": mean, "low": mean - half, "high": mean + half}
