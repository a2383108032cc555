"""Density ratios from the probabilities of a domain classifier, kept finite, and what they say about overlap."""

from typing import NamedTuple

import numpy as np

from explain.functional.intervals import Codes, effective
from explain.functional.rows import Floats, quantile

MAX_RATIO = 50.0
CAP_QUANTILE = 0.995


class Overlap(NamedTuple):
    """How well the source rows cover the target domain.

    Attributes:
        effective: Effective number of source rows, (sum of ratios)^2 / sum of squares, each times the row's weight; of
            clusters where rows come in clusters.
        share: The same as a fraction of what is left of the source without the ratios, in (0, 1].
        largest: The largest ratio, after the cap.
        auc: How well a classifier tells the domains apart, in [0.5, 1] up to noise: area under its ROC curve.
        kept: Fraction of all rows inside the common support (1 without trimming).
    """

    effective: float
    share: float
    largest: float
    auc: float
    kept: float


def density_ratio(probability: Floats, sizes: tuple[float, float], weights: Floats | None = None) -> Floats:
    r"""Estimate p_1 / p_0 at source rows, clipped, capped and with mean 1.

    .. math:: \pi = \frac{p}{1-p} \cdot \frac{n_0}{n_1}

    The probability is clipped to [1/(2n), 1 - 1/(2n)] with n = n_0 + n_1; ratios are capped at 50, or at their 99.5 %
    quantile where that is lower; then they are divided by their mean (Hajek), which estimates 1.

    Args:
        probability: P(target | features) at held-out source rows, shape (n,), in [0, 1].
        sizes: n_0 and n_1, the rows the classifier was trained on; sums of their weights where they have any.
        weights: Weights of the rows, for a weighted population; equal when not given.

    Returns:
        Ratios, shape (n,), positive.

    Example:
        >>> import numpy as np
        >>> density_ratio(np.array([0.5, 0.75]), (100, 100)).round(3)
        array([0.5, 1.5])
    """
    edge = 1 / (2 * sum(sizes))
    p = np.clip(probability, edge, 1 - edge)
    ratio = p / (1 - p) * (sizes[0] / sizes[1])
    ratio = np.minimum(ratio, min(quantile(ratio, CAP_QUANTILE, weights), MAX_RATIO))  # the largest below 200 rows
    return np.asarray(ratio / np.average(ratio, weights=weights))


def overlap(
    ratio: Floats,
    source: Floats,
    target: Floats,
    kept: float = 1.0,
    *,
    weights: tuple[Floats, Floats] | None = None,
    clusters: Codes | None = None,
) -> Overlap:
    """Overlap diagnostics of the density ratio over all features.

    Args:
        ratio: Density ratio at the source rows, shape (n_0,).
        source: P(target | features) at the source rows, held out, shape (n_0,).
        target: P(target | features) at the target rows, held out, shape (n_1,).
        kept: Fraction of the rows left after trimming.
        weights: Weights of the source and of the target rows; equal when not given.
        clusters: Clusters of the source rows.

    Returns:
        An :class:`Overlap`.
    """
    w_0, w_1 = (np.ones(len(source)), np.ones(len(target))) if weights is None else weights
    found = effective(ratio * w_0, clusters)
    values, codes = np.unique(np.concatenate([source, target]), return_inverse=True)
    here = np.bincount(codes[: len(source)], w_0, len(values))
    there = np.bincount(codes[len(source) :], w_1, len(values))
    auc = float((there * (np.cumsum(here) - here / 2)).sum() / (here.sum() * there.sum()))
    return Overlap(found, found / effective(w_0, clusters), float(ratio.max()), auc, kept)
