"""Explain the difference between two models: on the same rows, or how it changes from one domain to another."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray

from explain.assemble import Detail
from explain.data import Codes, Columns, Sample, make_sample
from explain.errors import ExplainError
from explain.estimate import Shares, make_shares, watched
from explain.explainer import GapExplainer
from explain.folds import assign_folds
from explain.functional.intervals import covariance, critical
from explain.functional.metrics import METRICS
from explain.functional.rows import Floats
from explain.functional.shapley import sample_subsets, subsets
from explain.functional.values import curvature
from explain.levels import Runs
from explain.nuisances import Family, best_family, candidates, problem
from explain.outcomes import Losses, read_losses
from explain.plan import EXACT_PLAYERS, check_counts, usable_folds, usable_repeats
from explain.report import GapReport
from explain.structure import Explainer, check_options
from explain.tables import as_frame, read_weights, resolve_groups
from explain.trust import judge
from gapbridge.arguments import Count, NotNegative, OpenShare, Processes, Range, Seed

Named = Hashable | list[Hashable]


class ModelGapExplainer(Explainer):
    r"""Why a second model does worse than a first one on the same rows, with intervals.

    With d the second model's loss minus the first one's and :math:`\Delta(x) = E[d|x]`,

    .. math::
        v(s) = 1 - \frac{E[(\Delta - E[\Delta|X_s])^2]}{E[\Delta^2]}
             = \frac{MSE_0 - MSE_s}{MSE_0 - MSE_{full}}

    is shared out among variables; v of no variable is the part that is the same everywhere ("recalibration"). Inputs
    are the same for both models, so there is no shift of covariates and no density ratio.

    Args:
        groups: Players by name, each a column or a list of columns; every other column on its own when not given. Never
            use features that one of the models has made.
        models: Columns of the first and of the second model: predictions (a list of columns for the probability of
            every class), or losses when the loss is "given".
        label: Column of the labels.
        loss: "zero_one", "brier", "log", "squared", "quantile" or "given".
        quantile: Which quantile the quantile loss is of.
        cluster: Column that names the cluster of a row.
        weight: Column of survey or sample weights, as of :class:`~explain.explainer.GapExplainer`.
        categorical: Columns of numbers that are codes of categories.
        ordinal: Values of a column from the lowest to the highest, by column.
        folds: Folds of cross-fitting, at least 2.
        repeats: Cross-fits with other folds, as of :class:`~explain.explainer.GapExplainer`.
        learners: As of :class:`~explain.explainer.GapExplainer`; only the regressor is used.
        level: Level of the intervals.
        interval: "wald" or "fieller".
        min_shift_z: A difference whose size is below so many of its standard errors is not shared out.
        subset_draws: Pairs of subsets drawn when there are more than 10 players.
        seed: The same seed gives the same bits.
        n_jobs: Processes that work on subsets at once, as joblib counts them: -1 is one a core, none given is one.
        progress: Whether a bar on the standard error shows how many subsets are done.

    Attributes:
        report_: The :class:`~explain.report.GapReport`, with the shares under `outcome`.

    Reference:
        Singh et al. (2024), arXiv 2402.14254, with the model in the place of the domain.
    """

    def __init__(
        self,
        groups: Mapping[Hashable, object] | None = None,
        *,
        models: tuple[Named, Named] = ("first", "second"),
        label: Hashable = "label",
        loss: Literal["zero_one", "brier", "log", "squared", "quantile", "given"] = "zero_one",
        quantile: OpenShare = 0.5,
        cluster: Hashable | None = None,
        weight: Hashable | None = None,
        categorical: Sequence[Hashable] = (),
        ordinal: Mapping[Hashable, Sequence[Hashable]] | None = None,
        folds: Annotated[int, Range(2)] = 5,
        repeats: Count | None = None,
        learners: Any = "auto",
        level: OpenShare = 0.9,
        interval: Literal["wald", "fieller"] = "wald",
        min_shift_z: NotNegative = 2.0,
        subset_draws: Count = 200,
        seed: Seed = 0,
        n_jobs: Processes | None = None,
        progress: bool = False,
    ) -> None:
        self.groups, self.models, self.label, self.loss, self.cluster = groups, models, label, loss, cluster
        self.weight, self.categorical, self.ordinal, self.quantile = weight, categorical, ordinal, quantile
        self.folds, self.repeats, self.learners, self.level = folds, repeats, learners, level
        self.interval, self.min_shift_z, self.subset_draws = interval, min_shift_z, subset_draws
        self.seed, self.n_jobs, self.progress = seed, n_jobs, progress
        check_options(self)

    def fit(self, table: object) -> ModelGapExplainer:
        """Estimate how the difference is shared out.

        Args:
            table: Rows with features, label and the predictions (or losses) of both models, as a DataFrame, a mapping
                of columns, a `datasets.Dataset` or a matrix.

        Returns:
            Itself, with `report_`.

        Raises:
            ExplainError: If the data cannot be explained; the message says why and what to do.
        """
        check_options(self)
        frame = as_frame(table, "table")
        frames = frame, frame.iloc[:0]
        first, second = read_pair(frames, self.loss, self.label, self.models, self.quantile)
        difference = Losses([b - a for a, b in zip(first.loss, second.loss, strict=True)])
        taken = _taken(self.models, self.label, self.cluster, self.weight)
        groups = resolve_groups(list(frame.columns), [], self.groups, taken)
        known = Columns(self.cluster, self.weight, self.categorical, self.ordinal or {})
        sample = make_sample(frames, difference, [], groups, known, self.seed)
        check_counts(sample, self.folds, domains=1)
        folds, trust = usable_folds(sample, self.folds, domains=1), judge(sample)
        d = sample.loss.source
        family = best_family(candidates(self.learners), [problem(sample, 0, d)], sample.categorical, classify=False)

        rng = np.random.default_rng([self.seed, 7])
        players, counts = len(sample.groups), None
        if players <= EXACT_PLAYERS:
            masks = subsets(players)
        else:
            masks, counts = sample_subsets(players, self.subset_draws, rng)
        repeats = []
        for _ in range(usable_repeats(sample, self.repeats, {family.name}, domains=1)):
            fold = assign_folds(sample.sizes, folds, rng, clusters=sample.clusters, weight=sample.weight)[0]
            with Parallel(n_jobs=self.n_jobs, return_as="generator" if self.progress else "list") as workers:
                parallel = watched(workers, progress=self.progress)
                repeats.append(_estimate(sample, family, masks, fold, parallel))
        detail = Detail(
            sample.names,
            tuple(groups),
            masks,
            counts,
            trust.shares,
            self.level,
            self.interval,
            self.min_shift_z,
            freedom=trust.freedom,
        )
        outcome, values, shift = detail("outcome", repeats, _moved(sample, self.level, trust.freedom))
        weight = np.ones(len(d)) if self.weight is None else read_weights(frames, self.weight)[0]
        means = [math.fsum(part.loss[0] * weight) / len(d) for part in (first, second)]  # in any order of the rows
        self.report_ = GapReport(
            mode="models",
            loss=self.loss,
            level=self.level,
            totals={"first": means[0], "second": means[1], "gap": means[1] - means[0]},
            outcome=outcome,
            values=tuple(values),
            diagnostics={
                "shift": {"outcome": shift},
                **trust.diagnostics(),
                **({"columns": dict(sample.said)} if sample.said else {}),
                "rows": len(d),
                "folds": folds,
                "repeats": len(repeats),
                "learners": {"loss": family.name},
            },
        )
        return self


def gap_of_gaps(
    source: object,
    target: object,
    baseline: Sequence[Hashable],
    groups: Mapping[Hashable, object] | None = None,
    *,
    models: tuple[Named, Named] = ("first", "second"),
    label: Hashable = "label",
    loss: str = "zero_one",
    **options: Any,
) -> GapReport:
    """Whether, and through what, a second model loses more than a first one from the source to the target.

    The decomposition of one model's gap is applied to the difference of two losses. Aggregate terms are linear in the
    loss, and every regression is fitted to each model's loss by itself, so they are exactly the second model's terms
    minus the first one's in the same folds; the diagnostics have both under "models". Shares use the loss-level
    definition.

    Args:
        source: Rows of the source, with the predictions (or losses) of both models.
        target: Rows of the target.
        baseline: Columns of the baseline.
        groups: Players by name; every other column on its own when not given.
        models: Columns of the first and the second model, as of :class:`ModelGapExplainer`.
        label: Column of the labels.
        loss: "zero_one", "brier", "log", "squared", "quantile" or "given"; metrics such as "auc" are no means of
            losses, whose difference could be explained row by row.
        **options: Further options of :class:`~explain.explainer.GapExplainer`.

    Returns:
        The report; positive terms say that the second model loses more.

    Raises:
        ExplainError: As :meth:`~explain.explainer.GapExplainer.fit`.
    """
    frames = as_frame(source, "source"), as_frame(target, "target")
    first, second = read_pair(frames, loss, label, models, options.pop("quantile", 0.5))
    difference = Losses([b - a for a, b in zip(first.loss, second.loss, strict=True)], pair=(first.loss, second.loss))
    taken = [name for name in _taken(models, label) if name != label]
    explainer = GapExplainer(baseline, groups, label=label, prediction=taken, loss="given", outcome="loss", **options)
    return explainer.explain_losses(frames, difference, "gap-of-gaps", loss)


def read_pair(
    frames: Sequence[pd.DataFrame], loss: str, label: Hashable, models: tuple[Named, Named], quantile: float
) -> tuple[Losses, Losses]:
    """Losses of the first and of the second model.

    Raises:
        ExplainError: If there are not two models.
    """
    if isinstance(models, str) or len(models) != 2:
        raise ExplainError(f"models is {models!r}, but the columns of exactly two models are needed, as in ('a', 'b')")
    if loss in METRICS:
        raise ExplainError(
            f"the loss '{loss}' is no mean of losses of rows, so that the difference of two models has none to share "
            "out: explain each model's gap by itself, or use brier or log"
        )
    first, second = (read_losses(frames, loss, "loss", label, columns, columns, quantile) for columns in models)
    return first, second


def _taken(models: tuple[Named, Named], *others: Hashable | None) -> set[Hashable]:
    named = {name for columns in models for name in (columns if isinstance(columns, list) else [columns])}
    return named | {name for name in others if name is not None}


def _estimate(sample: Sample, family: Family, masks: NDArray[np.bool_], fold: Codes, parallel: Runs) -> Shares:
    """Numerators (d - m_s)^2 - (d - m_full)^2 and the denominator d^2 - (d - m_full)^2 of one cross-fit."""
    d = sample.loss.source
    found = parallel([delayed(_predict)(sample, family, mask, fold) for mask in masks], "subsets")
    held, noise = np.stack([part[0] for part in found]), np.array([part[1] for part in found])
    full = int(np.flatnonzero(masks.all(1))[0])
    partial = ~masks.all(1)
    m_s, m_full = held[partial], held[full]
    rows = np.concatenate([(d - m_s) ** 2, d[None] ** 2]) - (d - m_full) ** 2
    missed = noise[full] - np.append(noise[partial], 0.0)
    plug_in = np.concatenate([(m_s - m_full) ** 2, m_full[None] ** 2])
    clusters = None if sample.clusters is None else sample.clusters[:1]
    weight = sample.weights(0, slice(None))
    value = np.average(rows, axis=1, weights=weight) + missed
    spread = covariance([rows], clusters, None if weight is None else [weight])
    return make_shares(masks, value, spread, plug_in, sample, 0)


def _moved(sample: Sample, level: float, freedom: float) -> bool:
    """Whether the mean difference of the two models' losses differs from 0."""
    d, weight = sample.loss.source[None], sample.weights(0, slice(None))
    clusters = None if sample.clusters is None else sample.clusters[:1]
    variance = covariance([d], clusters, None if weight is None else [weight])[0, 0]
    return bool(abs(np.average(d[0], weights=weight)) > critical(level, freedom) * variance**0.5)


def _predict(sample: Sample, family: Family, mask: NDArray[np.bool_], fold: Codes) -> tuple[Floats, float]:
    """The difference expected from a subset of the players, held out at every row, and its own mean squared error."""
    X, d = sample.features.source, sample.loss.source
    columns = sample.columns(mask)
    predicted = np.empty((1 + int(fold.max()), len(d)))
    for k, out in enumerate(predicted):
        train = fold != k
        if len(columns):
            model = family.fit_regressor(
                X[train][:, columns], d[train], sample.categorical[columns], sample.weights(0, train)
            )
            out[:] = model.predict(X[:, columns])
        else:
            out[:] = np.average(d[train], weights=sample.weights(0, train))
    return predicted[fold, np.arange(len(d))], curvature(predicted, sample.weights(0, slice(None)))
