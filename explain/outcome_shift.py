"""The outcome shift that a subset of players explains, given the source risk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from explain.crossfit import Piece, Shared, Window, without_noise
from explain.data import Codes, Sample
from explain.functional.bins import Bins, probability_bins, quantile_bins
from explain.functional.rows import Floats, Rows
from explain.functional.values import loss_level_rows, outcome_rows, risk_coefficient, risk_rows, split_noise
from explain.nuisances import Families, Family
from explain.windows import Train, Twin, twin, twin_of

Member = NDArray[np.bool_]


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
    return without_noise(sample, Rows(source, target), mu_1.mean.target - known.mu_s.target, noise)


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
        first, second = twin(folds, known) if known else (None, None)
        return first, second

    def lists(parts: Sequence[Sequence[Floats]]) -> list[list[Floats]]:
        found = [twin_of(folds[0], several) for several in zip(*parts, strict=True)]
        return [[pair[half] for pair in found] for half in (0, 1)]

    mu_s, p_s = twin(folds, [fit.mu_s for fit in fits]), rows([fit.p_s for fit in fits])
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
