"""Cross-fit the means behind a metric, and the loss of each row whose shifts are shared out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from joblib import delayed

from explain.crossfit import ratio, regress, splits
from explain.data import Codes, Sample, Scored
from explain.errors import ExplainError
from explain.functional.aggregate import shifted_rows
from explain.functional.metrics import (
    Law,
    Levels,
    auc_parts,
    auc_square,
    calibration_edges,
    calibration_parts,
    metric_levels,
    ratio_parts,
)
from explain.functional.rows import Floats, Rows, stack
from explain.nuisances import Families

Runs = Callable[[Sequence[Any], str], list[Any]]  # runs tasks of joblib under a title
Split = tuple[tuple[Codes, Codes], tuple[Codes, Codes]]


class _Parts(NamedTuple):
    """Parts of a metric: at source rows under 000, 100 and 110, at target rows under 111; and at all rows under 110."""

    source: Sequence[Floats]
    target: Floats
    at_110: Rows
    squares: Sequence[float]


def with_levels(
    sample: Sample,
    families: Families,
    folds: tuple[Codes, Codes],
    parallel: Runs,
) -> tuple[Sample, Levels | None]:
    """The metric under the four distributions, and the sample with the loss whose shifts are shared out.

    Args:
        sample: The data; without a metric it comes back as it is, with no levels.
        families: Learners.
        folds: Fold of every row.
        parallel: Runs tasks of joblib, which it gets with a title.

    Raises:
        ExplainError: If a distribution leaves nothing to divide by.
    """
    if sample.scored is None:
        return sample, None
    scored, pieces = sample.scored, splits(folds)
    ratios = np.empty((2, sample.sizes[0]))
    for (_, test), found in zip(
        pieces, parallel([delayed(_ratios)(sample, families, part) for part in pieces], "density ratios"), strict=True
    ):
        ratios[:, test[0]] = found
    parts = _parts(sample, scored, *ratios)
    means = [
        Rows(np.zeros((len(parts.target), sample.sizes[0])), np.zeros((len(parts.target), sample.sizes[1])))
        for _ in range(4)
    ]
    means[0].source[:], means[3].target[:] = parts.source[0], parts.target
    jobs = [delayed(_shifted)(sample, families, part, parts.source[1], parts.source[2], ratios) for part in pieces]
    for (_, test), found in zip(pieces, parallel(jobs, "metric"), strict=True):
        for place, rows in zip((1, 2), found, strict=True):
            for side in (0, 1):
                means[place][side][:, test[side]] = rows[side]
    try:
        levels = metric_levels(scored.kind, means, parts.squares, sample.clusters, sample.share)
    except ValueError as error:
        raise ExplainError(str(error)) from error
    return replace(sample, loss=Rows(*(levels.gradient @ part for part in parts.at_110))), levels


def _ratios(sample: Sample, families: Families, part: Split) -> Floats:
    """Density ratios of the baseline and of all features at the held-out source rows, shape (2, n)."""
    everything = np.arange(sample.features.source.shape[1])
    return np.stack(
        [ratio(sample, families.density, *part, columns)[part[1][0]] for columns in (sample.baseline, everything)]
    )


def _parts(sample: Sample, scored: Scored, ratio_w: Floats, ratio_x: Floats) -> _Parts:
    y, s = scored.positive, scored.score
    if scored.kind == "auc":
        share = [part / part.sum() for part in (sample.weight_of(0), sample.weight_of(1))]
        weights = [share[0], share[0] * ratio_w, share[0] * ratio_x]
        laws = [Law(y.source, s.source, weight / weight.sum()) for weight in weights]
        laws.append(Law(y.target, s.target, share[1]))
        source = [auc_parts(law, y.source, s.source) for law in laws[:3]]
        at_110 = Rows(source[2], auc_parts(laws[2], y.target, s.target))
        return _Parts(source, auc_parts(laws[3], y.target, s.target), at_110, [auc_square(law) for law in laws])
    if scored.kind == "calibration":
        weight = np.concatenate([sample.weight_of(side) / sample.weight_of(side).sum() for side in (0, 1)])
        edges = calibration_edges(np.concatenate(s), weight)
        here, there = (calibration_parts(edges, y[side], s[side]) for side in (0, 1))
    else:
        here, there = (ratio_parts(scored.kind, y[side], s[side]) for side in (0, 1))
    return _Parts([here] * 3, there, Rows(here, there), ())


def _shifted(
    sample: Sample, families: Families, part: Split, at_100: Floats, at_110: Floats, ratios: Floats
) -> tuple[Rows, Rows]:
    """Influence values of the means under 100 and 110 at the held-out rows of a fold."""
    train, (test_0, test_1) = part
    everything = np.arange(sample.features.source.shape[1])
    family = families.loss.keeping({})  # parts that are the same under both are learnt once
    found = []
    for parts, baseline in ((at_100, True), (at_110, False)):
        rows = []
        for values in parts:
            mu = regress(sample, family, 0, train, everything, values)
            if baseline:
                mu = regress(sample, family, 0, train, sample.baseline, mu.source)
            held = Rows(mu.source[test_0], mu.target[test_1])
            rows.append(shifted_rows(values[test_0], held, ratios[0 if baseline else 1, test_0]))
        found.append(stack(rows))
    return found[0], found[1]
