"""Density ratios from the probabilities of a domain classifier, kept finite, and what they say about overlap."""

from typing import NamedTuple

import numpy as np

from explain.functional.rows import Floats

MAX_RATIO = 50.0
CAP_QUANTILE = 0.995


class Overlap(NamedTuple):
    """How well the source rows cover the target domain.

    Attributes:
        effective: Effective number of source rows, (sum of ratios)^2 / sum of squares.
        share: The same as a fraction of the source rows, in (0, 1].
        largest: The largest ratio, after the cap.
        auc: How well a classifier tells the domains apart, in [0.5, 1] up to noise: area under its ROC curve.
        kept: Fraction of all rows inside the common support (1 without trimming).
    """

    effective: float
    share: float
    largest: float
    auc: float
    kept: float


def density_ratio(probability: Floats, sizes: tuple[int, int], weights: Floats | None = None) -> Floats:
    r"""Estimate p_1 / p_0 at source rows, clipped, capped and with mean 1.

    .. math:: \pi = \frac{p}{1-p} \cdot \frac{n_0}{n_1}

    The probability is clipped to [1/(2n), 1 - 1/(2n)] with n = n_0 + n_1; ratios are capped at 50, or at their 99.5 %
    quantile where that is lower; then they are divided by their mean (Hajek), which estimates 1.

    Args:
        probability: P(target | features) at held-out source rows, shape (n,), in [0, 1].
        sizes: n_0 and n_1, the rows the classifier was trained on.
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
    if len(ratio) >= 1 / (1 - CAP_QUANTILE):
        ratio = np.minimum(ratio, np.quantile(ratio, CAP_QUANTILE))
    ratio = np.minimum(ratio, MAX_RATIO)
    return np.asarray(ratio / np.average(ratio, weights=weights))


def overlap(ratio: Floats, source: Floats, target: Floats, kept: float = 1.0) -> Overlap:
    """Overlap diagnostics of the density ratio over all features.

    Args:
        ratio: Density ratio at the source rows, shape (n_0,).
        source: P(target | features) at the source rows, held out, shape (n_0,).
        target: P(target | features) at the target rows, held out, shape (n_1,).
        kept: Fraction of the rows left after trimming.

    Returns:
        An :class:`Overlap`.
    """
    effective = float(ratio.sum() ** 2 / (ratio**2).sum())
    pooled = np.concatenate([source, target])
    values, codes = np.unique(pooled, return_inverse=True)
    counts = np.bincount(codes, minlength=len(values))
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[codes]
    below = ranks[len(source) :].sum() - len(target) * (len(target) + 1) / 2
    auc = float(below / (len(source) * len(target)))
    return Overlap(effective, effective / len(ratio), float(ratio.max()), auc, kept)
