"""Explain why a model does worse on a target sample than on a source sample."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from explain.assemble import assemble, nothing_to_explain
from explain.data import Columns, make_sample
from explain.errors import ExplainError
from explain.estimate import Estimate, estimate
from explain.functional.losses import FINITE_LOSSES
from explain.functional.metrics import METRIC_NAMES
from explain.functional.shapley import sample_subsets, subsets
from explain.nuisances import candidates, choose_families
from explain.outcomes import Losses, read_losses
from explain.plan import EXACT_PLAYERS, Plan, check_counts, common_support, deal, usable_folds, usable_repeats
from explain.report import GapReport, Mode
from explain.structure import Explainer, check_options
from explain.tables import Frames, as_frame, resolve_groups
from gapbridge.arguments import Count, NotNegative, OpenShare, Processes, Range, Seed


class GapExplainer(Explainer):
    r"""Hierarchical decomposition of a performance gap between two domains, with intervals.

    The gap is split into what the baseline variables W, the other features given them, and the outcome given all
    features contribute (three terms that sum to the gap), and the latter two into shares of variables or groups.

    Args:
        baseline: Columns of W, known upstream of the others or to be held fixed; at least one.
        groups: Players by name, each a column or a list of columns; every other column on its own when not given.
        label: Column of the labels.
        prediction: Column of predicted probabilities of the second class (labels sorted), or of predicted numbers for
            the squared and the quantile loss; a list of columns gives the probability of every class.
        loss: "zero_one", "brier" or "log" for labels of finitely many classes, "squared" and "quantile" for numbers,
            "given" for a column that holds any per-example loss (higher is worse). For two classes also the metrics
            "f1", "recall", "auc" (each as 1 minus it) and "calibration" (the squared calibration error), which are no
            means of losses: see :mod:`explain.functional.metrics` for what their terms and shares are.
        quantile: Which quantile the quantile loss is of.
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
        repeats: How often the cross-fitting is repeated with other folds; estimates are medians over the repeats, and
            errors hold what the repeats differ by. When not given, 2 where a nuisance is learnt linearly and a domain
            has fewer than 20 000 rows (or clusters), else 1.
        learners: "linear", "hist_gb", "auto" (cross-validated choice of the two for each kind of nuisance), or a pair
            of a scikit-learn classifier and regressor.
        level: Level of the intervals, in (0, 1).
        interval: Kind of the intervals: "wald", or "fieller" for shares with a weak denominator.
        attribute_baseline: Whether to share out the baseline term too, an option beyond the paper: in units of the
            loss, what it changes that the target's distribution of a baseline column (and of those before it) takes
            the place of the source's, the others following as they do in the source; averaged over all orders.
        min_shift_z: A shift whose size is below so many of its standard errors is not shared out.
        trim: Rows whose probability of the target, given all features, is within this distance of 0 or 1 are left out;
            the explained gap is then that on the common support.
        subset_draws: Pairs of subsets drawn when there are more than 10 players.
        seed: Decides the folds and the subsets; the same seed gives the same bits.
        n_jobs: Processes that work on subsets at once, as joblib counts them: -1 is one a core, none given is one.
        progress: Whether a bar on the standard error shows how many folds and subsets are done.

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
        groups: Mapping[Hashable, object] | None = None,
        *,
        label: Hashable = "label",
        prediction: Hashable | list[Hashable] = "prediction",
        loss: Literal[
            "zero_one", "brier", "log", "squared", "quantile", "given", "f1", "recall", "auc", "calibration"
        ] = "zero_one",
        quantile: OpenShare = 0.5,
        loss_column: Hashable = "loss",
        outcome: Literal["risk", "loss"] = "risk",
        cluster: Hashable | None = None,
        weight: Hashable | None = None,
        categorical: Sequence[Hashable] = (),
        ordinal: Mapping[Hashable, Sequence[Hashable]] | None = None,
        n_bins: Count = 20,
        folds: Annotated[int, Range(2)] = 5,
        repeats: Count | None = None,
        learners: Any = "auto",
        level: OpenShare = 0.9,
        interval: Literal["wald", "fieller"] = "wald",
        attribute_baseline: bool = False,
        min_shift_z: NotNegative = 2.0,
        trim: Annotated[float, Range(0, 0.5, below=True)] = 0.0,
        subset_draws: Count = 200,
        seed: Seed = 0,
        n_jobs: Processes | None = None,
        progress: bool = False,
    ) -> None:
        self.baseline, self.groups = baseline, groups
        self.label, self.prediction = label, prediction
        self.loss, self.loss_column, self.outcome, self.cluster = loss, loss_column, outcome, cluster
        self.quantile, self.attribute_baseline = quantile, attribute_baseline
        self.weight, self.categorical, self.ordinal = weight, categorical, ordinal
        self.n_bins, self.folds, self.repeats, self.learners = n_bins, folds, repeats, learners
        self.level, self.interval, self.min_shift_z, self.trim = level, interval, min_shift_z, trim
        self.subset_draws, self.seed, self.n_jobs, self.progress = subset_draws, seed, n_jobs, progress
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
        self.check()
        frames = as_frame(source, "source"), as_frame(target, "target")
        self.report_ = self.explain_losses(frames, self.losses(frames), "domain", self.loss_name)
        return self

    @property
    def loss_name(self) -> str:
        """What the loss is called in reports."""
        return METRIC_NAMES.get(self.loss, self.loss)

    def losses(self, frames: Frames) -> Losses:
        """Losses of the rows of both tables.

        Raises:
            ExplainError: If labels and predictions do not fit.
        """
        given = self.label, self.prediction, self.loss_column
        return read_losses(frames, self.loss, self.outcome, *given, tau=self.quantile)

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
        plan = self.plan(frames, losses)
        options = self.n_bins, self.n_jobs, plan.upstream
        found = [estimate([case], plan.masks, *options, progress=self.progress)[0] for case in plan.cases()]
        return self.report(plan, found, mode, loss)

    def plan(self, frames: Frames, losses: Losses, *, anchored: bool = False) -> Plan:
        """All that is decided before anything is estimated: the rows in order, learners, folds and subsets.

        Args:
            frames: The source and the target.
            losses: Of their rows.
            anchored: Whether the order of the source, the codes of its categories and its folds are the same whatever
                it is compared with.

        Raises:
            ExplainError: As :meth:`fit`.
        """
        self.check()
        taken = {self.label, self.loss_column, self.cluster, self.weight}
        taken |= set(self.prediction) if isinstance(self.prediction, list) else {self.prediction}
        groups = resolve_groups(list(frames[0].columns), self.baseline, self.groups, taken)
        known = Columns(self.cluster, self.weight, self.categorical, self.ordinal or {})
        sample = make_sample(frames, losses, self.baseline, groups, known, self.seed, anchored=anchored)
        if sample.scored is None and len(np.unique(np.concatenate(sample.loss))) == 1:
            return Plan(sample, tuple(groups))
        check_counts(sample, self.folds)
        folds = usable_folds(sample, self.folds)
        families = choose_families(candidates(self.learners), sample)
        one = np.random.default_rng([self.seed, 7])
        # The folds of a target are drawn after those of the source: with a generator for each draw, the source's are
        # the same however many rows the target has.
        draws = (np.random.default_rng([self.seed, 7, draw]) if anchored else one for draw in itertools.count())
        sample, support = common_support(sample, families, deal(sample, folds, next(draws)), self.trim)

        players, counts = len(sample.groups), None
        if players <= EXACT_PLAYERS:
            masks = subsets(players)
        else:
            masks, counts = sample_subsets(players, self.subset_draws, next(draws))
        repeats = usable_repeats(sample, self.repeats, families.names().values())
        parts = tuple(deal(sample, folds, next(draws)) for _ in range(repeats))
        upstream = subsets(len(self.baseline)) if self.attribute_baseline else None
        return Plan(sample, tuple(groups), families, support, masks, counts, folds, parts, upstream)

    def report(self, plan: Plan, repeats: Sequence[Estimate], mode: Mode, loss: str) -> GapReport:
        """The report on what was estimated.

        Args:
            plan: Of :meth:`plan`.
            repeats: Estimates with the plan's folds; none where every row has the same loss.
            mode: Of the report.
            loss: Name of the loss.
        """
        if plan.families is None or plan.support is None:
            return nothing_to_explain(plan.sample, plan.order, mode, loss, self.level)
        return assemble(
            plan.sample,
            plan.order,
            repeats,
            plan.masks,
            plan.counts,
            plan.support,
            upstream=plan.upstream,
            baseline=tuple(map(str, self.baseline)),
            mode=mode,
            loss=loss,
            level=self.level,
            interval=self.interval,
            min_shift_z=self.min_shift_z,
            settings={
                "rows": list(plan.sample.sizes),
                "folds": plan.folds,
                "repeats": len(plan.parts),
                "n_bins": self.n_bins,
                "outcome": self.outcome,
                "learners": plan.families.names(),
            },
        )

    def check(self) -> None:
        """Compare the options with their annotations and with each other.

        Raises:
            ExplainError: For the first that is not accepted.
        """
        check_options(self)
        if isinstance(self.baseline, str) or not len(self.baseline):
            raise ExplainError(
                f"baseline is {self.baseline!r}, but it must be a list of at least one column, as shares of a "
                "covariate shift are defined given a baseline"
            )
        if self.attribute_baseline and (self.loss in METRIC_NAMES or len(self.baseline) > EXACT_PLAYERS):
            why = (
                f"needs a loss of rows, which the loss '{self.loss}' is not"
                if self.loss in METRIC_NAMES
                else f"values all subsets of the baseline, so that {len(self.baseline)} columns are more than the "
                f"{EXACT_PLAYERS} it takes"
            )
            raise ExplainError(f"attribute_baseline {why}: leave it out, or change the other")
        if self.outcome == "risk" and self.loss not in FINITE_LOSSES:
            raise ExplainError(
                f"outcome='risk' needs the loss for every label, which the loss '{self.loss}' does not give: "
                f"use one of {', '.join(FINITE_LOSSES)}, or outcome='loss'"
            )
