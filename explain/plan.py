"""What is decided before anything is estimated: the rows in the common support, the folds, and whether they suffice."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from explain.crossfit import domain_probability
from explain.data import Codes, Sample
from explain.errors import ExplainError
from explain.estimate import Case
from explain.folds import assign_folds
from explain.functional.density import Overlap, density_ratio, overlap
from explain.functional.rows import Rows
from explain.functional.shapley import subsets
from explain.nuisances import Families
from explain.tables import DOMAINS

EXACT_PLAYERS = 10
SEPARABLE_AUC = 0.99
MIN_ROWS = 10  # of a domain, for each fold
SETTLED_UNITS = 20_000  # rows or clusters of a domain, from which on the noise of the folds does not matter


@dataclass(frozen=True)
class Plan:
    """What is decided before anything is estimated.

    Attributes:
        sample: The rows, within the common support.
        order: Names of the players in the order to report.
        families: Learners; None where every row has the same loss, so that nothing is estimated.
        support: Overlap of the domains; None likewise.
        masks: Subsets of the players, shape (S, p).
        counts: How often each batch drew each of them, where they were sampled.
        folds: Number of folds.
        parts: Folds of every row, one pair for each repeat.
        upstream: Subsets of the baseline columns, shape (U, q), where the baseline term is shared out.
    """

    sample: Sample
    order: tuple[str, ...]
    families: Families | None = None
    support: Overlap | None = None
    masks: NDArray[np.bool_] = field(default_factory=lambda: subsets(1))
    counts: NDArray[np.int64] | None = None
    folds: int = 0
    parts: tuple[tuple[Codes, Codes], ...] = ()
    upstream: NDArray[np.bool_] | None = None

    def cases(self) -> list[Case]:
        """What is estimated, one for each repeat; nothing where every row has the same loss."""
        return [] if self.families is None else [Case(self.sample, self.families, part) for part in self.parts]


def common_support(
    sample: Sample, families: Families, parts: tuple[Codes, Codes], trim: float
) -> tuple[Sample, Overlap]:
    """The rows within the common support, and how well the domains overlap there.

    Args:
        sample: The data.
        families: Learners.
        parts: Fold of every row.
        trim: Rows whose probability of the target is within this distance of 0 or 1 are left out.

    Raises:
        ExplainError: If the domains can be told apart, or too few rows are left.
    """
    folds = 1 + int(parts[0].max())
    probability = domain_probability(sample, families.density, parts)
    everything = _overlap(sample, probability)
    if everything.auc > SEPARABLE_AUC:
        raise ExplainError(
            f"a classifier tells source from target with an AUC of {everything.auc:.3f}, so hardly any source row "
            "resembles the target: leave out or coarsen the features that name the domain. "
            + _tellers(sample, families, parts)
        )
    if not trim:
        return sample, everything
    inside = [(part > trim) & (part < 1 - trim) for part in probability]
    kept = float(np.concatenate(inside).mean())
    trimmed = sample.take(*(np.flatnonzero(part) for part in inside))
    check_counts(trimmed, folds)
    usable_folds(trimmed, folds)
    left = Rows(*(part[rows] for part, rows in zip(probability, inside, strict=True)))
    return trimmed, _overlap(trimmed, left, kept)


def _tellers(sample: Sample, families: Families, parts: tuple[Codes, Codes]) -> str:
    """Which features tell the domains apart by themselves, most of all first."""
    alone = [(name, np.array([column])) for name, column in zip(sample.upstream, sample.baseline, strict=True)]
    alone += list(zip(sample.names, sample.groups, strict=True))
    found = {
        name: _overlap(sample, domain_probability(sample, families.density, parts, columns)).auc
        for name, columns in alone
    }
    worst = sorted(found, key=lambda name: (-round(found[name], 3), name))[:3]
    said = ", ".join(f"'{name}' {found[name]:.3f}" for name in worst if found[name] > 0.9 or name == worst[0])
    return f"AUC of each alone: {said}"


def _overlap(sample: Sample, probability: Rows, kept: float = 1.0) -> Overlap:
    """Overlap of the domains from held-out probabilities of the target."""
    rows = tuple(np.arange(size) for size in sample.sizes)
    ratio = density_ratio(probability.source, sample.mass((rows[0], rows[1])), sample.weights(0, rows[0]))
    clusters = None if sample.clusters is None else sample.clusters[0]
    return overlap(ratio, *probability, kept, weights=sample.weight, clusters=clusters)


def usable_folds(sample: Sample, folds: int, domains: int = 2) -> int:
    """As many folds as asked for, or as there are clusters in the domain that has fewest.

    Args:
        sample: The data.
        folds: Number of folds asked for.
        domains: 1 where there is no target.

    Raises:
        ExplainError: If a domain has a single cluster, whose error nothing would tell.
    """
    if sample.clusters is None:
        return folds
    counts = [len(np.unique(part)) for part in sample.clusters[:domains]]
    if min(counts) < 2:
        raise ExplainError(
            f"the {DOMAINS[counts.index(min(counts))]} has a single cluster, but an error needs at least two in each "
            "domain: name a finer cluster"
        )
    return min(folds, *counts)


def usable_repeats(sample: Sample, repeats: int | None, learners: Collection[str], domains: int = 2) -> int:
    """How often to cross-fit: as often as asked for, else as often as the error of a share needs.

    Which rows share a fold moves a share by up to half its standard error, and with a single repeat that error does not
    hold it. Two repeats halve the variance, and what they differ by tells the rest. Errors of boosting are wide enough
    without, and the noise falls with the rows, or the clusters that are dealt to folds, faster than the error does.

    Args:
        sample: The data.
        repeats: Asked for, if any.
        learners: Names of the families; one of them that is linear is enough.
        domains: 1 where there is no target.
    """
    if repeats is not None:
        return repeats
    units = sample.sizes if sample.clusters is None else tuple(len(np.unique(part)) for part in sample.clusters)
    return 2 if "linear" in learners and min(units[:domains]) < SETTLED_UNITS else 1


def deal(sample: Sample, folds: int, rng: np.random.Generator) -> tuple[Codes, Codes]:
    """The fold of every row of both domains.

    Raises:
        ExplainError: As :func:`check_folds`.
    """
    parts = assign_folds(sample.sizes, folds, rng, sample.labels, sample.clusters, sample.weight)
    check_folds(sample, parts)
    return parts


def check_folds(sample: Sample, folds: tuple[Codes, Codes]) -> None:
    """Refuse folds that clusters have made too uneven to learn from.

    Raises:
        ExplainError: If a domain has no row in a fold or outside of it, or a label does not occur outside of it.
    """
    if sample.clusters is None:
        return
    for side, part in enumerate(folds):
        for fold in range(1 + int(max(folds[0].max(), folds[1].max()))):
            rest = part != fold
            labels = None if sample.labels is None else sample.labels[side]
            lost = labels is not None and len(np.unique(labels[rest])) < len(np.unique(labels))
            if rest.all() or not rest.any() or lost:
                raise ExplainError(
                    f"the clusters of the {DOMAINS[side]} cannot be dealt to folds with rows"
                    + (" of every label" if lost else "")
                    + " in each: ask for fewer folds or name a finer cluster"
                )


def check_counts(sample: Sample, folds: int, domains: int = 2) -> None:
    """Refuse a sample that is too small for its folds.

    Args:
        sample: The data.
        folds: Number of folds.
        domains: 1 where there is no target.

    Raises:
        ExplainError: If a domain, or a class in it, has fewer than 10 rows for each fold.
    """
    for side, role in enumerate(DOMAINS[:domains]):
        needed = MIN_ROWS * folds
        if sample.sizes[side] < needed:
            raise ExplainError(f"the {role} has {sample.sizes[side]} usable rows, but {folds} folds need {needed}")
        if sample.labels is None or sample.table is None:
            continue
        counts = np.bincount(sample.labels[side], minlength=sample.table.source.shape[1])
        if counts.min() < 2 * folds:
            raise ExplainError(
                f"a label occurs {counts.min()} times in the {role}, but {folds} folds need {2 * folds} rows of every "
                "class: merge or leave out rare classes"
            )
