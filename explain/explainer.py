"""Explain why a model does worse on a target sample than on a source sample."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from explain.assemble import assemble, nothing_to_explain
from explain.crossfit import domain_probability
from explain.data import Codes, Columns, Sample, make_sample
from explain.errors import ExplainError
from explain.estimate import estimate
from explain.folds import assign_folds
from explain.functional.density import Overlap, density_ratio, overlap
from explain.functional.losses import FINITE_LOSSES
from explain.functional.rows import Rows
from explain.functional.shapley import sample_subsets, subsets
from explain.nuisances import Families, candidates, choose_families
from explain.outcomes import Losses, read_losses
from explain.report import GapReport, Mode
from explain.structure import Explainer, check_options
from explain.tables import DOMAINS, Frames, as_frame, resolve_groups
from gapbridge.arguments import Count, NotNegative, OpenShare, Processes, Range, Seed

LOSSES = (*FINITE_LOSSES, "squared", "given")
EXACT_PLAYERS = 10
SEPARABLE_AUC = 0.99
MIN_ROWS = 10  # of a domain, for each fold


class GapExplainer(Explainer):
    r"""Hierarchical decomposition of a performance gap between two domains, with intervals.

    The gap is split into what the baseline variables W, the other features given them, and the outcome given all
    features contribute (three terms that sum to the gap), and the latter two into shares of variables or groups.

    Args:
        baseline: Columns of W, known upstream of the others or to be held fixed; at least one.
        groups: Players by name, each a column or a list of columns; every other column on its own when not given.
        label: Column of the labels.
        prediction: Column of predicted probabilities of the second class (labels sorted), or of predicted numbers for
            the squared loss; a list of columns gives the probability of every class.
        loss: "zero_one", "brier" or "log" for labels of finitely many classes, "squared" for numbers, "given" for a
            column that holds any per-example loss (higher is worse).
        loss_column: The column of a given loss.
        outcome: "risk" is the paper's definition of a partial outcome shift and needs labels of finitely many classes;
            "loss" shifts the expected loss itself and takes any loss.
        cluster: Column that names the cluster of a row (a patient, a prompt): folds keep clusters whole and errors are
            cluster-robust.
        weight: Column of survey or sample weights: a row of weight 2 counts as two rows in every estimate. Weights are
            scaled to a mean of 1 in each domain; errors take every row (or cluster) as one observation.
        categorical: Columns of numbers that are codes of categories.
        ordinal: Values of a column from the lowest to the highest, by column, where they are ordered texts.
        n_bins: Number of bins of the source risk in a shift of the outcome; at least 200 target rows for each are
            advisable.
        folds: Number of folds of the cross-fitting, at least 2.
        repeats: How often the cross-fitting is repeated with other folds; estimates are medians over the repeats.
        learners: "linear", "hist_gb", "auto" (cross-validated choice of the two for each kind of nuisance), or a pair
            of a scikit-learn classifier and regressor.
        level: Level of the intervals, in (0, 1).
        interval: Kind of the intervals: "wald", or "fieller" for shares with a weak denominator.
        min_shift_z: A shift whose size is below so many of its standard errors is not shared out.
        trim: Rows whose probability of the target, given all features, is within this distance of 0 or 1 are left out;
            the explained gap is then that on the common support.
        subset_draws: Pairs of subsets drawn when there are more than 10 players.
        seed: Decides the folds and the subsets; the same seed gives the same bits.
        n_jobs: Processes that work on subsets at once, as joblib counts them: -1 is one a core, none given is one.

    Attributes:
        report_: The :class:`~explain.report.GapReport`.

    Raises:
        ExplainError: If an option is out of range.

    Reference:
        Singh et al. (2024), "A hierarchical decomposition for explaining ML performance discrepancies",
        arXiv 2402.14254.
    """

    def __init__(
        self,
        baseline: Sequence[Hashable] = (),
        groups: Mapping[Hashable, Any] | None = None,
        *,
        label: Hashable = "label",
        prediction: Hashable | list[Hashable] = "prediction",
        loss: Literal["zero_one", "brier", "log", "squared", "given"] = "zero_one",
        loss_column: Hashable = "loss",
        outcome: Literal["risk", "loss"] = "risk",
        cluster: Hashable | None = None,
        weight: Hashable | None = None,
        categorical: Sequence[Hashable] = (),
        ordinal: Mapping[Hashable, Sequence[Hashable]] | None = None,
        n_bins: Count = 20,
        folds: Annotated[int, Range(2)] = 5,
        repeats: Count = 1,
        learners: Any = "auto",
        level: OpenShare = 0.9,
        interval: Literal["wald", "fieller"] = "wald",
        min_shift_z: NotNegative = 2.0,
        trim: Annotated[float, Range(0, 0.5, below=True)] = 0.0,
        subset_draws: Count = 200,
        seed: Seed = 0,
        n_jobs: Processes | None = None,
    ) -> None:
        self.baseline, self.groups = baseline, groups
        self.label, self.prediction = label, prediction
        self.loss, self.loss_column, self.outcome, self.cluster = loss, loss_column, outcome, cluster
        self.weight, self.categorical, self.ordinal = weight, categorical, ordinal
        self.n_bins, self.folds, self.repeats, self.learners = n_bins, folds, repeats, learners
        self.level, self.interval, self.min_shift_z, self.trim = level, interval, min_shift_z, trim
        self.subset_draws, self.seed, self.n_jobs = subset_draws, seed, n_jobs
        check_options(self)

    def fit(self, source: object, target: object) -> GapExplainer:
        """Estimate all terms of the gap.

        Args:
            source: Rows of the domain the model is known on: a DataFrame, a mapping of columns, a `datasets.Dataset` or
                a matrix (columns are then named 0, 1, ...). Not the rows the model was trained on.
            target: Rows of the other domain, with the same columns.

        Returns:
            Itself, with `report_`.

        Raises:
            ExplainError: If an option is out of range or the data cannot be explained; the message says what to do.
        """
        self._check_options()
        frames = as_frame(source, "source"), as_frame(target, "target")
        losses = read_losses(frames, self.loss, self.outcome, self.label, self.prediction, self.loss_column)
        self.report_ = self.explain_losses(frames, losses, "domain", self.loss)
        return self

    def explain_losses(self, frames: Frames, losses: Losses, mode: Mode, loss: str) -> GapReport:
        """The report on two tables whose losses are known.

        Args:
            frames: The source and the target.
            losses: Of their rows.
            mode: Of the report.
            loss: Name of the loss.

        Raises:
            ExplainError: As :meth:`fit`.
        """
        self._check_options()
        taken = {self.label, self.loss_column, self.cluster, self.weight}
        taken |= set(self.prediction) if isinstance(self.prediction, list) else {self.prediction}
        groups = resolve_groups(list(frames[0].columns), self.baseline, self.groups, taken)
        known = Columns(self.cluster, self.weight, self.categorical, self.ordinal or {})
        sample = make_sample(frames, losses, self.baseline, groups, known, self.seed)
        if len(np.unique(np.concatenate(sample.loss))) == 1:
            return nothing_to_explain(sample, tuple(groups), mode, loss, self.level)
        check_counts(sample, self.folds)
        folds = usable_folds(sample, self.folds)
        families = choose_families(candidates(self.learners), sample)
        rng = np.random.default_rng([self.seed, 7])
        sample, support = self._common_support(sample, families, folds, rng)

        players, counts = len(sample.groups), None
        if players <= EXACT_PLAYERS:
            masks = subsets(players)
        else:
            masks, counts = sample_subsets(players, self.subset_draws, rng)
        repeats = []
        for _ in range(self.repeats):
            parts = assign_folds(sample.sizes, folds, rng, sample.labels, sample.clusters, sample.weight)
            check_folds(sample, parts)
            repeats.append(estimate(sample, families, masks, parts, self.n_bins, self.n_jobs))
        return assemble(
            sample,
            tuple(groups),
            repeats,
            masks,
            counts,
            support,
            mode=mode,
            loss=loss,
            level=self.level,
            interval=self.interval,
            min_shift_z=self.min_shift_z,
            settings={
                "rows": list(sample.sizes),
                "folds": folds,
                "repeats": self.repeats,
                "n_bins": self.n_bins,
                "outcome": self.outcome,
                "learners": families.names(),
            },
        )

    def _common_support(
        self, sample: Sample, families: Families, folds: int, rng: np.random.Generator
    ) -> tuple[Sample, Overlap]:
        """The rows within the common support, and how well the domains overlap there."""
        parts = assign_folds(sample.sizes, folds, rng, sample.labels, sample.clusters, sample.weight)
        check_folds(sample, parts)
        probability = domain_probability(sample, families.density, parts)
        everything = _overlap(sample, probability)
        if everything.auc > SEPARABLE_AUC:
            raise ExplainError(
                f"a classifier tells source from target with an AUC of {everything.auc:.3f}, so hardly any source row "
                "resembles the target: leave out or coarsen the features that name the domain"
            )
        if not self.trim:
            return sample, everything
        inside = [(part > self.trim) & (part < 1 - self.trim) for part in probability]
        kept = float(np.concatenate(inside).mean())
        trimmed = sample.take(*(np.flatnonzero(part) for part in inside))
        check_counts(trimmed, folds)
        usable_folds(trimmed, folds)
        left = Rows(*(part[rows] for part, rows in zip(probability, inside, strict=True)))
        return trimmed, _overlap(trimmed, left, kept)

    def _check_options(self) -> None:
        check_options(self)
        if isinstance(self.baseline, str) or not len(self.baseline):
            raise ExplainError(
                f"baseline is {self.baseline!r}, but it must be a list of at least one column, as shares of a "
                "covariate shift are defined given a baseline"
            )
        if self.outcome == "risk" and self.loss not in FINITE_LOSSES:
            raise ExplainError(
                f"outcome='risk' needs the loss for every label, which the loss '{self.loss}' does not give: "
                f"use one of {', '.join(FINITE_LOSSES)}, or outcome='loss'"
            )


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
