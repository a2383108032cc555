"""Windows of rows, what is fitted on them, and what the two windows of every row say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from explain.data import Codes, Sample
from explain.functional.density import density_ratio
from explain.functional.rows import Floats, Rows
from explain.nuisances import Family

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


def twin(folds: Train, parts: Sequence[Rows]) -> Twin:
    """What is known window by window, brought to the two windows of every row."""
    source = twin_of(folds[0], [part.source for part in parts])
    target = twin_of(folds[1], [part.target for part in parts])
    return Twin(Rows(source[0], target[0]), Rows(source[1], target[1]))


def domain_probability(sample: Sample, family: Family, folds: Train) -> Rows:
    """P(target | all features) at every row, held out."""
    found = Rows(*(np.empty(size) for size in sample.sizes))
    for train, test in splits(folds):
        target = tell_apart(sample, family, train, np.arange(sample.features.source.shape[1]))
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
        target = tell_apart(sample, family, train, columns)
        found[test] = density_ratio(target(0, test), sample.mass(train), sample.weights(0, test))
    return found


def regress(sample: Sample, family: Family, domain: int, train: Train, columns: Codes, outcome: Floats) -> Rows:
    """Regression of an outcome on columns over the training rows of a domain, predicted at every row of both."""
    X, categorical = sample.features, sample.categorical[columns]
    rows = train[domain]
    weight = sample.weights(domain, rows)
    model = family.fit_regressor(X[domain][rows][:, columns], outcome[rows], categorical, weight)
    return Rows(*(model.predict(part[:, columns]) for part in X))


def classify(sample: Sample, family: Family, domain: int, train: Train, labels: Codes) -> Rows:
    """Probabilities of the labels given all features, learnt from the training rows of a domain."""
    X, rows = sample.features, train[domain]
    model = family.fit_classifier(X[domain][rows], labels[rows], sample.categorical, sample.weights(domain, rows))
    classes = 2 if sample.table is None else sample.table.source.shape[1]
    return Rows(*(model.chances(part, classes) for part in X))


def tell_apart(sample: Sample, family: Family, train: Train, columns: Codes) -> Callable[[int, Codes], Floats]:
    """P(target | columns) as a function of a domain and its rows."""
    X = sample.features
    both = np.concatenate([part[rows][:, columns] for part, rows in zip(X, train, strict=True)])
    domain = np.repeat([0, 1], [len(rows) for rows in train])
    weight = None
    if sample.weight is not None:
        weight = np.concatenate([part[rows] for part, rows in zip(sample.weight, train, strict=True)])
    model = family.fit_classifier(both, domain, sample.categorical[columns], weight)
    return lambda domain, rows: model.chances(X[domain][rows][:, columns], 2)[:, 1]
