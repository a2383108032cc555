"""Cross-fitting in windows: every row is predicted by two fits that share no row with it nor with each other.

The rows are dealt to an odd number of folds K. A window is (K - 1) / 2 folds in a ring, and every nuisance is fitted
once on every window. For the rows of one fold the other folds are exactly two windows; nuisances are the mean of the
two fits. As the two are independent, their difference tells the variance of the mean without any assumption on the
learner, and products of two fits in the place of squares are free of it (`split_noise` in `functional.values`).
Density ratios are fitted on all rows outside of the fold: nothing squares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from explain.data import Sample
from explain.functional.aggregate import expectation_rows
from explain.functional.rows import Floats, Rows
from explain.functional.values import (
    covariate_rows,
    outcome_denominator_rows,
    split_noise,
)
from explain.nuisances import Families, Family
from explain.windows import Train, Twin, classify, fit_ratio, regress, twin

Member = NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """Nuisances that all subsets share, fitted on the rows of one window and predicted at every row.

    Attributes:
        train: Rows of the source and of the target.
        risk: What the outcome shift conditions on: the source's probability of every label but the first, shape
            (n, C - 1), or its expected loss, shape (n, 1).
        p_1: Probability of every label in the target, shape (n, C); None without labels.
        mu_0: Expected loss given all features, in the source. Of a difference of two models' losses this and the next
            three are differences of two regressions, so that what is linear in the loss is exactly their difference.
        mu_1: Expected loss given all features, in the target.
        mu_w: Expected loss given the baseline, in the source.
        settled_w: mu_w rid of what the regressions missed, see :func:`_settled`.
        settled_xw: Mean of mu_0 given the baseline, in the target, likewise.
        pair: mu_0 and mu_w of each of two models whose losses are compared; empty where there is one.
    """

    train: Train
    risk: Rows
    p_1: Rows | None
    mu_0: Rows
    mu_1: Rows
    mu_w: Rows
    settled_w: Rows
    settled_xw: Rows
    pair: tuple[tuple[Rows, Rows], ...] = ()


class Ratios(NamedTuple):
    """Density ratios at the source rows, held out.

    Attributes:
        x: Of all features.
        w: Of the baseline.
    """

    x: Floats
    w: Floats


@dataclass(frozen=True)
class Shared:
    """What all subsets share.

    Attributes:
        folds: Fold of every row of both domains.
        windows: Fits of every window.
        ratios: Density ratios.
    """

    folds: Train
    windows: Sequence[Window]
    ratios: Ratios

    def twin(self, parts: Sequence[Rows]) -> Twin:
        """What is known window by window, brought to the two windows of every row."""
        return twin(self.folds, parts)


class Piece(NamedTuple):
    """What goes into one numerator or denominator.

    Attributes:
        rows: Influence values.
        plug_in: What an uncorrected estimate would average at the target rows.
        noise: What the variance of the estimated functions would have added to the mean square, and was taken out.
    """

    rows: Rows
    plug_in: Floats
    noise: float


def fit_window(sample: Sample, families: Families, ratios: Ratios, train: Train) -> Window:
    """Fit the nuisances that do not depend on a subset."""
    p_1: Rows | None = None
    pair: tuple[tuple[Rows, Rows], ...] = ()
    if sample.table is None or sample.labels is None:
        if sample.pair is None:
            means = _expected(sample, families.loss, train, sample.loss)
        else:
            each = zip(families.pair, sample.pair, strict=True)
            first, second = (_expected(sample, family, train, loss) for family, loss in each)
            means = [Rows(b.source - a.source, b.target - a.target) for a, b in zip(first, second, strict=True)]
            pair = (first[0], first[2]), (second[0], second[2])
        risk = Rows(*(part[:, None] for part in means[0]))
    else:
        p_0, p_1 = (classify(sample, families.outcome, side, train, sample.labels[side]) for side in (0, 1))
        both = [Rows(*((table * part).sum(1) for table, part in zip(sample.table, p, strict=True))) for p in (p_0, p_1)]
        means = [*both, *_given_baseline(sample, families.loss, train, both[0])]
        risk = Rows(*(part[:, 1:] for part in p_0))
    mu_0, mu_1, mu_w, mu_xw = means
    settled = _settled(sample, families.loss, train, mu_w, mu_w, np.ones(sample.sizes[0]))
    whole = _settled(sample, families.loss, train, mu_0, mu_xw, ratios.x / ratios.w)
    return Window(train, risk, p_1, mu_0, mu_1, mu_w, settled, whole, pair)


def _expected(sample: Sample, family: Family, train: Train, loss: Rows) -> list[Rows]:
    """mu_0, mu_1, mu_w and mu_xw of a loss."""
    everything = np.arange(sample.features.source.shape[1])
    mu_0, mu_1 = (regress(sample, family, side, train, everything, loss[side]) for side in (0, 1))
    return [mu_0, mu_1, *_given_baseline(sample, family, train, mu_0)]


def _given_baseline(sample: Sample, family: Family, train: Train, mu_0: Rows) -> list[Rows]:
    """mu_w and mu_xw."""
    return [regress(sample, family, side, train, sample.baseline, mu_0[side]) for side in (0, 1)]


def _settled(sample: Sample, family: Family, train: Train, mu: Rows, mu_w: Rows, ratio: Floats) -> Rows:
    r"""The mean of a regression over the target given the baseline, rid of what both regressions missed.

    What a regression misses, for its penalty or its form, would be squared in a value. The mean over the target misses
    :math:`E_1[\mu - \mu_w \mid w]` and the regression itself :math:`E_0[(\ell - \mu)\,\pi_s/\pi_w \mid w]`, both again
    regressions. What is left is a product of the errors of the regression and of the density ratio,
    as it is for the influence values.

    Args:
        sample: The data.
        family: Learner.
        train: Rows to learn from.
        mu: Regression of the loss in the source.
        mu_w: Its mean given the baseline.
        ratio: Density ratio of the further features given the baseline, at the source rows.

    Reference:
        Kennedy (2023), "Towards optimal doubly robust estimation of heterogeneous causal effects", arXiv 2004.14497.
    """
    parts = [mu_w, regress(sample, family, 0, train, sample.baseline, (sample.loss.source - mu.source) * ratio)]
    if mu is not mu_w:
        parts.append(regress(sample, family, 1, train, sample.baseline, mu.target - mu_w.target))
    return Rows(*(np.sum(sides, axis=0) for sides in zip(*parts, strict=True)))


def expectation_piece(sample: Sample, shared: Shared) -> list[Rows]:
    """Influence values of the four expected losses; and of those of each of two models that are compared."""
    fits = shared.windows
    losses = [sample.loss, *(sample.pair or ())]
    known = [[(fit.mu_0, fit.mu_w) for fit in fits]]
    known += [[fit.pair[model] for fit in fits] for model in range(len(losses) - 1)]
    found = []
    for loss, parts in zip(losses, known, strict=True):
        mu_0, mu_w = (shared.twin(part).mean for part in zip(*parts, strict=True))
        found.append(expectation_rows(loss, mu_0, mu_w, *shared.ratios))
    return found


def covariate_piece(sample: Sample, families: Families, shared: Shared, member: Member) -> Piece:
    """Numerator of v_Z for a subset of players; the denominator for the empty one."""
    fits = shared.windows
    if member.any():
        columns = sample.columns(member)
        fitted = [regress(sample, families.loss, 0, fit.train, columns, fit.mu_0.source) for fit in fits]
        ratio_s = fit_ratio(sample, families.density, shared.folds, columns)
        mean_s = []
        for fit, mu_s in zip(fits, fitted, strict=True):
            mu_sw = regress(sample, families.loss, 1, fit.train, sample.baseline, mu_s.target)
            mean_s.append(_settled(sample, families.loss, fit.train, mu_s, mu_sw, ratio_s / shared.ratios.w))
    else:
        fitted, mean_s = [fit.mu_w for fit in fits], [fit.settled_w for fit in fits]
        ratio_s = shared.ratios.w
    source, mean_sw = shared.twin(fitted), shared.twin(mean_s)
    mu_0, mu_xw = (shared.twin([getattr(fit, name) for fit in fits]) for name in ("mu_0", "settled_xw"))
    rows = covariate_rows(sample.loss, source.mean, mean_sw.mean, ratio_s, mu_0.mean, mu_xw.mean, shared.ratios.x)
    first, second = (mean_sw[half].target - mu_xw[half].target for half in (0, 1))
    return without_noise(sample, rows, (first + second) / 2, split_noise(first, second))


def denominator_piece(sample: Sample, shared: Shared) -> Piece:
    """Denominator of v_Y."""
    mu_0, mu_1 = (shared.twin([getattr(fit, name) for fit in shared.windows]) for name in ("mu_0", "mu_1"))
    rows = outcome_denominator_rows(sample.loss, mu_0.mean, mu_1.mean, shared.ratios.x)
    first, second = (mu_1[half].target - mu_0[half].target for half in (0, 1))
    return without_noise(sample, rows, (first + second) / 2, split_noise(first, second))


def without_noise(sample: Sample, rows: Rows, left: Floats, noise: Floats) -> Piece:
    """A piece whose rows are rid of the variance of estimates.

    Args:
        sample: The data.
        rows: Influence values.
        left: The function whose mean square is meant, at the target rows.
        noise: What to add at the target rows.
    """
    known = float(np.average(noise, weights=sample.weights(1, slice(None))))
    return Piece(Rows(rows.source, rows.target + noise), left**2, known)
