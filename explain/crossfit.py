"""Cross-fitting: nuisances on the training rows of a fold, influence values at its held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from explain.data import Codes, Sample
from explain.functional.aggregate import expectation_rows
from explain.functional.bins import Bins, probability_bins, quantile_bins
from explain.functional.density import density_ratio
from explain.functional.rows import Floats, Rows
from explain.functional.values import (
    covariate_rows,
    loss_level_rows,
    outcome_denominator_rows,
    outcome_rows,
    risk_coefficient,
    risk_rows,
)
from explain.nuisances import Families, Family

Member = NDArray[np.bool_]


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
        ratio_x: Density ratio of all features at the held-out source rows.
        ratio_w: Density ratio of the baseline there.
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
        noisy: Estimated functions at all target rows whose own variance the mean misses, shape (m, n_1).
        signs: Whether it is to be added, 1, or was counted, -1, for each of them: a one-step mean square misses the
            variance of the function that is squared; a difference of two held-out squared errors has counted that of
            the first regression and misses that of the second.
    """

    rows: Rows
    plug_in: Floats
    noisy: Floats
    signs: tuple[int, ...] = (1,)


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
    return Fold(
        train=train,
        test=test,
        risk=risk,
        p_1=p_1,
        mu_0=mu_0,
        mu_1=mu_1,
        mu_w=mu_w,
        mu_xw=mu_xw,
        ratio_x=_ratio(sample, families.density, train, test, everything),
        ratio_w=_ratio(sample, families.density, train, test, sample.baseline),
        pair=pair,
    )


def _expected(sample: Sample, family: Family, train: tuple[Codes, Codes], loss: Rows) -> list[Rows]:
    """mu_0, mu_1, mu_w and mu_xw of a loss."""
    everything = np.arange(sample.features.source.shape[1])
    mu_0, mu_1 = (_regress(sample, family, side, train, everything, loss[side]) for side in (0, 1))
    return [mu_0, mu_1, *_given_baseline(sample, family, train, mu_0)]


def _given_baseline(sample: Sample, family: Family, train: tuple[Codes, Codes], mu_0: Rows) -> list[Rows]:
    """mu_w and mu_xw."""
    return [_regress(sample, family, side, train, sample.baseline, mu_0[side]) for side in (0, 1)]


def domain_probability(sample: Sample, family: Family, folds: tuple[Codes, Codes]) -> Rows:
    """P(target | all features) at every row, held out."""
    found = Rows(*(np.empty(size) for size in sample.sizes))
    for train, test in splits(folds):
        target = _tell_apart(sample, family, train, np.arange(sample.features.source.shape[1]))
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
    return expectation_rows(
        fold.held_out(sample.loss), fold.held_out(fold.mu_0), fold.held_out(fold.mu_w), fold.ratio_x, fold.ratio_w
    )


def expectation_pair(sample: Sample, fold: Fold) -> list[Rows]:
    """The same for each of two models whose difference is explained; none where there is one model."""
    held, losses = fold.held_out, sample.pair or ()
    return [
        expectation_rows(held(loss), held(mu_0), held(mu_w), fold.ratio_x, fold.ratio_w)
        for loss, (mu_0, mu_w) in zip(losses, fold.pair, strict=True)
    ]


def covariate_piece(sample: Sample, families: Families, fold: Fold, member: Member) -> Piece:
    """Numerator of v_Z for a subset of players; the denominator for the empty one."""
    if member.any():
        columns = sample.columns(member)
        mu_s = _regress(sample, families.loss, 0, fold.train, columns, fold.mu_0.source)
        mu_sw = _regress(sample, families.loss, 1, fold.train, sample.baseline, mu_s.target)
        ratio_s = _ratio(sample, families.density, fold.train, fold.test, columns)
    else:
        mu_s, mu_sw, ratio_s = fold.mu_w, fold.mu_w, fold.ratio_w
    held = fold.held_out
    rows = covariate_rows(
        held(sample.loss), held(mu_s), held(mu_sw), ratio_s, held(fold.mu_0), held(fold.mu_xw), fold.ratio_x
    )
    left = mu_sw.target - fold.mu_xw.target
    return Piece(rows, left[fold.test[1]] ** 2, left[None])


def denominator_piece(sample: Sample, fold: Fold) -> Piece:
    """Denominator of v_Y."""
    held = fold.held_out
    rows = outcome_denominator_rows(held(sample.loss), held(fold.mu_0), held(fold.mu_1), fold.ratio_x)
    shift = fold.mu_1.target - fold.mu_0.target
    return Piece(rows, shift[fold.test[1]] ** 2, shift[None])


def outcome_piece(sample: Sample, families: Families, fold: Fold, member: Member, n_bins: int) -> Piece:
    """Numerator of v_Y for a subset of players."""
    columns = sample.columns(member)
    bins = _bins(sample, fold, n_bins)
    width = fold.risk.target.shape[1]
    categorical = np.concatenate([sample.categorical[columns], np.zeros(width, dtype=bool)])

    def given(domain: int, rows: Codes | slice, shifted: int = 0, by: int = 0) -> Floats:
        """A = (w, z_s, binned source risk), with one of the risks moved by some bins."""
        risk = fold.risk[domain][rows]
        parts = [bins(risk[:, k], by if k == shifted else 0) for k in range(width)]
        return np.column_stack([sample.features[domain][rows][:, columns], *parts])

    seen, (test_0, test_1) = fold.train[1], fold.test
    weight, held = sample.weights(1, seen), sample.weights(0, test_0)
    if sample.table is None or sample.labels is None or fold.p_1 is None:
        model = families.loss.fit_regressor(given(1, seen), sample.loss.target[seen], categorical, weight)
        mu_s = model.predict(given(1, slice(None)))
        left = fold.mu_1.target - mu_s
        target = loss_level_rows(sample.loss.target[test_1], fold.mu_1.target[test_1], mu_s[test_1])
        slope = _slope(bins, fold, model.predict, given, 0)
        coefficient = -2 * (fold.mu_1.source[test_0] - model.predict(given(0, test_0))) * slope
        source = risk_rows(fold.ratio_x, coefficient, (sample.loss.source - fold.mu_0.source)[test_0], held)
        return Piece(Rows(source, target), left[test_1] ** 2, *_noise(families.loss, fold.mu_1.target, mu_s, width))

    labels, table = sample.labels, sample.table
    model = families.outcome.fit_classifier(given(1, seen), labels[1][seen], categorical, weight)

    def chances(A: Floats) -> Floats:
        return model.chances(A, width + 1)

    p_s = chances(given(1, slice(None)))
    mu_s = (table.target * p_s).sum(1)
    left = fold.mu_1.target - mu_s
    gains = None
    if not _constant_difference(table):
        outcomes = left[:, None] * (table.target[:, 1:] - table.target[:, :1])
        gains = _several(families.loss, given(1, seen), outcomes[seen], categorical, weight)
    gain = None if gains is None else gains(given(1, test_1))
    target = outcome_rows(table.target[test_1], labels[1][test_1], fold.mu_1.target[test_1], p_s[test_1], gain)

    at_source = chances(given(0, test_0))
    gain = None if gains is None else gains(given(0, test_0))
    source = np.zeros(len(test_0))
    for k in range(width):
        coefficient = risk_coefficient(
            table.source[test_0],
            fold.mu_1.source[test_0],
            fold.p_1.source[test_0],
            at_source,
            _slope(bins, fold, chances, given, k),
            gain,
            None if gains is None else _slope(bins, fold, gains, given, k),
        )
        residual = (labels[0][test_0] == k + 1) - fold.risk.source[test_0, k]
        source += risk_rows(fold.ratio_x, coefficient, residual, held)
    return Piece(Rows(source, target), left[test_1] ** 2, *_noise(families.outcome, fold.mu_1.target, mu_s, width))


def _noise(family: Family, mu_1: Floats, mu_s: Floats, risks: int) -> tuple[Floats, tuple[int, ...]]:
    """Noisy functions of a numerator of v_Y and their signs, where the variance of the family can be told at all.

    With more than two labels the regressions on several source risks vary so much that the correction adds more noise
    than it takes bias away.
    """
    if not family.smooth or risks > 1:
        return np.empty((0, len(mu_1))), ()
    return np.stack([mu_1, mu_s]), (1, -1)


def _several(
    family: Family, X: Floats, outcomes: Floats, categorical: Member, weight: Floats | None
) -> Callable[[Floats], Floats]:
    """Regressions of C - 1 outcomes; the prediction has C columns, the first of them 0."""
    models = [family.fit_regressor(X, outcome, categorical, weight) for outcome in outcomes.T]
    return lambda rows: np.column_stack([np.zeros(len(rows)), *(model.predict(rows) for model in models)])


def _bins(sample: Sample, fold: Fold, n_bins: int) -> Bins:
    if sample.table is None:
        rows = fold.train[1]
        return quantile_bins(fold.risk.target[rows, 0], n_bins, sample.weights(1, rows))
    return probability_bins(n_bins)


def _slope(bins: Bins, fold: Fold, predict: Any, given: Any, k: int) -> Floats:
    """Derivative of a prediction by the k-th source risk, at the held-out source rows."""
    rows = fold.test[0]
    return bins.slope(fold.risk.source[rows, k], predict(given(0, rows, k, -1)), predict(given(0, rows, k, 1)))


def _constant_difference(table: Rows) -> bool:
    """Whether two labels differ in loss by the same amount everywhere, as for the 0-1 loss: then g is constant."""
    if table.target.shape[1] != 2:
        return False
    squares = (table.target[:, 1] - table.target[:, 0]) ** 2
    return bool(np.ptp(squares) < 1e-12)


def _regress(
    sample: Sample, family: Family, domain: int, train: tuple[Codes, Codes], columns: Codes, outcome: Floats
) -> Rows:
    """Regression of an outcome on columns over the training rows of a domain, predicted at every row of both."""
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


def _ratio(
    sample: Sample, family: Family, train: tuple[Codes, Codes], test: tuple[Codes, Codes], columns: Codes
) -> Floats:
    """Density ratio of columns at the held-out source rows."""
    target = _tell_apart(sample, family, train, columns)
    return density_ratio(target(0, test[0]), sample.mass(train), sample.weights(0, test[0]))
