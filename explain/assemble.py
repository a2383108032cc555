"""From estimates to a report: intervals, guards, Shapley shares, and names in the order they were given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from explain.data import Sample
from explain.estimate import Estimate, Shares, Terms, combine_means, combine_shares
from explain.functional.aggregate import AGGREGATE_TERMS, aggregate_terms
from explain.functional.density import Overlap
from explain.functional.intervals import Status, at_most_one, statuses
from explain.functional.rows import Floats
from explain.functional.shapley import sampling_variance, shapley_map
from explain.report import GapReport, Kind, Mode, SubsetValue, Term
from explain.tables import RECALIBRATION
from explain.trust import Trust, judge

TERMS = aggregate_terms(np.eye(4))  # from the expected losses


def assemble(
    sample: Sample,
    order: tuple[str, ...],
    repeats: Sequence[Estimate],
    masks: NDArray[np.bool_],
    counts: NDArray[np.int64] | None,
    support: Overlap,
    *,
    upstream: NDArray[np.bool_] | None,
    baseline: tuple[str, ...],
    mode: Mode,
    loss: str,
    level: float,
    interval: str,
    min_shift_z: float,
    settings: Mapping[str, object],
) -> GapReport:
    """The report on all repeats.

    Args:
        sample: The data.
        order: Names of the players in the order to report.
        repeats: Estimates.
        masks: Subsets, shape (S, p).
        counts: How often each batch drew each of them, where they were sampled.
        support: Overlap of the domains.
        upstream: Subsets of the baseline columns, where the baseline term is shared out.
        baseline: Names of the baseline columns in the order to report.
        mode: Of the report.
        loss: Name of the loss.
        level: Of the intervals.
        interval: "wald" or "fieller".
        min_shift_z: Least size of a shift, in its standard errors, that is shared out.
        settings: Further diagnostics.
    """
    trust = judge(sample, support)
    found = combine_means([repeat.expectations for repeat in repeats], TERMS, level, trust.freedom)
    aggregate = _terms(AGGREGATE_TERMS, found, [trust.terms] * 3)
    detail = Detail(
        sample.names, order, masks, counts, trust.shares, level, interval, min_shift_z, freedom=trust.freedom
    )
    shares, values, shift = {}, [], {}
    for kind in get_args(Kind):
        moved = next(not term.low <= 0 <= term.high for term in aggregate if term.name == kind)
        shares[kind], valued, shift[kind] = detail(kind, [getattr(repeat, kind) for repeat in repeats], moved)
        values += valued
    extra = {"columns": dict(sample.said)} if sample.said else {}
    if repeats[0].pair:
        extra["models"] = {
            name: _by_name(combine_means([repeat.pair[place] for repeat in repeats], TERMS, level, trust.freedom))
            for place, name in enumerate(("first", "second"))
        }
    return GapReport(
        mode=mode,
        loss=loss,
        level=level,
        totals=_totals(sample) if sample.scored is None else _ends(repeats[0].expectations.value),
        aggregate=aggregate,
        covariate=shares["covariate"][1:],  # no covariate shift is explained by shifting nothing
        outcome=shares["outcome"],
        values=tuple(values),
        baseline=() if upstream is None else _contributions(sample, repeats, upstream, baseline, level, trust),
        diagnostics={"overlap": support._asdict(), **trust.diagnostics(), "shift": shift, **extra, **settings},
    )


def _contributions(
    sample: Sample,
    repeats: Sequence[Estimate],
    masks: NDArray[np.bool_],
    names: tuple[str, ...],
    level: float,
    trust: Trust,
) -> tuple[Term, ...]:
    """Shapley values of the baseline columns for the expected loss, which sum to the baseline term."""
    means = [repeat.baseline for repeat in repeats if repeat.baseline is not None]
    rows = [1 + sample.upstream.index(name) for name in names]
    found = combine_means(means, shapley_map(masks)[rows], level, trust.freedom)
    return _terms(names, found, [trust.terms] * len(names))


def _by_name(terms: Terms) -> dict[str, dict[str, float]]:
    """Aggregate terms as plain numbers."""
    keys = ("value", "se", "low", "high")
    return {name: dict(zip(keys, _numbers(terms, i), strict=True)) for i, name in enumerate(AGGREGATE_TERMS)}


@dataclass(frozen=True)
class Detail:
    """Values and shares of one conditional shift."""

    names: tuple[str, ...]
    order: tuple[str, ...]
    masks: NDArray[np.bool_]
    counts: NDArray[np.int64] | None
    worst: Status
    level: float
    interval: str
    min_shift_z: float
    freedom: float

    def __call__(
        self, kind: Kind, repeats: Sequence[Shares], moved: bool
    ) -> tuple[tuple[Term, ...], list[SubsetValue], dict[str, object]]:
        """Shares with the recalibration first, values of subsets by size, and the size of the shift.

        Args:
            kind: Which shift.
            repeats: Estimates.
            moved: Whether the mean of the shift differs from 0 at the level of the intervals, so that there is one.
        """
        size = float(np.median([repeat.denominator for repeat in repeats]))
        error = float(np.median([repeat.spread[-1, -1] ** 0.5 for repeat in repeats]))
        z = size / error if error > 0 else 0.0
        subset_names = [tuple(name for name in self.order if mask[self.names.index(name)]) for mask in self.masks]
        by_size = sorted(
            range(len(subset_names)),
            key=lambda index: (len(subset_names[index]), [self.order.index(name) for name in subset_names[index]]),
        )
        subsets = [subset_names[index] for index in by_size]
        pieces = {
            "numerator": np.median([repeat.numerators for repeat in repeats], axis=0),
            "uncorrected": np.median([repeat.plug_in[:, 0] for repeat in repeats], axis=0),
            "uncorrected_se": np.median([repeat.plug_in[:, 1] for repeat in repeats], axis=0),
        }
        diagnostics = {
            "size": size,
            "se": error,
            "z": z,
            "subsets": [
                {"subset": list(subset_names[i]), **{name: float(part[i]) for name, part in pieces.items()}}
                for i in by_size
            ],
        }
        players = (RECALIBRATION, *self.order)
        if not z >= self.min_shift_z:
            why: Status = "weak-shift" if moved else "no-shift"
            unknown = [SubsetValue(kind, names, math.nan, math.nan, math.nan, math.nan, why) for names in subsets]
            return tuple(_unknown(name, why) for name in players), unknown, diagnostics

        value = self._terms(repeats, np.eye(len(self.masks))[by_size])
        flags = self._flags(value)
        bounded, low, high = at_most_one(*value)
        estimated = self.masks[by_size].any(1) | (kind == "outcome")  # shifting nothing explains no covariate shift
        value = Terms(bounded, *(np.where(estimated, part, 0.0) for part in (value.variance, low, high)))
        values = [SubsetValue(kind, names, *_numbers(value, i), flags[i]) for i, names in enumerate(subsets)]
        total = None if self.counts is None else self.counts.sum(0)
        chosen = [0, *(1 + self.names.index(name) for name in self.order)]
        share = self._terms(repeats, shapley_map(self.masks, total)[chosen], chosen)
        if self.counts is not None:
            errors = self._sampled(repeats, chosen) ** 0.5
            diagnostics["sampling"] = {
                "subsets": len(self.masks),
                "pairs_drawn": int(self.counts.sum()) // 2,
                "se": dict(zip(players, errors.tolist(), strict=True)),
            }
        return _terms(players, share, self._flags(share)), values, diagnostics

    def _terms(self, repeats: Sequence[Shares], maps: Floats, chosen: Sequence[int] = ()) -> Terms:
        sampling = self._sampled(repeats, chosen) if self.counts is not None and len(chosen) else None
        return combine_shares(repeats, maps, self.level, self.interval, self.freedom, sampling)

    def _sampled(self, repeats: Sequence[Shares], chosen: Sequence[int]) -> Floats:
        """Variance of shares that comes from drawing subsets."""
        if self.counts is None:
            return np.zeros(len(chosen))
        values = np.median([1 - repeat.numerators / repeat.denominator for repeat in repeats], axis=0)
        return sampling_variance(self.masks, self.counts, values)[list(chosen)]

    def _flags(self, terms: Terms) -> Sequence[Status]:
        return statuses(terms.value, terms.variance, self.worst)


def nothing_to_explain(sample: Sample, order: tuple[str, ...], mode: Mode, loss: str, level: float) -> GapReport:
    """The report where every row has the same loss: terms of 0 and no shares."""
    zeros = np.zeros(3)
    aggregate = _terms(AGGREGATE_TERMS, Terms(zeros, zeros, zeros, zeros), ["ok"] * 3)
    return GapReport(
        mode=mode,
        loss=loss,
        level=level,
        totals=_totals(sample),
        aggregate=aggregate,
        covariate=tuple(_unknown(name) for name in order),
        outcome=tuple(_unknown(name) for name in (RECALIBRATION, *order)),
        diagnostics={"rows": list(sample.sizes)},
    )


def _totals(sample: Sample) -> dict[str, float]:
    source, target = (
        float(part.mean() if share is None else part @ share)
        for part, share in zip(sample.loss, sample.share or (None, None), strict=True)
    )
    return {"source": source, "target": target, "gap": target - source}


def _ends(levels: Floats) -> dict[str, float]:
    """Totals of a metric from its levels under the four distributions."""
    source, target = float(levels[0]), float(levels[-1])
    return {"source": source, "target": target, "gap": target - source}


def _terms(names: Sequence[str], terms: Terms, flags: Sequence[Status]) -> tuple[Term, ...]:
    return tuple(Term(name, *_numbers(terms, i), flags[i]) for i, name in enumerate(names))


def _numbers(terms: Terms, index: int) -> tuple[float, float, float, float]:
    """Value, standard error and interval of one term."""
    columns = (terms.value, terms.variance**0.5, terms.low, terms.high)
    value, error, low, high = (float(column[index]) for column in columns)
    return value, error, low, high


def _unknown(name: str, status: Status = "no-shift") -> Term:
    return Term(name, math.nan, math.nan, math.nan, math.nan, status)
