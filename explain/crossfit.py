"""Cross-fitting: nuisances on the training rows of a fold, influence values at its held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from explain.data import Codes, Sample
from explain.functional.aggregate import expectation_rows, shifted_rows
from explain.functional.density import density_ratio
from explain.functional.rows import Floats, Rows, quantile, quantiles
from explain.functional.values import (
    covariate_rows,
    outcome_denominator_rows,
)
from explain.nuisances import Families, Family

Member = NDArray[np.bool_]
_SETTLED_QUANTILE = 0.95  # of the density ratios that settle a mean, and of what is settled


@dataclass(frozen=True)
class Fold:
    """Nuisances that all subsets share, fitted on the training rows and predicted at every row.

    Attributes:
        train: Training rows of the source and of the target.
        test: Held-out rows.
        risk: What the outcome shift conditions on: the source's probability of every label but the first, shape
            (n, C - 1), or its expected loss, shape (n, 1).
        p_1: Probability of every label in the target, shape (n, C); None without labels.
        mu_0: Expected loss given all features, in the source. Of a difference of two models' losses this and the next
            three are differences of two regressions, so that what is linear in the loss is exactly their difference.
        mu_1: Expected loss given all features, in the target.
        mu_w: Expected loss given the baseline, in the source.
        mu_xw: Mean of mu_0 given the baseline, in the target.
        settled_w: mu_w rid of what the regressions missed, see :func:`_settled`.
        settled_xw: mu_xw, likewise.
        ratio_x: Density ratio of all features at the source rows, with a mean of 1 held out and elsewhere.
        ratio_w: Density ratio of the baseline, likewise.
        pair: mu_0 and mu_w of each of two models whose losses are compared; empty where there is one.
    """

    train: tuple[Codes, Codes]
    test: tuple[Codes, Codes]
    risk: Rows
    p_1: Rows | None
    mu_0: Rows
    mu_1: Rows
    mu_w: Rows
    mu_xw: Rows
    settled_w: Rows
    settled_xw: Rows
    ratio_x: Floats
    ratio_w: Floats
    pair: tuple[tuple[Rows, Rows], ...] = ()

    def held_out(self, rows: Rows) -> Rows:
        """Values at the held-out rows."""
        return Rows(rows.source[self.test[0]], rows.target[self.test[1]])


class Piece(NamedTuple):
    """What one fold contributes to one numerator.

    Attributes:
        rows: Influence values at the held-out rows.
        plug_in: What an uncorrected estimate would average at the held-out target rows.
        noisy: The estimated function at all target rows whose own variance the mean misses, shape (n_1,); None where
            `missed` has it.
        missed: What the mean misses at the held-out target rows; 0 where `noisy` tells it.
    """

    rows: Rows
    plug_in: Floats
    noisy: Floats | None
    missed: Floats


def fit_fold(sample: Sample, families: Families, train: tuple[Codes, Codes], test: tuple[Codes, Codes]) -> Fold:
    """Fit the nuisances that do not depend on a subset."""
    everything = np.arange(sample.features.source.shape[1])
    p_1: Rows | None = None
    pair: tuple[tuple[Rows, Rows], ...] = ()
    if sample.table is None or sample.labels is None:
        if sample.pair is None:
            means = _expected(sample, families.loss, train, sample.loss)
        else:
            first, second = (_expected(sample, families.loss, train, loss) for loss in sample.pair)
            means = [Rows(b.source - a.source, b.target - a.target) for a, b in zip(first, second, strict=True)]
            pair = (first[0], first[2]), (second[0], second[2])
        risk = Rows(means[0].source[:, None], means[0].target[:, None])
    else:
        p_0, p_1 = (_classify(sample, families.outcome, side, train, sample.labels[side]) for side in (0, 1))
        both = [Rows(*((table * part).sum(1) for table, part in zip(sample.table, p, strict=True))) for p in (p_0, p_1)]
        means = [*both, *_given_baseline(sample, families.loss, train, both[0])]
        risk = Rows(p_0.source[:, 1:], p_0.target[:, 1:])
    mu_0, mu_1, mu_w, mu_xw = means
    ratio_x, ratio_w = (ratio(sample, families.density, train, test, of) for of in (everything, sample.baseline))
    return Fold(
        train=train,
        test=test,
        risk=risk,
        p_1=p_1,
        mu_0=mu_0,
        mu_1=mu_1,
        mu_w=mu_w,
        mu_xw=mu_xw,
        settled_w=_settled(sample, families.loss, train, mu_w, mu_w, np.ones(sample.sizes[0])),
        settled_xw=_settled(sample, families.loss, train, mu_0, mu_xw, ratio_x / ratio_w),
        ratio_x=ratio_x,
        ratio_w=ratio_w,
        pair=pair,
    )


def _expected(sample: Sample, family: Family, train: tuple[Codes, Codes], loss: Rows) -> list[Rows]:
    """mu_0, mu_1, mu_w and mu_xw of a loss."""
    everything = np.arange(sample.features.source.shape[1])
    mu_0, mu_1 = (regress(sample, family, side, train, everything, loss[side]) for side in (0, 1))
    return [mu_0, mu_1, *_given_baseline(sample, family, train, mu_0)]


def _given_baseline(sample: Sample, family: Family, train: tuple[Codes, Codes], mu_0: Rows) -> list[Rows]:
    """mu_w and mu_xw."""
    return [regress(sample, family, side, train, sample.baseline, mu_0[side]) for side in (0, 1)]


def _settled(sample: Sample, family: Family, train: tuple[Codes, Codes], mu: Rows, mu_w: Rows, ratio: Floats) -> Rows:
    r"""The mean of a regression over the target given the baseline, rid of what both regressions missed.

    What a regression misses, for its penalty or its form, would be squared in a value. The mean over the target misses
    :math:`E_1[\mu - \mu_w \mid w]` and the regression itself :math:`E_0[(\ell - \mu)\,\pi_s/\pi_w \mid w]`, both again
    regressions, and smooth ones, as most of what they see is noise. What is left is a product of the errors of the
    regression and of the density ratio, as it is for the influence values.

    Args:
        sample: The data.
        family: Learner.
        train: Rows to learn from.
        mu: Regression of the loss in the source.
        mu_w: Its mean given the baseline.
        ratio: Density ratio of the further features given the baseline, at the source rows; cut off at its
            95 % quantile.

    Reference:
        Kennedy (2023), "Towards optimal doubly robust estimation of heterogeneous causal effects", arXiv 2004.14497.
    """
    rows = train[0]
    cap = quantile(ratio[rows], _SETTLED_QUANTILE, sample.weights(0, rows))
    left = (sample.loss.source - mu.source) * np.minimum(ratio, cap)  # a few rows must not carry the regression
    parts = [(0, regress(sample, family.smooth, 0, train, sample.baseline, left))]
    if mu is not mu_w:
        parts.append((1, regress(sample, family.smooth, 1, train, sample.baseline, mu.target - mu_w.target)))
    found = mu_w
    for side, part in parts:  # noise that is extrapolated would be squared: no further than in the middle of the rows
        inside, weight = part[side][train[side]], sample.weights(side, train[side])
        low, high = quantiles(inside, (1 - _SETTLED_QUANTILE, _SETTLED_QUANTILE), weight)
        found = Rows(*(before + np.clip(more, low, high) for before, more in zip(found, part, strict=True)))
    return found


def domain_probability(
    sample: Sample, family: Family, folds: tuple[Codes, Codes], columns: Codes | None = None
) -> Rows:
    """P(target | all features, or some columns of them) at every row, held out."""
    columns = np.arange(sample.features.source.shape[1]) if columns is None else columns
    found = Rows(*(np.empty(size) for size in sample.sizes))
    for train, test in splits(folds):
        target = _tell_apart(sample, family, train, columns)
        for side in (0, 1):
            found[side][test[side]] = target(side, test[side])
    return found


def splits(folds: tuple[Codes, Codes]) -> list[tuple[tuple[Codes, Codes], tuple[Codes, Codes]]]:
    """Training and held-out rows of both domains, fold by fold."""
    source, target = folds
    return [
        (
            (np.flatnonzero(source != k), np.flatnonzero(target != k)),
            (np.flatnonzero(source == k), np.flatnonzero(target == k)),
        )
        for k in range(1 + int(source.max()))
    ]


def expectation_piece(sample: Sample, fold: Fold) -> Rows:
    """Influence values of the four expected losses at the held-out rows."""
    held, rows = fold.held_out, fold.test[0]
    return expectation_rows(held(sample.loss), held(fold.mu_0), held(fold.mu_w), fold.ratio_x[rows], fold.ratio_w[rows])


def expectation_pair(sample: Sample, fold: Fold) -> list[Rows]:
    """The same for each of two models whose difference is explained; none where there is one model."""
    held, losses, rows = fold.held_out, sample.pair or (), fold.test[0]
    return [
        expectation_rows(held(loss), held(mu_0), held(mu_w), fold.ratio_x[rows], fold.ratio_w[rows])
        for loss, (mu_0, mu_w) in zip(losses, fold.pair, strict=True)
    ]


def baseline_piece(sample: Sample, families: Families, fold: Fold, columns: Codes) -> Rows:
    """Influence values at the held-out rows of the expected loss when some baseline columns are the target's.

    Args:
        sample: The data.
        families: Learners.
        fold: What all subsets share.
        columns: Of the baseline; none for the expected loss of the source.
    """
    held, (test_0, test_1) = fold.held_out, fold.test
    if not len(columns):
        return Rows(sample.loss.source[test_0], np.zeros(len(test_1)))
    if len(columns) == len(sample.baseline):
        mu, ratio_s = fold.mu_w, fold.ratio_w
    else:
        mu = regress(sample, families.loss, 0, fold.train, columns, fold.mu_0.source)
        ratio_s = ratio(sample, families.density, fold.train, fold.test, columns)
    return shifted_rows(sample.loss.source[test_0], held(mu), ratio_s[test_0])


def covariate_piece(sample: Sample, families: Families, fold: Fold, member: Member) -> Piece:
    """Numerator of v_Z for a subset of players; the denominator for the empty one."""
    if member.any():
        columns = sample.columns(member)
        mu_s = regress(sample, families.loss, 0, fold.train, columns, fold.mu_0.source)
        mean_s = regress(sample, families.loss, 1, fold.train, sample.baseline, mu_s.target)
        ratio_s = ratio(sample, families.density, fold.train, fold.test, columns)
        mu_sw = _settled(sample, families.loss, fold.train, mu_s, mean_s, ratio_s / fold.ratio_w)
    else:
        mu_s, mu_sw, ratio_s = fold.mu_w, fold.settled_w, fold.ratio_w
    held, (test_0, test_1) = fold.held_out, fold.test
    rows = covariate_rows(
        held(sample.loss),
        held(mu_s),
        held(mu_sw),
        ratio_s[test_0],
        held(fold.mu_0),
        held(fold.settled_xw),
        fold.ratio_x[test_0],
    )
    left = mu_sw.target - fold.settled_xw.target
    return Piece(rows, left[test_1] ** 2, left, np.zeros(len(test_1)))


def denominator_piece(sample: Sample, fold: Fold) -> Piece:
    """Denominator of v_Y."""
    held, (test_0, test_1) = fold.held_out, fold.test
    rows = outcome_denominator_rows(held(sample.loss), held(fold.mu_0), held(fold.mu_1), fold.ratio_x[test_0])
    shift = fold.mu_1.target - fold.mu_0.target
    return Piece(rows, shift[test_1] ** 2, shift, np.zeros(len(test_1)))


def contrasts(folds: Sequence[Fold]) -> list[Floats]:
    r"""For every fold one difference of the others' regressions whose square estimates the variance of a regression.

    With K folds the delete-a-group jackknife estimates the variance of :math:`\hat\mu` by
    :math:`\sum_k (\hat\mu_k - \bar\mu)^2`, which on average is K - 1 times the square of any contrast of norm 1, as
    :math:`(\hat\mu_a - \hat\mu_b) / \sqrt 2`. Different folds have different ones.

    Returns:
        Of the probabilities of the labels in the target, or of the expected loss, at the target rows; shape (n_1, C) or
        (n_1, 1) each.
    """
    known = [fold.mu_1.target[:, None] if fold.p_1 is None else fold.p_1.target for fold in folds]
    count = len(known)
    scale = ((count - 1) / 2) ** 0.5
    return [scale * (known[(k + 1) % count] - known[(k + 2) % count]) for k in range(count)]


def regress(
    sample: Sample, family: Family, domain: int, train: tuple[Codes, Codes], columns: Codes, outcome: Floats
) -> Rows:
    """Regression of an outcome on columns over the training rows of a domain, predicted at every row of both.

    Args:
        sample: The data.
        family: Learner.
        domain: 0 for the source, 1 for the target.
        train: Training rows of both.
        columns: Of the features.
        outcome: What to learn, at every row of the domain.
    """
    X, categorical = sample.features, sample.categorical[columns]
    rows = train[domain]
    weight = sample.weights(domain, rows)
    model = family.fit_regressor(X[domain][rows][:, columns], outcome[rows], categorical, weight)
    return Rows(*(model.predict(part[:, columns]) for part in X))


def _classify(sample: Sample, family: Family, domain: int, train: tuple[Codes, Codes], labels: Codes) -> Rows:
    """Probabilities of the labels given all features, learnt from the training rows of a domain."""
    X, rows = sample.features, train[domain]
    model = family.fit_classifier(X[domain][rows], labels[rows], sample.categorical, sample.weights(domain, rows))
    classes = 2 if sample.table is None else sample.table.source.shape[1]
    return Rows(*(model.chances(part, classes) for part in X))


def _tell_apart(sample: Sample, family: Family, train: tuple[Codes, Codes], columns: Codes) -> Callable[..., Floats]:
    """P(target | columns) as a function of a domain and its rows."""
    X = sample.features
    both = np.concatenate([part[rows][:, columns] for part, rows in zip(X, train, strict=True)])
    domain = np.repeat([0, 1], [len(rows) for rows in train])
    weight = None
    if sample.weight is not None:
        weight = np.concatenate([part[rows] for part, rows in zip(sample.weight, train, strict=True)])
    model = family.fit_classifier(both, domain, sample.categorical[columns], weight)
    return lambda domain, rows: model.chances(X[domain][rows][:, columns], 2)[:, 1]


def ratio(
    sample: Sample, family: Family, train: tuple[Codes, Codes], test: tuple[Codes, Codes], columns: Codes
) -> Floats:
    """Density ratio of columns at the source rows, with a mean of 1 over those held out and over the others.

    Args:
        sample: The data.
        family: Learner.
        train: Training rows of both domains.
        test: Held-out rows.
        columns: Of the features.
    """
    target, found = _tell_apart(sample, family, train, columns), np.empty(sample.sizes[0])
    for rows in (train[0], test[0]):
        found[rows] = density_ratio(target(0, rows), sample.mass(train), sample.weights(0, rows))
    return found
