r"""Metrics that are no means of losses of rows: F1, recall, AUC and calibration error, as smooth functionals.

With :math:`P_{abc}` the distribution of (W, Z, Y) whose factors come from domain a, b and c, a metric T splits exactly:

.. math:: T(P_{111}) - T(P_{000}) = [T(P_{100}) - T(P_{000})] + [T(P_{110}) - T(P_{100})] + [T(P_{111}) - T(P_{110})]

so that baseline, covariate and outcome term have the meaning that they have for a mean of losses: what the metric
would be if only this factor had shifted. Each :math:`T(P)` here is a function h of means :math:`E_P[\ell_j]` of a few
losses of rows, the *parts*; each mean has the one-step estimate of
:func:`~explain.functional.aggregate.expectation_rows`, and by the delta method T has the influence function

.. math:: \phi(o) = \sum_j \partial_j h \,(\ell_j(o) - E_P[\ell_j])

**F1 and recall** are ratios n/d of two means: with a label y and a decision :math:`\hat y` of 0 or 1, 1 - F1 has
:math:`n = 1[y \ne \hat y]` and :math:`d = y + \hat y`, 1 - recall has :math:`n = y(1 - \hat y)` and :math:`d = y`.

**AUC** is quadratic in P: :math:`1 - AUC = N(P) / (\pi (1 - \pi))` with :math:`\pi = E_P[y]` and, for two independent
rows, :math:`N(P) = E[y (1 - y') k(s, s')]`, :math:`k(s, s') = 1[s < s'] + \frac12 1[s = s']`, a U-statistic. Its
projection on one row is :math:`g_P(o) = y\,E_P[(1-y') k(s, s')] + (1-y)\,E_P[y' k(s', s)]`, with mean 2 N(P) under P
and influence function :math:`g_P - 2N`. With :math:`\hat P` the source's rows under their density ratio, the one-step
estimate is :math:`E_P[g_{\hat P}] - N(\hat P)`, wrong only by a square of the error of :math:`\hat P`.

**Calibration error** is the square :math:`\sum_b E_P[1_b (y - s)]^2 / E_P[1_b]` over bins b of the score. A square of
an estimate is too large by its variance, which is subtracted; and near 0 the delta method sees no error at all, so the
covariance of the squares themselves is added: for normal means :math:`2\,Cov(r_b, r'_c)^2 / (p_b\,p'_c)`.

**Shares by variable** need a loss of each row. They are those of the influence function at :math:`P_{110}`,
:math:`\tilde\ell = \sum_j \partial_j h(P_{110})\,\ell_j`: of a ratio the secant :math:`(n - T_{110} d) / d_{110}` of
both shifts, as :math:`E_b[n - T_b d] = 0` makes :math:`E_b[\tilde\ell] - E_a[\tilde\ell]` proportional to
:math:`T_b - T_a` without a remainder where a or b is 110; of AUC and calibration error the shift to first order.
The weights :math:`\partial_j h` are taken as known in the intervals of shares.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from explain.functional.bins import quantile_bins
from explain.functional.intervals import Codes, covariance
from explain.functional.rows import Floats, Rows, mean

Metric = Literal["f1", "recall", "auc", "calibration"]
METRICS: tuple[str, ...] = get_args(Metric)
METRIC_NAMES: dict[str, str] = {
    "f1": "1 - F1",
    "recall": "1 - recall",
    "auc": "1 - AUC",
    "calibration": "squared calibration error",
}
CALIBRATION_BINS = 10
LEAST_SHARE = 0.002  # of the rows of a distribution in a bin, or of what a ratio is divided by


class Law(NamedTuple):
    """A distribution as weighted rows with a label and a score.

    Attributes:
        positive: The label, 0 or 1, shape (n,).
        score: What the model says of it, shape (n,).
        share: Weights of the rows that sum to 1.
    """

    positive: Floats
    score: Floats
    share: Floats


def ratio_parts(kind: Metric, positive: Floats, score: Floats) -> Floats:
    """Numerator and denominator of 1 - F1 or of 1 - recall, for the decision that a score is above 0.5.

    Args:
        kind: "f1" or "recall".
        positive: Labels, 0 or 1, shape (n,).
        score: Probabilities of 1, shape (n,).

    Returns:
        Shape (2, n).

    Example:
        >>> import numpy as np
        >>> n, d = ratio_parts("f1", np.array([1.0, 1, 0, 0]), np.array([0.9, 0.2, 0.8, 0.1])).mean(1)
        >>> float(1 - n / d)  # one hit, one miss, one false alarm
        0.5
    """
    decided = (score > 0.5).astype(np.float64)
    if kind == "f1":
        return np.stack([np.abs(positive - decided), positive + decided])
    return np.stack([positive * (1 - decided), positive])


def auc_parts(law: Law, positive: Floats, score: Floats) -> Floats:
    r"""Projection :math:`g_P` of the AUC's U-statistic at some rows, and their labels.

    Args:
        law: P.
        positive: Labels, 0 or 1, shape (n,).
        score: Scores on any scale, shape (n,).

    Returns:
        Shape (2, n).
    """
    negative = _beyond(law.score, law.share * (1 - law.positive), score)
    below = _beyond(-law.score, law.share * law.positive, -score)
    return np.stack([positive * negative + (1 - positive) * below, positive])


def auc_square(law: Law) -> float:
    """N(P): how likely a first row is positive, a second one negative, and the first has the lower score."""
    return float(law.share @ (law.positive * _beyond(law.score, law.share * (1 - law.positive), law.score)))


def calibration_edges(scores: Floats, share: Floats) -> Floats:
    """Inner edges of bins that hold equal shares of the scores."""
    return quantile_bins(scores, CALIBRATION_BINS, share).edges


def calibration_parts(edges: Floats, positive: Floats, score: Floats) -> Floats:
    """For every bin of the score first 1_b (y - s), then 1_b.

    Args:
        edges: Inner edges of the bins, ascending, shape (B - 1,).
        positive: Labels, 0 or 1, shape (n,).
        score: Probabilities of 1, shape (n,).

    Returns:
        Shape (2 B, n).
    """
    inside = np.searchsorted(edges, score, side="right") == np.arange(len(edges) + 1)[:, None]
    return np.concatenate([inside * (positive - score), inside.astype(np.float64)])


class Levels(NamedTuple):
    """A metric under the four distributions 000, 100, 110 and 111.

    Attributes:
        value: The metric, shape (4,).
        spread: Covariance, shape (4, 4).
        rows: Influence values, shape (4, n_0) and (4, n_1), without their constants.
        gradient: Derivative by the means of the parts under 110, shape (m,).
    """

    value: Floats
    spread: Floats
    rows: Rows
    gradient: Floats


def metric_levels(
    kind: Metric,
    parts: Sequence[Rows],
    squares: Sequence[float] = (),
    clusters: Sequence[Codes] | None = None,
    share: Rows | None = None,
) -> Levels:
    """A metric under the four distributions, from the influence values of the means of its parts.

    Args:
        kind: The metric.
        parts: Uncentred influence values of the m means under 000, 100, 110 and 111, shape (m, n_0) and (m, n_1) each.
        squares: Of the AUC N of the laws that the projections were made with, four of them.
        clusters: Clusters of the rows of both domains.
        share: Weights of the rows that sum to 1 in each domain.

    Returns:
        The levels.

    Raises:
        ValueError: If a distribution has hardly any rows in a bin, or hardly anything to divide by.
    """
    means = [mean(part, share) for part in parts]
    spreads = covariance(_stacked(parts), clusters, share)
    size = len(means[0])
    blocks = spreads.reshape(4, size, 4, size)
    values, gradients = [], []
    for place, found in enumerate(means):
        square = squares[place] if squares else 0.0
        value, gradient = _value(kind, found, square, np.diag(blocks[place, :, place]))
        values.append(value)
        gradients.append(gradient)
    wide = np.zeros((4, 4 * size))
    for place, gradient in enumerate(gradients):
        wide[place, place * size : (place + 1) * size] = gradient
    spread = wide @ spreads @ wide.T
    if kind == "calibration":
        bins = size // 2
        scale = [1 / found[bins:] for found in means]
        spread += 2 * np.array(
            [[scale[a] @ blocks[a, :bins, b, :bins] ** 2 @ scale[b] for b in range(4)] for a in range(4)]
        )
    rows = Rows(*(wide @ side for side in _stacked(parts)))
    return Levels(np.array(values), spread, rows, gradients[2])


def _stacked(parts: Sequence[Rows]) -> Rows:
    return Rows(*(np.concatenate([part[side] for part in parts]) for side in (0, 1)))


def _value(kind: Metric, means: Floats, square: float, variance: Floats) -> tuple[float, Floats]:
    """The metric and its derivative by the means of its parts."""
    if kind == "calibration":
        bins = len(means) // 2
        r, p = means[:bins], means[bins:]
        _divisible(float(p.min()), "the calibration error has a bin with")
        return float(((r**2 - variance[:bins]) / p).sum()), np.concatenate([2 * r / p, -((r / p) ** 2)])
    if kind == "auc":
        part = float(means[1])
        below = part * (1 - part)
        _divisible(below, "the AUC divides by")
        value = (float(means[0]) - square) / below
        return value, np.array([1.0, -value * (1 - 2 * part)]) / below
    below = float(means[1])
    _divisible(below, f"{METRIC_NAMES[kind]} divides by")
    value = float(means[0]) / below
    return value, np.array([1.0, -value]) / below


def _divisible(value: float, what: str) -> None:
    if not value >= LEAST_SHARE:
        raise ValueError(
            f"{what} a share of {value:.2g} of the rows once the domains are reweighted, but at least {LEAST_SHARE:g} "
            "is needed: give more rows, or domains that overlap more"
        )


def _beyond(scores: Floats, weights: Floats, at: Floats) -> Floats:
    """For every value the weight of the scores above it, half of those that equal it."""
    order = np.argsort(scores, kind="stable")
    ranked, total = scores[order], np.append(0.0, np.cumsum(weights[order]))
    above, least = (total[-1] - total[np.searchsorted(ranked, at, side)] for side in ("right", "left"))
    return np.asarray((above + least) / 2)
