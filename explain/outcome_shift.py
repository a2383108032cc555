"""The outcome shift that a subset of players explains, given the source risk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from explain.crossfit import Fold, Member, Piece
from explain.data import Codes, Sample
from explain.functional.bins import Bins, probability_bins, quantile_bins
from explain.functional.rows import Floats, Rows
from explain.functional.values import loss_level_rows, outcome_rows, risk_coefficient, risk_rows
from explain.nuisances import Families, Family

Predict = Callable[[Floats], Floats]


def outcome_piece(
    sample: Sample, families: Families, fold: Fold, member: Member, contrast: Floats, n_bins: int
) -> Piece:
    r"""Numerator of v_Y for a subset of players.

    What the subset knows, :math:`p_s = E_1[p_1(X) \mid A]` with A = (w, z_s, binned source risk), is a regression of
    :math:`\hat p_1` and not of the labels: it hardly has noise, so that it can bend as the risk makes it bend, and the
    part of the error of :math:`\hat p_1` that A knows is in both and cancels. The mean misses the variance of the rest,
    :math:`E_1[(\hat e - E[\hat e \mid A])^2]`, with contrasts of folds in the place of the error :math:`\hat e`.

    Args:
        sample: The data.
        families: Learners.
        fold: What all subsets share.
        member: The subset.
        contrast: Of :func:`~explain.crossfit.contrasts`, for this fold.
        n_bins: Bins of the source risk.
    """
    known = _Known(sample, fold, sample.columns(member), _bins(sample, fold, n_bins))
    return _of_loss(known, families, contrast) if fold.p_1 is None else _of_labels(known, families, fold.p_1, contrast)


@dataclass(frozen=True)
class _Known:
    """A = (w, z_s, binned source risk) of a fold."""

    sample: Sample
    fold: Fold
    columns: Codes
    bins: Bins

    @property
    def risks(self) -> int:
        return int(self.fold.risk.target.shape[1])

    def at(self, domain: int, rows: Codes, shifted: int = 0, by: int = 0) -> Floats:
        """A at some rows, with one of the risks moved by some bins."""
        risk = self.fold.risk[domain][rows]
        parts = [self.bins(risk[:, k], by if k == shifted else 0) for k in range(self.risks)]
        return np.column_stack([self.sample.features[domain][rows][:, self.columns], *parts])

    def learn(self, family: Family, outcomes: Floats) -> Predict:
        """Regressions of outcomes of the training rows of the target, shape (n, k), on A."""
        rows = self.fold.train[1]
        X, weight = self.at(1, rows), self.sample.weights(1, rows)
        categorical = np.concatenate([self.sample.categorical[self.columns], np.zeros(self.risks, dtype=bool)])
        if family.joint:
            return family.fit_regressor(X, outcomes, categorical, weight, self.risks).predict
        models = [family.fit_regressor(X, outcome, categorical, weight, self.risks) for outcome in outcomes.T]
        return lambda A: np.column_stack([model.predict(A) for model in models])

    def learn_with(self, family: Family, outcomes: Floats, contrast: Floats) -> tuple[Predict, Predict]:
        """Regressions of outcomes, and the smoother family's of a contrast; together where one learns them at once."""
        if family.joint and family.smooth is family:
            both, count = self.learn(family, np.hstack([outcomes, contrast])), outcomes.shape[1]
            return lambda A: both(A)[:, :count], lambda A: both(A)[:, count:]
        return self.learn(family, outcomes), self.learn(family.smooth, contrast)

    def slope(self, predict: Predict, k: int) -> Floats:
        """Derivative of a prediction by the k-th source risk, at the held-out source rows."""
        rows = self.fold.test[0]
        below, above = (predict(self.at(0, rows, k, by)) for by in (-1, 1))
        return self.bins.slope(self.fold.risk.source[rows, k], below, above)


def _of_loss(known: _Known, families: Families, contrast: Floats) -> Piece:
    """Where rows have one loss each."""
    sample, fold, family = known.sample, known.fold, families.loss
    seen, (test_0, test_1) = fold.train[1], fold.test
    mean_s, noise = known.learn_with(family, fold.mu_1.target[seen, None], contrast[seen])
    there = known.at(1, test_1)
    mu_s, mu_1 = mean_s(there)[:, 0], fold.mu_1.target[test_1]
    coefficient = -2 * (fold.mu_1.source[test_0] - mean_s(known.at(0, test_0))[:, 0]) * known.slope(mean_s, 0)[:, 0]
    residual = (sample.loss.source - fold.mu_0.source)[test_0]
    source = risk_rows(fold.ratio_x[test_0], coefficient, residual, sample.weights(0, test_0))
    target = loss_level_rows(sample.loss.target[test_1], mu_1, mu_s)
    return Piece(Rows(source, target), (mu_1 - mu_s) ** 2, None, (contrast[test_1] - noise(there))[:, 0] ** 2)


def _of_labels(known: _Known, families: Families, p_1: Rows, contrast: Floats) -> Piece:
    """Where every label has a probability."""
    sample, fold, family = known.sample, known.fold, families.outcome
    seen, (test_0, test_1) = fold.train[1], fold.test
    if sample.table is None or sample.labels is None:
        raise ValueError("probabilities of labels are not known where rows have no labels")
    table, labels = sample.table, sample.labels
    others, noise = known.learn_with(family, p_1.target[seen, 1:], contrast[seen, 1:])

    def chances(A: Floats) -> Floats:
        return _with_first(others(A))

    gains: Predict | None = None
    if not _constant_difference(table):
        left = (table.target[seen] * (p_1.target[seen] - chances(known.at(1, seen)))).sum(1)
        gained = known.learn(families.loss, left[:, None] * (table.target[seen, 1:] - table.target[seen, :1]))

        def gains(A: Floats) -> Floats:
            return np.insert(gained(A), 0, 0.0, axis=1)

    here, there = known.at(0, test_0), known.at(1, test_1)
    p_s, mu_1 = chances(there), fold.mu_1.target[test_1]
    target = outcome_rows(table.target[test_1], labels[1][test_1], mu_1, p_s, None if gains is None else gains(there))
    source, at_source = np.zeros(len(test_0)), chances(here)
    for k in range(known.risks):
        coefficient = risk_coefficient(
            table.source[test_0],
            fold.mu_1.source[test_0],
            p_1.source[test_0],
            at_source,
            known.slope(chances, k),
            None if gains is None else gains(here),
            None if gains is None else known.slope(gains, k),
        )
        residual = (labels[0][test_0] == k + 1) - fold.risk.source[test_0, k]
        source += risk_rows(fold.ratio_x[test_0], coefficient, residual, sample.weights(0, test_0))
    differences = table.target[test_1, 1:] - table.target[test_1, :1]
    missed = (differences * (contrast[test_1, 1:] - noise(there))).sum(1) ** 2
    left = mu_1 - (table.target[test_1] * p_s).sum(1)
    return Piece(Rows(source, target), left**2, None, missed)


def _with_first(others: Floats) -> Floats:
    """Probabilities of all labels from regressions of all but the first, shape (n, C)."""
    found = np.clip(np.column_stack([1 - others.sum(1), others]), 0.0, 1.0)
    return np.asarray(found / found.sum(1, keepdims=True))


def _bins(sample: Sample, fold: Fold, n_bins: int) -> Bins:
    if sample.table is None:
        rows = fold.train[1]
        return quantile_bins(fold.risk.target[rows, 0], n_bins, sample.weights(1, rows))
    return probability_bins(n_bins)


def _constant_difference(table: Rows) -> bool:
    """Whether two labels differ in loss by the same amount everywhere, as for the 0-1 loss: then g is constant."""
    if table.target.shape[1] != 2:
        return False
    squares = (table.target[:, 1] - table.target[:, 0]) ** 2
    return bool(np.ptp(squares) < 1e-12)
