"""Explain the gaps of many domains (years, sites, chunks over time) to one reference, with joint intervals."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from explain.assemble import TERMS
from explain.curve_report import CURVES, CurveKind, GapCurve, Point
from explain.data import Codes
from explain.errors import ExplainError
from explain.estimate import Estimate, combine_means, estimate
from explain.explainer import GapExplainer
from explain.functional.intervals import covariance, critical
from explain.functional.rows import Floats
from explain.functional.simultaneous import common_rows, each_level
from explain.plan import Plan
from explain.report import GapReport
from explain.structure import roles
from explain.tables import as_frame, players_of, read_weights
from explain.trust import judge

Period = Literal["day", "week", "month", "quarter", "year"]
PERIODS: dict[str, str] = {"day": "D", "week": "W", "month": "M", "quarter": "Q", "year": "Y"}
MAPS = np.concatenate([[[-1.0, 0.0, 0.0, 1.0]], TERMS])  # gap and terms from the expected losses
MAX_DOMAINS = 1000


class _Planned(NamedTuple):
    """A domain, or a group of both: its tables, where its source rows stand in the whole source, and its plan."""

    name: str
    frames: tuple[pd.DataFrame, pd.DataFrame]
    rows: Codes
    plan: Plan


class _Explained(NamedTuple):
    """The same with what was estimated."""

    name: str
    frame: pd.DataFrame
    rows: Codes
    plan: Plan
    repeats: list[Estimate]


def gap_curve(
    reference: object,
    domains: Mapping[Hashable, object],
    baseline: Sequence[Hashable],
    groups: Mapping[Hashable, object] | None = None,
    *,
    shared: bool = True,
    **options: Any,
) -> GapCurve:
    r"""Decompose the gap of every domain to a reference, with intervals that hold for all domains together.

    All comparisons use the same reference rows, so their errors go together. The intervals of the gaps and the terms
    are as wide as the largest standardised error of all of them, under their joint distribution, asks for
    (:func:`~explain.functional.simultaneous.each_level`): with probability `level` every number of the curve is
    covered. They are narrower than Bonferroni's. Shares by variable keep the intervals that hold for each alone.

    Args:
        reference: Rows of the domain that all others are compared with. Not the rows the model was trained on.
        domains: Rows of every domain by name, in the order to report: see :func:`chunks` for one table.
        baseline: Columns of the baseline.
        groups: Players by name; every other column on its own when not given.
        shared: True gives the reference the same order, folds and codes of categories in all comparisons: what is
            learnt from it is learnt once, and another domain changes nothing in the others. With False every report is
            that of `GapExplainer.fit(reference, domain)`, to the bit.
        **options: Further options of :class:`~explain.explainer.GapExplainer`.

    Returns:
        The curve. A domain that cannot be explained (for too few rows, say) is missing in it and named under `refused`.

    Raises:
        ExplainError: If options or the reference are wrong, or no domain can be explained.

    Reference:
        Singh et al. (2024), arXiv 2402.14254, for every pair; the joint intervals are not in the paper.
    """
    if not isinstance(domains, Mapping) or not domains:
        raise ExplainError(f"domains is {domains!r}, but a mapping of names to tables with at least one is needed")
    explainer = GapExplainer(baseline, groups, **options)
    explainer.check()
    source = as_frame(reference, "source")
    every = np.arange(len(source))
    return _explain(explainer, source, {name: (every, table) for name, table in domains.items()}, "domains", shared)


def gap_by_group(
    source: object,
    target: object,
    by: Hashable,
    baseline: Sequence[Hashable],
    groups: Mapping[Hashable, object] | None = None,
    **options: Any,
) -> GapCurve:
    """Decompose the gap from source to target in every group by itself, such as the recall of women and of men.

    Args:
        source: Rows of the source, of all groups.
        target: Rows of the target.
        by: Column that names the group of a row; it is no feature.
        baseline: Columns of the baseline.
        groups: Players by name; every other column on its own when not given.
        **options: Further options of :class:`~explain.explainer.GapExplainer`.

    Returns:
        A curve with the groups in the place of domains, and intervals that hold for all groups together. A group that
        cannot be explained, for few rows or for being in one table only, is named under `refused`.

    Raises:
        ExplainError: If options are wrong, or no group can be explained.
    """
    explainer = GapExplainer(baseline, groups, **options)
    explainer.check()
    players = {} if groups is None else players_of(groups)
    if by in {*baseline, *(column for part in players.values() for column in part)}:
        raise ExplainError(
            f"column '{by}' tells the groups, so it is the same in all rows of one: leave it out of baseline and groups"
        )
    if by in roles(explainer.get_params(deep=False)):
        raise ExplainError(
            f"column '{by}' tells the groups, so it cannot be the label, a prediction, the loss, the cluster or the "
            "weight as well: name another column, or copy it under another name"
        )
    frames = [as_frame(table, role) for table, role in ((source, "source"), (target, "target"))]
    for frame in frames:
        _check_column(frame, by)
    values = pd.unique(np.concatenate([frame[by].astype(object).to_numpy() for frame in frames]))
    wanted = {}
    for value in sorted(values, key=lambda value: (isinstance(value, str), value)):
        rows = np.flatnonzero((frames[0][by] == value).to_numpy())
        wanted[value] = rows, frames[1][(frames[1][by] == value).to_numpy()].drop(columns=by)
    return _explain(explainer, frames[0].drop(columns=by), wanted, "groups", shared=False)


def _explain(
    explainer: GapExplainer,
    source: pd.DataFrame,
    wanted: Mapping[Hashable, tuple[Codes, object]],
    kind: CurveKind,
    shared: bool,
) -> GapCurve:
    """The curve of targets, each against some rows of a source."""
    names = [str(name) for name in wanted]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ExplainError(f"two {kind} are called '{twice[0]}' when written out: rename one")
    planned: list[_Planned] = []
    refused: dict[str, str] = {}
    for name, (rows, table) in zip(names, wanted.values(), strict=True):
        try:
            here = source if len(rows) == len(source) else as_frame(source.iloc[rows], "source")
            frames = here, as_frame(table, "target")
            planned.append(
                _Planned(name, frames, rows, explainer.plan(frames, explainer.losses(frames), anchored=shared))
            )
        except ExplainError as error:
            refused[name] = str(error)
    if not planned:
        name, reason = next(iter(refused.items()))
        raise ExplainError(f"none of the {len(refused)} {kind} can be explained; of '{name}': {reason}")
    found = _estimate(explainer, planned, shared=shared)
    reports = {each.name: explainer.report(each.plan, each.repeats, "domain", explainer.loss_name) for each in found}
    points, single = _points(explainer, source, found, reports)
    return GapCurve(explainer.loss_name, explainer.level, single, points, reports, refused, kind)


def chunks(
    table: object,
    column: Hashable | None = None,
    *,
    rows: int | None = None,
    every: Period | None = None,
) -> dict[str, pd.DataFrame]:
    """Cut a table into domains: by the values of a column, by periods of its dates, or by numbers of rows.

    Args:
        table: The rows: a DataFrame, a mapping of columns, a `datasets.Dataset` or a matrix.
        column: Column that tells the domains; with `rows` the one to sort by, the rows as they stand when not given.
        rows: About so many rows a chunk: as many chunks as fit best, of equal size up to one row.
        every: "day", "week", "month", "quarter" or "year" of the dates in the column.

    Returns:
        The rows by name, in order: values as they sort, periods and chunks from the first to the last. Chunks by rows
        are named by their first and last value of the column, or by the numbers of their rows. All columns stay: name
        those that are features.

    Raises:
        ExplainError: If the column is missing, has gaps or no dates, or what is asked for does not fit together.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"day": pd.date_range("2024-01-30", periods=4), "x": range(4)})
        >>> {name: len(part) for name, part in chunks(frame, "day", every="month").items()}
        {'2024-01': 2, '2024-02': 2}
        >>> list(chunks(frame, rows=2))
        ['rows 1 to 2', 'rows 3 to 4']
    """
    frame = as_frame(table, "table")
    if rows is not None and every is not None:
        raise ExplainError(f"chunks are asked for by rows={rows} and by every='{every}': choose one")
    if rows is None and column is None:
        raise ExplainError("chunks need a column that tells the domains, or a number of rows: name one")
    if column is not None:
        _check_column(frame, column)
    if rows is not None:
        return _by_rows(frame, column, rows)
    key = frame[column]
    if every is not None:
        key = _periods(key, every)
    found = {str(value): part for value, part in frame.groupby(key, sort=True, observed=True)}
    if len(found) > MAX_DOMAINS:
        raise ExplainError(
            f"column '{column}' tells {len(found)} domains, more than {MAX_DOMAINS}: cut by every='month' or by rows"
        )
    return found


def _check_column(frame: pd.DataFrame, column: Hashable) -> None:
    if column not in frame.columns:
        some = ", ".join(map(str, frame.columns[:12]))
        raise ExplainError(f"the table has no column '{column}', which is to tell the domains; its columns are {some}")
    if missing := int(frame[column].isna().sum()):
        raise ExplainError(f"column '{column}', which tells the domains, has {missing} missing values: drop those rows")
    if (kind := pd.api.types.infer_dtype(frame[column])).startswith("mixed") and kind != "mixed-integer-float":
        raise ExplainError(f"column '{column}', which tells the domains, mixes kinds of values: make all of them texts")


def _periods(column: pd.Series, every: str) -> pd.Series:
    if every not in PERIODS:
        raise ExplainError(f"every is {every!r}, but {', '.join(PERIODS)} are accepted")
    if column.dtype.kind in "iufb":
        raise ExplainError(f"column '{column.name}' holds numbers, but every='{every}' needs dates: convert it")
    try:
        dates = pd.to_datetime(column, format="ISO8601")  # other ways of writing are read in more than one way
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ExplainError(
            f"column '{column.name}' holds what is no date such as 2024-01-31 ({reason}): convert it"
        ) from error
    return dates.dt.tz_localize(None).dt.to_period(PERIODS[every])


def _by_rows(frame: pd.DataFrame, column: Hashable | None, rows: int) -> dict[str, pd.DataFrame]:
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise ExplainError(f"rows is {rows!r}, but a whole number of at least 1 is needed")
    if column is not None:
        frame = frame.sort_values(column, kind="stable")
    count = max(1, round(len(frame) / rows))
    if count > MAX_DOMAINS:
        raise ExplainError(f"{rows} rows a chunk make {count} chunks, more than {MAX_DOMAINS}: take more rows")
    found: dict[str, pd.DataFrame] = {}
    for start, stop in itertools.pairwise(np.linspace(0, len(frame), count + 1).round().astype(int)):
        part = frame.iloc[start:stop]
        name = f"rows {start + 1} to {stop}" if column is None else f"{part[column].iloc[0]} to {part[column].iloc[-1]}"
        found[f"{name} ({len(found) + 1})" if name in found else name] = part
    return found


def _estimate(explainer: GapExplainer, planned: Sequence[_Planned], *, shared: bool) -> list[_Explained]:
    """Estimates of all domains; together where they share the players in the same order, folds and repeats."""
    together: dict[object, list[int]] = {}
    for place, each in enumerate(planned):
        plan = each.plan
        alike = (plan.sample.names, plan.folds, len(plan.parts))
        together.setdefault(alike if shared and plan.folds else place, []).append(place)
    repeats: list[list[Estimate]] = [[] for _ in planned]
    for places in together.values():
        plans = [planned[place].plan for place in places]
        for cases in zip(*(plan.cases() for plan in plans), strict=True):
            options = explainer.n_bins, explainer.n_jobs, plans[0].upstream
            found = estimate(cases, plans[0].masks, *options, progress=explainer.progress)
            for place, one in zip(places, found, strict=True):
                repeats[place].append(one)
    return [
        _Explained(each.name, each.frames[1], each.rows, each.plan, repeats[place])
        for place, each in enumerate(planned)
    ]


def _points(
    explainer: GapExplainer, source: pd.DataFrame, found: Sequence[_Explained], reports: Mapping[str, GapReport]
) -> tuple[tuple[Point, ...], float]:
    """Gap and terms of all domains, and the level that each of their simultaneous intervals has."""
    varying = [each for each in found if each.repeats]
    freedom = {each.name: judge(each.plan.sample, each.plan.support).freedom for each in varying}
    single = explainer.level
    if varying:
        most = max(len(each.repeats) for each in varying)
        spread = np.mean([_joint(explainer, source, varying, k) for k in range(most)], axis=0)
        single = each_level(spread, explainer.level, seed=explainer.seed)
    points = []
    for each in found:
        if not each.repeats:
            points += [Point(each.name, name, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0) for name in CURVES]
            continue
        terms = combine_means(
            [repeat.expectations for repeat in each.repeats], MAPS, explainer.level, freedom[each.name]
        )
        status = reports[each.name].aggregate[0].status
        for place, name in enumerate(CURVES):
            value, low, high = (float(part[place]) for part in (terms.value, terms.low, terms.high))
            error = float(terms.variance[place]) ** 0.5
            half = critical(single, freedom[each.name]) * error
            said = "ok" if name == "gap" and status == "low-overlap" else status  # the gap needs no overlap
            points.append(Point(each.name, name, value, error, value - half, value + half, low, high, said))
    return tuple(points), single


def _joint(explainer: GapExplainer, source: pd.DataFrame, found: Sequence[_Explained], repeat: int) -> Floats:
    """Covariance of the gaps and terms of all domains: errors go together through the reference, and clusters."""
    frames = [source, *(each.frame for each in found)]
    weights = None if explainer.weight is None else [read_weights([frame], explainer.weight)[0] for frame in frames]
    shares = [
        np.full(len(frame), 1 / len(frame)) if weights is None else weights[side] / weights[side].sum()
        for side, frame in enumerate(frames)
    ]
    rows: list[list[Floats]] = [[], []]
    places: list[list[Codes]] = [[], []]
    own: list[list[Floats]] = [[], []]
    for each in found:
        sample = each.plan.sample
        if sample.origin is None:
            raise ValueError("the rows of a sample do not say where they stand in their table")
        for side in (0, 1):
            rows[side].append(MAPS @ each.repeats[repeat % len(each.repeats)].rows[side])
            places[side].append(each.rows[sample.origin[0]] if side == 0 else sample.origin[1])
            weight = sample.weight_of(side)
            own[side].append(weight / weight.sum())
    parts = [common_rows(rows[0], places[0], [*own[0], shares[0]])]
    for place in range(len(found)):
        wide = np.zeros((len(MAPS) * len(found), len(frames[1 + place])))
        alone = common_rows([rows[1][place]], [places[1][place]], [own[1][place], shares[1 + place]])
        wide[len(MAPS) * place : len(MAPS) * (place + 1)] = alone
        parts.append(wide)
    clusters = None
    if explainer.cluster is not None:
        codes, _ = pd.factorize(np.concatenate([frame[explainer.cluster].to_numpy() for frame in frames]))
        clusters = np.split(codes, np.cumsum([len(frame) for frame in frames])[:-1])
    return covariance(parts, clusters, shares)
