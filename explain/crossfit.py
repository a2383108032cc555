"""Cross-fitting in windows: every row is predicted by two fits that share no row with it nor with each other.

The rows are dealt to an odd number of folds K. A window is (K - 1) / 2 folds in a ring, and every nuisance is fitted once
on every window. For the rows of one fold the other folds are exactly two windows; nuisances are the mean of the two
fits. As the two are independent, their difference tells the variance of the mean without any assumption on the learner,
and the products of two fits in place of a square are free of it, see :func:`~explain.functional.values.split_noise`.
Density ratios are fitted on all rows outside of the fold: nothing squares them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    split_noise,
)
from explain.nuisances import Families, Family

Member = NDArray[np.bool_]
Train = tuple[Codes, Codes]


class Twin(NamedTuple):
    """What the two windows of every row say, held out.

    Attributes:
        first: Predictions of one window, at the rows of both domains.
        second: Of the other.
    """

    first: Rows
    second: Rows

    @property
    def mean(self) -> Rows:
        """The mean of the two."""
        return Rows(*((a + b) / 2 for a, b in zip(self.first, self.second, strict=True)))


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
        return _twin(self.folds, parts)


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


def windows(folds: Train) -> list[Train]:
    """Rows of both domains in every window.

    Args:
        folds: Fold of every row, K of them, an odd number of at least 3.
    """
    count = 1 + int(folds[0].max())
    return [(_inside(folds[0], start, count), _inside(folds[1], start, count)) for start in range(count)]


def _inside(fold: Codes, start: int, count: int) -> Codes:
    return np.flatnonzero((fold - start) % count < count // 2)


def twin_of(fold: Codes, parts: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Predictions of the two windows that do not hold a row, for every row.

    Args:
        fold: Fold of every row, shape (n,).
        parts: Predictions of every window, each of shape (n, ...).
    """
    stack, rows, count = np.stack(parts), np.arange(len(fold)), len(parts)
    return stack[(fold + 1) % count, rows], stack[(fold + 1 + count // 2) % count, rows]


def _twin(folds: Train, parts: Sequence[Rows]) -> Twin:
    source = twin_of(folds[0], [part.source for part in parts])
    target = twin_of(folds[1], [part.target for part in parts])
    return Twin(Rows(source[0], target[0]), Rows(source[1], target[1]))


def fit_window(sample: Sample, families: Families, ratios: Ratios, train: Train) -> Window:
    """Fit the nuisances that do not depend on a subset."""
    p_1: Rows | None = None
    pair: tuple[tuple[Rows, Rows], ...] = ()
    if sample.table is None or sample.labels is None:
        if sample.pair is None:
            means = _expected(sample, families.loss, train, sample.loss)
        else:
            first, second = (_expected(sample, families.loss, train, loss) for loss in sample.pair)
            means = [Rows(b.source - a.source, b.target - a.target) for a, b in zip(first, second, strict=True)]
            pair = (first[0], first[2]), (second[0], second[2])
        risk = Rows(*(part[:, None] for part in means[0]))
    else:
        p_0, p_1 = (_classify(sample, families.outcome, side, train, sample.labels[side]) for side in (0, 1))
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
    mu_0, mu_1 = (_regress(sample, family, side, train, everything, loss[side]) for side in (0, 1))
    return [mu_0, mu_1, *_given_baseline(sample, family, train, mu_0)]


def _given_baseline(sample: Sample, family: Family, train: Train, mu_0: Rows) -> list[Rows]:
    """mu_w and mu_xw."""
    return [_regress(sample, family, side, train, sample.baseline, mu_0[side]) for side in (0, 1)]


def _settled(sample: Sample, family: Family, train: Train, mu: Rows, mu_w: Rows, ratio: Floats) -> Rows:
    r"""The mean of a regression over the target given the baseline, corrected by the source rows.

    What a regression misses would be squared in a value. Its mean given the baseline is
    :math:`E_0[(\ell - \mu)\,\pi_s/\pi_w \mid w]`, once more a regression; what is left is a product of the errors of
    the regression and of the density ratio, as it is for the influence values.

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
    missed = _regress(sample, family, 0, train, sample.baseline, (sample.loss.source - mu.source) * ratio)
    return Rows(mu_w.source + missed.source, mu_w.target + missed.target)


def domain_probability(sample: Sample, family: Family, folds: Train) -> Rows:
    """P(target | all features) at every row, held out."""
    found = Rows(*(np.empty(size) for size in sample.sizes))
    for train, test in splits(folds):
        target = _tell_apart(sample, family, train, np.arange(sample.features.source.shape[1]))
        for side in (0, 1):
            found[side][test[side]] = target(side, test[side])
    return found


def splits(folds: Train) -> list[tuple[Train, Train]]:
    """Training and held-out rows of both domains, fold by fold."""
    source, target = folds
    return [
        (
            (np.flatnonzero(source != k), np.flatnonzero(target != k)),
            (np.flatnonzero(source == k), np.flatnonzero(target == k)),
        )
        for k in range(1 + int(source.max()))
    ]


def fit_ratio(sample: Sample, family: Family, folds: Train, columns: Codes) -> Floats:
    """Density ratio of columns at every source row, held out."""
    found = np.empty(sample.sizes[0])
    for train, (test, _) in splits(folds):
        target = _tell_apart(sample, family, train, columns)
        found[test] = density_ratio(target(0, test), sample.mass(train), sample.weights(0, test))
    return found


def expectation_piece(sample: Sample, shared: Shared) -> list[Rows]:
    """Influence values of the four expected losses, and of those of each of two models whose difference is explained."""
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
        fitted = [_regress(sample, families.loss, 0, fit.train, columns, fit.mu_0.source) for fit in fits]
        ratio_s = fit_ratio(sample, families.density, shared.folds, columns)
        mean_s = []
        for fit, mu_s in zip(fits, fitted, strict=True):
            mu_sw = _regress(sample, families.loss, 1, fit.train, sample.baseline, mu_s.target)
            mean_s.append(_settled(sample, families.loss, fit.train, mu_s, mu_sw, ratio_s / shared.ratios.w))
    else:
        fitted, mean_s = [fit.mu_w for fit in fits], [fit.settled_w for fit in fits]
        ratio_s = shared.ratios.w
    mu_s, mean_sw = shared.twin(fitted), shared.twin(mean_s)
    mu_0, mu_xw = (shared.twin([getattr(fit, name) for fit in fits]) for name in ("mu_0", "settled_xw"))
    rows = covariate_rows(sample.loss, mu_s.mean, mean_sw.mean, ratio_s, mu_0.mean, mu_xw.mean, shared.ratios.x)
    first, second = (mean_sw[half].target - mu_xw[half].target for half in (0, 1))
    return _without_noise(sample, rows, (first + second) / 2, -split_noise(first, second))


def denominator_piece(sample: Sample, shared: Shared) -> Piece:
    """Denominator of v_Y."""
    mu_0, mu_1 = (shared.twin([getattr(fit, name) for fit in shared.windows]) for name in ("mu_0", "mu_1"))
    rows = outcome_denominator_rows(sample.loss, mu_0.mean, mu_1.mean, shared.ratios.x)
    first, second = (mu_1[half].target - mu_0[half].target for half in (0, 1))
    return _without_noise(sample, rows, (first + second) / 2, split_noise(first, second))


def outcome_piece(sample: Sample, families: Families, shared: Shared, member: Member, n_bins: int) -> Piece:
    """Numerator of v_Y for a subset of players.

    The source risk is that of one window. Given this risk the target is fitted on both windows, so that their products
    are free of the variance of these fits. What an error of the risk does is a curve: its slope at the risk of the one
    window, removed alone, would take out its square twice; the slope at that of the other window, which is
    independent, not at all. The mean of both removes it (the trapezoidal rule).
    """
    columns, fits = sample.columns(member), shared.windows
    beside = [fits[(j + len(fits) // 2) % len(fits)] for j in range(len(fits))]
    same, cross = (
        [_given_risk(sample, families, fit, rows.train[1], columns, n_bins) for fit, rows in zip(fits, of, strict=True)]
        for of in (fits, beside)
    )
    (one, other), (two, _) = (_at_rows(shared.folds, given) for given in (same, cross))
    known = _average(one, two)
    mu_1 = shared.twin([fit.mu_1 for fit in fits])
    if sample.table is None or sample.labels is None:
        p_1 = None
        target = loss_level_rows(sample.loss.target, mu_1.mean.target, known.mu_s.target)
        outcomes = sample.loss.source[:, None]
    else:
        table, labels = sample.table, sample.labels
        p_1 = shared.twin([fit.p_1 for fit in fits if fit.p_1 is not None]).mean.source
        gain = None if known.gain is None else known.gain.target
        target = outcome_rows(table.target, labels[1], mu_1.mean.target, _there(known.p_s).target, gain)
        outcomes = (labels[0][:, None] == np.arange(1, table.source.shape[1])).astype(np.float64)
    risk = twin_of(shared.folds[0], [fit.risk.source for fit in fits])[0]
    weight, source = sample.weights(0, slice(None)), np.zeros(sample.sizes[0])
    for k in range(outcomes.shape[1]):
        near, far = (_coefficient(sample, mu_1.mean.source, p_1, given, k) for given in (known, other))
        source += risk_rows(shared.ratios.x, (near + far) / 2, outcomes[:, k] - risk[:, k], weight)
    noise = split_noise(*(half.target for half in mu_1)) - split_noise(one.mu_s.target, two.mu_s.target)
    return _without_noise(sample, Rows(source, target), mu_1.mean.target - known.mu_s.target, noise)


def _coefficient(sample: Sample, mu_1: Floats, p_1: Floats | None, given: _GivenRisk, k: int) -> Floats:
    """How the numerator answers to the k-th source risk, at the source rows."""
    if sample.table is None or p_1 is None:
        return np.asarray(-2 * (mu_1 - given.mu_s.source) * given.slopes[k])
    gain, gain_slope = (None, None) if given.gain is None else (given.gain.source, given.gain_slopes[k])
    chances = _there(given.p_s).source
    return risk_coefficient(sample.table.source, mu_1, p_1, chances, given.slopes[k], gain, gain_slope)


def _there(rows: Rows | None) -> Rows:
    if rows is None:
        raise ValueError("probabilities of labels are not known where rows have no labels")
    return rows


def _without_noise(sample: Sample, rows: Rows, left: Floats, noise: Floats) -> Piece:
    """A piece whose rows are rid of the variance of estimates.

    Args:
        sample: The data.
        rows: Influence values.
        left: The function whose mean square is meant, at the target rows.
        noise: What to add at the target rows.
    """
    known = float(np.average(noise, weights=sample.weights(1, slice(None))))
    return Piece(Rows(rows.source, rows.target + noise), left**2, known)


class _GivenRisk(NamedTuple):
    """What is expected given A = (w, z_s, binned source risk).

    Attributes:
        mu_s: Expected loss given A, in the target.
        slopes: Derivatives of p_s (or mu_s) by every source risk, at the source rows.
        p_s: Probabilities of the labels given A; None without labels.
        gain: g of :func:`~explain.functional.values.outcome_rows`; None where it is constant.
        gain_slopes: Its derivatives.
    """

    mu_s: Rows
    slopes: list[Floats]
    p_s: Rows | None = None
    gain: Rows | None = None
    gain_slopes: Sequence[Floats] = ()


def _at_rows(folds: Train, fits: Sequence[_GivenRisk]) -> tuple[_GivenRisk, _GivenRisk]:
    """Fits of windows, brought to the two windows of every row."""

    def rows(parts: Sequence[Rows | None]) -> tuple[Rows | None, Rows | None]:
        known = [part for part in parts if part is not None]
        first, second = _twin(folds, known) if known else (None, None)
        return first, second

    def lists(parts: Sequence[Sequence[Floats]]) -> list[list[Floats]]:
        found = [twin_of(folds[0], several) for several in zip(*parts, strict=True)]
        return [[pair[half] for pair in found] for half in (0, 1)]

    mu_s, p_s = _twin(folds, [fit.mu_s for fit in fits]), rows([fit.p_s for fit in fits])
    gain, slopes = rows([fit.gain for fit in fits]), lists([fit.slopes for fit in fits])
    gain_slopes = lists([fit.gain_slopes for fit in fits])
    first, second = (_GivenRisk(mu_s[h], slopes[h], p_s[h], gain[h], gain_slopes[h]) for h in (0, 1))
    return first, second


def _average(one: _GivenRisk, two: _GivenRisk) -> _GivenRisk:
    """The mean of two fits given the same risk."""

    def mean(a: Rows | None, b: Rows | None) -> Rows | None:
        return None if a is None or b is None else Twin(a, b).mean

    def means(a: Sequence[Floats], b: Sequence[Floats]) -> list[Floats]:
        return [(x + y) / 2 for x, y in zip(a, b, strict=True)]

    return _GivenRisk(
        Twin(one.mu_s, two.mu_s).mean,
        means(one.slopes, two.slopes),
        mean(one.p_s, two.p_s),
        mean(one.gain, two.gain),
        means(one.gain_slopes, two.gain_slopes),
    )


def _given_risk(
    sample: Sample, families: Families, fit: Window, seen: Codes, columns: Codes, n_bins: int
) -> _GivenRisk:
    """Fit what an outcome shift that only a subset knows would be.

    Args:
        sample: The data.
        families: Learners.
        fit: The window whose source risk is known.
        seen: Target rows to learn from.
        columns: Baseline and members.
        n_bins: Bins of the source risk.
    """
    risk = fit.risk
    bins = _bins(sample, risk, n_bins)
    width = risk.target.shape[1]
    categorical = np.concatenate([sample.categorical[columns], np.zeros(width, dtype=bool)])

    def given(domain: int, rows: Codes | slice = slice(None), shifted: int = 0, by: int = 0) -> Floats:
        """A, with one of the risks moved by some bins."""
        parts = [bins(risk[domain][rows, k], by if k == shifted else 0) for k in range(width)]
        return np.column_stack([sample.features[domain][rows][:, columns], *parts])

    def slope(predict: Callable[[Floats], Floats], k: int) -> Floats:
        below, above = (predict(given(0, shifted=k, by=by)) for by in (-1, 1))
        return bins.slope(risk.source[:, k], below, above)

    weight = sample.weights(1, seen)
    if sample.table is None or sample.labels is None:
        regressor = families.loss.fit_regressor(given(1, seen), sample.loss.target[seen], categorical, weight)
        return _GivenRisk(Rows(*(regressor.predict(given(side)) for side in (0, 1))), [slope(regressor.predict, 0)])
    model = families.outcome.fit_classifier(given(1, seen), sample.labels[1][seen], categorical, weight)

    def chances(A: Floats) -> Floats:
        return model.chances(A, width + 1)

    p_s = Rows(*(chances(given(side)) for side in (0, 1)))
    mu_s = Rows(*((table * part).sum(1) for table, part in zip(sample.table, p_s, strict=True)))
    slopes = [slope(chances, k) for k in range(width)]
    table = sample.table.target
    if _constant_difference(table):
        return _GivenRisk(mu_s, slopes, p_s)
    outcomes = (fit.mu_1.target - mu_s.target)[:, None] * (table[:, 1:] - table[:, :1])
    gains = _several(families.loss, given(1, seen), outcomes[seen], categorical, weight)
    gain = Rows(*(gains(given(side)) for side in (0, 1)))
    return _GivenRisk(mu_s, slopes, p_s, gain, [slope(gains, k) for k in range(width)])


def _several(
    family: Family, X: Floats, outcomes: Floats, categorical: Member, weight: Floats | None
) -> Callable[[Floats], Floats]:
    """Regressions of C - 1 outcomes; the prediction has C columns, the first of them 0."""
    models = [family.fit_regressor(X, outcome, categorical, weight) for outcome in outcomes.T]
    return lambda rows: np.column_stack([np.zeros(len(rows)), *(model.predict(rows) for model in models)])


def _bins(sample: Sample, risk: Rows, n_bins: int) -> Bins:
    if sample.table is None:
        return quantile_bins(risk.target[:, 0], n_bins, sample.weights(1, slice(None)))
    return probability_bins(n_bins)


def _constant_difference(table: Floats) -> bool:
    """Whether two labels differ in loss by the same amount everywhere, as for the 0-1 loss: then g is constant."""
    if table.shape[1] != 2:
        return False
    squares = (table[:, 1] - table[:, 0]) ** 2
    return bool(np.ptp(squares) < 1e-12)


def _regress(sample: Sample, family: Family, domain: int, train: Train, columns: Codes, outcome: Floats) -> Rows:
    """Regression of an outcome on columns over the training rows of a domain, predicted at every row of both."""
    X, categorical = sample.features, sample.categorical[columns]
    rows = train[domain]
    weight = sample.weights(domain, rows)
    model = family.fit_regressor(X[domain][rows][:, columns], outcome[rows], categorical, weight)
    return Rows(*(model.predict(part[:, columns]) for part in X))


def _classify(sample: Sample, family: Family, domain: int, train: Train, labels: Codes) -> Rows:
    """Probabilities of the labels given all features, learnt from the training rows of a domain."""
    X, rows = sample.features, train[domain]
    model = family.fit_classifier(X[domain][rows], labels[rows], sample.categorical, sample.weights(domain, rows))
    classes = 2 if sample.table is None else sample.table.source.shape[1]
    return Rows(*(model.chances(part, classes) for part in X))


def _tell_apart(sample: Sample, family: Family, train: Train, columns: Codes) -> Callable[[int, Codes], Floats]:
    """P(target | columns) as a function of a domain and its rows."""
    X = sample.features
    both = np.concatenate([part[rows][:, columns] for part, rows in zip(X, train, strict=True)])
    domain = np.repeat([0, 1], [len(rows) for rows in train])
    weight = None
    if sample.weight is not None:
        weight = np.concatenate([part[rows] for part, rows in zip(sample.weight, train, strict=True)])
    model = family.fit_classifier(both, domain, sample.categorical[columns], weight)
    return lambda domain, rows: model.chances(X[domain][rows][:, columns], 2)[:, 1]
