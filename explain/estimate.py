"""Estimates of one repeat of cross-fitting, and what several repeats say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from explain.crossfit import (
    Fold,
    Piece,
    baseline_piece,
    contrasts,
    covariate_piece,
    denominator_piece,
    expectation_pair,
    expectation_piece,
    fit_fold,
    splits,
)
from explain.data import Codes, Sample
from explain.functional.intervals import Ratios, covariance, critical, fieller, ratio_terms, wald
from explain.functional.metrics import Levels
from explain.functional.rows import Floats, Rows, mean, stack
from explain.functional.values import curvature
from explain.levels import Runs, with_levels
from explain.nuisances import Families, Fitted
from explain.outcome_shift import outcome_piece

Masks = NDArray[np.bool_]


class Mean(NamedTuple):
    """Estimates that are means of influence values, with their covariance."""

    value: Floats
    spread: Floats


class Shares(NamedTuple):
    """Numerators of v(s) for every subset and their denominator, with the covariance of all; and plug-in estimates.

    Attributes:
        numerators: num(s), shape (S,); 0 for the full subset.
        denominator: The denominator.
        spread: Covariance of the numerators and the denominator, shape (S + 1, S + 1).
        plug_in: v(s) without any correction and its naive standard error, shape (S, 2).
    """

    numerators: Floats
    denominator: float
    spread: Floats
    plug_in: Floats


@dataclass(frozen=True)
class Estimate:
    """What one repeat of cross-fitting finds.

    Attributes:
        expectations: Expected losses by domain of the factors.
        covariate: Values of the covariate shift.
        outcome: Values of the outcome shift.
        rows: Influence values of the expected losses, shape (4, n_0) and (4, n_1).
        baseline: Expected losses with subsets of the baseline shifted; None where they are not asked for.
        pair: Expected losses of each of two models whose difference is explained; empty where there is one.
    """

    expectations: Mean
    covariate: Shares
    outcome: Shares
    rows: Rows
    pair: tuple[Mean, ...] = ()
    baseline: Mean | None = None


class Case(NamedTuple):
    """One comparison of two domains.

    Attributes:
        sample: The data.
        families: Learners.
        folds: Fold of every row.
    """

    sample: Sample
    families: Families
    folds: tuple[Codes, Codes]


def estimate(
    cases: Sequence[Case],
    masks: Masks,
    n_bins: int,
    n_jobs: int | None,
    upstream: Masks | None = None,
    *,
    progress: bool = False,
) -> list[Estimate]:
    """Cross-fit all nuisances and average the influence values, of one comparison or of several with one source.

    What several comparisons learn from the same rows is learnt once: fold by fold, and subset by subset.

    Args:
        cases: The comparisons, with equally many folds and the same players.
        masks: Subsets of the players, shape (S, p), the empty and the full one among them.
        n_bins: Bins of the source risk.
        n_jobs: Of joblib; the backend is the caller's choice, as with `joblib.parallel_config("dask")`.
        upstream: Subsets of the baseline columns whose shifts are wanted too, shape (U, q).
        progress: Whether to show on the standard error how many folds and subsets are done.

    Returns:
        One estimate for each comparison.
    """
    partial = np.flatnonzero(~masks.all(1))
    with Parallel(n_jobs=n_jobs, return_as="generator" if progress else "list") as workers:
        parallel = watched(workers, progress=progress)
        scored = [with_levels(*case, parallel) for case in cases]
        cases = [case._replace(sample=sample) for case, (sample, _) in zip(cases, scored, strict=True)]
        parts = [splits(case.folds) for case in cases]
        jobs = [(k, masks[index]) for index in partial for k in range(len(parts[0]))]
        by_fold = parallel([delayed(_fit)(cases, each) for each in zip(*parts, strict=True)], "folds")
        fitted: list[list[Fold]] = [list(folds) for folds in zip(*by_fold, strict=True)]
        apart = [contrasts(folds) for folds in fitted]
        here = [[folds[k] for folds in fitted] for k in range(len(parts[0]))]
        left = parallel([delayed(_covariate)(cases, here[k], mask) for k, mask in jobs], "covariate shift")
        right = parallel(
            [delayed(_outcome)(cases, here[k], mask, [of[k] for of in apart], n_bins) for k, mask in jobs],
            "outcome shift",
        )
        above = [
            parallel([delayed(_baseline)(cases, folds, mask) for folds in here], "baseline")
            for mask in (() if upstream is None else upstream)
        ]
    found = [
        _average(case.sample, masks, fitted[i], [part[i] for part in left], [part[i] for part in right])
        for i, case in enumerate(cases)
    ]
    if upstream is not None:
        for i, case in enumerate(cases):
            tests = [fold.test for fold in fitted[i]]
            rows = stack([_scatter(case.sample, tests, [part[i] for part in parts]) for parts in above])
            found[i] = replace(found[i], baseline=_mean(case.sample, rows))
    return [one if levels is None else _of_metric(one, levels) for one, (_, levels) in zip(found, scored, strict=True)]


def _of_metric(found: Estimate, levels: Levels) -> Estimate:
    """The estimate with the metric itself in the place of the means of the loss whose shifts are shared out."""
    return replace(found, expectations=Mean(levels.value, levels.spread), rows=levels.rows)


def watched(workers: Parallel, *, progress: bool) -> Runs:
    """What runs tasks and, where it is asked to, shows how many are done."""

    def run(tasks: Sequence[object], title: str) -> list[object]:
        if not progress:
            return list(workers(tasks))
        from rich.console import Console
        from rich.progress import track

        return list(track(workers(tasks), title, len(tasks), console=Console(stderr=True)))

    return run


def _learners(cases: Sequence[Case]) -> list[Families]:
    """Learners of the comparisons, which share what they learn where there are several."""
    kept: dict[bytes, Fitted] = {}
    return [case.families if len(cases) == 1 else case.families.keeping(kept) for case in cases]


def _fit(cases: Sequence[Case], parts: Sequence[tuple[tuple[Codes, Codes], tuple[Codes, Codes]]]) -> list[Fold]:
    learners = _learners(cases)
    return [fit_fold(case.sample, of, *part) for case, of, part in zip(cases, learners, parts, strict=True)]


def _covariate(cases: Sequence[Case], folds: Sequence[Fold], mask: NDArray[np.bool_]) -> list[Piece]:
    learners = _learners(cases)
    return [covariate_piece(case.sample, of, fold, mask) for case, of, fold in zip(cases, learners, folds, strict=True)]


def _baseline(cases: Sequence[Case], folds: Sequence[Fold], mask: NDArray[np.bool_]) -> list[Rows]:
    learners = _learners(cases)
    return [
        baseline_piece(case.sample, of, fold, case.sample.baseline[mask])
        for case, of, fold in zip(cases, learners, folds, strict=True)
    ]


def _outcome(
    cases: Sequence[Case], folds: Sequence[Fold], mask: NDArray[np.bool_], apart: Sequence[Floats], n_bins: int
) -> list[Piece]:
    parts = zip(cases, _learners(cases), folds, apart, strict=True)
    return [outcome_piece(case.sample, of, fold, mask, contrast, n_bins) for case, of, fold, contrast in parts]


def _average(
    sample: Sample, masks: Masks, fitted: Sequence[Fold], left: Sequence[Piece], right: Sequence[Piece]
) -> Estimate:
    """Averages of the influence values of all folds."""
    tests, count = [fold.test for fold in fitted], len(fitted)
    partial = np.flatnonzero(~masks.all(1))
    covariate = [_join(sample, tests, left[i : i + count]) for i in range(0, len(left), count)]
    outcome = [_join(sample, tests, right[i : i + count]) for i in range(0, len(right), count)]
    empty = int(np.flatnonzero(~masks[partial].any(1))[0])
    denominator = _join(sample, tests, [denominator_piece(sample, fold) for fold in fitted])
    pieces = [expectation_piece(sample, fold) for fold in fitted]
    pairs = [expectation_pair(sample, fold) for fold in fitted]
    rows = _scatter(sample, tests, pieces)
    return Estimate(
        _mean(sample, rows),
        _shares(sample, masks, covariate, covariate[empty]),
        _shares(sample, masks, outcome, denominator),
        rows,
        tuple(_mean(sample, _scatter(sample, tests, parts)) for parts in zip(*pairs, strict=True)),
    )


def _mean(sample: Sample, rows: Rows) -> Mean:
    return Mean(mean(rows, sample.share), covariance(rows, sample.clusters, sample.share))


class _Joined(NamedTuple):
    rows: Rows
    plug_in: Floats
    missed: float


def _join(sample: Sample, tests: Sequence[tuple[Codes, Codes]], pieces: Sequence[Piece]) -> _Joined:
    plug_in, missed = np.empty(sample.sizes[1]), np.empty(sample.sizes[1])
    for test, piece in zip(tests, pieces, strict=True):
        plug_in[test[1]], missed[test[1]] = piece.plug_in, piece.missed
    noisy = [piece.noisy for piece in pieces if piece.noisy is not None]
    weight = sample.weights(1, slice(None))
    known = float(np.average(missed, weights=weight)) + (curvature(np.stack(noisy), weight) if noisy else 0.0)
    return _Joined(_scatter(sample, tests, [piece.rows for piece in pieces]), plug_in, known)


def _scatter(sample: Sample, tests: Sequence[tuple[Codes, Codes]], parts: Sequence[Rows]) -> Rows:
    """Values at the held-out rows of every fold, put back in the order of the rows."""
    whole = Rows(*(np.empty((*part.shape[:-1], size)) for part, size in zip(parts[0], sample.sizes, strict=True)))
    for test, part in zip(tests, parts, strict=True):
        for domain in (0, 1):
            whole[domain][..., test[domain]] = part[domain]
    return whole


def _shares(sample: Sample, masks: Masks, joined: Sequence[_Joined], denominator: _Joined) -> Shares:
    parts = [*joined, denominator]
    rows = stack([part.rows for part in parts])
    value = mean(rows, sample.share) + np.array([part.missed for part in parts])
    spread = covariance(rows, sample.clusters, sample.share)
    # What was corrected for is known no better than its size: second-order, but near 1 it is all that is left.
    spread[np.diag_indices(len(joined))] += np.array([part.missed for part in joined]) ** 2
    plug_in = np.stack([part.plug_in for part in parts])
    return make_shares(masks, value, spread, plug_in, sample, 1)


def make_shares(masks: Masks, value: Floats, spread: Floats, plug_in: Floats, sample: Sample, domain: int) -> Shares:
    """Numerators and denominator by subset, with 0 for the full one.

    Args:
        masks: Subsets, shape (S, p).
        value: Numerators of all subsets but the full one, in their order, then the denominator, shape (S,).
        spread: Their covariance, shape (S, S).
        plug_in: What uncorrected estimates of them average, shape (S, n).
        sample: The data.
        domain: Whose rows are averaged.
    """
    inside = np.append(~masks.all(1), True)
    numerators, whole = np.zeros(len(inside)), np.zeros((len(inside), len(inside)))
    numerators[inside] = value
    whole[np.ix_(inside, inside)] = spread
    naive = np.tile([1.0, 0.0], (len(masks), 1))
    weight = sample.weight_of(domain)
    clusters = None if sample.clusters is None else [sample.clusters[domain]]
    means = np.average(plug_in, axis=1, weights=weight)
    below = float(means[-1])
    if below > 0:
        ratio = means[:-1] / below
        left = plug_in[:-1] - ratio[:, None] * plug_in[-1]
        error = np.array([covariance([row[None]], clusters, [weight])[0, 0] ** 0.5 for row in left]) / below
        naive[~masks.all(1)] = np.stack([1 - ratio, error], axis=1)
    return Shares(numerators[:-1], float(numerators[-1]), whole, naive)


class Terms(NamedTuple):
    """Estimates over all repeats.

    Attributes:
        value: Shape (k,).
        variance: Shape (k,).
        low: Lower ends.
        high: Upper ends.
    """

    value: Floats
    variance: Floats
    low: Floats
    high: Floats


def combine_means(repeats: Sequence[Mean], maps: Floats, level: float, freedom: float) -> Terms:
    """Linear combinations of the medians over repeats; the variance is the median of variance plus squared deviation.

    Reference:
        Chernozhukov et al. (2018), "Double/debiased machine learning", arXiv 1608.00060, definition 3.3.
    """
    value = maps @ np.median([repeat.value for repeat in repeats], axis=0)
    variances = [np.diag(maps @ repeat.spread @ maps.T) + (maps @ repeat.value - value) ** 2 for repeat in repeats]
    variance = np.median(variances, axis=0)
    return Terms(value, variance, *wald(value, variance, level, freedom))


def combine_shares(
    repeats: Sequence[Shares],
    maps: Floats,
    level: float,
    interval: str,
    freedom: float,
    sampling: Floats | None = None,
) -> Terms:
    """The same for values of subsets and their linear combinations, which are ratios.

    Args:
        repeats: One for each repeat.
        maps: Combinations of the values, shape (k, S).
        level: Of the intervals.
        interval: "wald" or "fieller"; of the latter, ends are medians over the repeats.
        freedom: Degrees of freedom of the standard errors.
        sampling: Variance to add because subsets were sampled, shape (k,).
    """
    values = [1 - repeat.numerators / repeat.denominator for repeat in repeats]
    value = maps @ np.median(values, axis=0)
    ratios: list[Ratios] = [
        ratio_terms(maps, repeat.numerators, repeat.denominator, repeat.spread) for repeat in repeats
    ]
    extra = np.zeros(len(maps)) if sampling is None else sampling
    variance = np.median([ratio.variance + (ratio.value - value) ** 2 for ratio in ratios], axis=0) + extra
    if interval == "wald":
        return Terms(value, variance, *wald(value, variance, level, freedom))
    low, high = np.median([fieller(ratio, level, freedom) for ratio in ratios], axis=0)
    widen = critical(level, freedom) ** 2 * extra
    return Terms(value, variance, value - np.hypot(value - low, widen**0.5), value + np.hypot(high - value, widen**0.5))
