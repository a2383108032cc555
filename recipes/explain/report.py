"""What an explain run reports: tables, the waterfall of the aggregate terms, bars of the detailed ones, overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from explain.picture import contributions, forest, overlapping, waterfall
from explain.report import STATUS_MEANING, GapReport, Term
from recipes.running.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from explain.curve_report import GapCurve
    from recipes.running.folder import RunFolder


def finish(folder: RunFolder, report: GapReport, extra: Mapping[str, object]) -> None:
    """Write gap.json, figures, tables, report.html and result.json.

    Args:
        folder: The run folder.
        report: What was found.
        extra: What the run itself knows, such as how many rows were explained.
    """
    write_text(folder.path / "gap.json", report.to_json() + "\n")
    if report.aggregate:
        _draw_waterfall(folder, report)
    if report.baseline:
        _draw_contributions(folder, report)
    for name, terms in (("covariate", report.covariate), ("outcome", report.outcome)):
        if any(not math.isnan(term.value) for term in terms):
            _draw_shares(folder, name, terms, report.level)
    if chances := report.diagnostics.get("overlap", {}).get("chances"):
        figure, axes = _figure(7, 2.4)
        overlapping(chances, axes)
        shares = [[place / len(chances[0]), *part] for place, part in enumerate(zip(*chances, strict=True))]
        folder.figure(
            "overlap",
            figure,
            shares,
            ["chance_from", "source_share", "target_share"],
            title="How much the domains overlap",
            told="How often rows of each domain look like the target: where one of the two has no rows, nothing can be "
            "reweighted.",
        )
    rows = [_rounded(row) for row in report.table()]
    values = [
        {"kind": v.kind, "subset": ", ".join(v.subset) or "(none)", "value": v.value, "se": v.se, "status": v.status}
        for v in report.values
    ]
    met = {row["status"] for row in rows}
    numbers = [{"diagnostic": name, "value": value} for name, value in _flat(report.diagnostics)]
    tables: dict[str, Sequence[Mapping[str, object]]] = {
        "Terms": rows,
        "What the statuses mean": _meanings(met),
        "Diagnostics": numbers,
        "Values of subsets": values,
    }
    result = {
        "mode": report.mode,
        "loss": report.loss,
        "level": report.level,
        "sign": report.sign,
        "totals": dict(report.totals),
        "aggregate": _numbers(report.aggregate),
        **({"baseline": _numbers(report.baseline)} if report.baseline else {}),
        "covariate": _numbers(report.covariate),
        "outcome": _numbers(report.outcome),
        **extra,
    }
    folder.finish(result, {title: table for title, table in tables.items() if table}, summary=report.summary())
    folder.say(report.to_text())


def finish_curve(folder: RunFolder, curve: GapCurve, extra: Mapping[str, object]) -> None:
    """Write curve.json, the figure of the curve, tables, report.html and result.json.

    Args:
        folder: The run folder.
        curve: What was found.
        extra: What the run itself knows, such as how many rows were explained.
    """
    write_text(folder.path / "curve.json", curve.to_json() + "\n")
    rows, one = curve.table(), curve.kind[:-1]
    folder.figure(
        "curve",
        curve.plot(),
        [list(row.values()) for row in rows],
        list(rows[0]),
        title=f"The gap and its terms from {one} to {one}",
        told=f"Above 0 the {one} does worse{' in the target than in the source' if one == 'group' else ''}. The thick "
        "intervals hold each by itself, the thin ones all together.",
    )
    shares = [_rounded(row) for row in curve.shares()]
    met = {row["status"] for row in [*rows, *shares]}
    tables: dict[str, Sequence[Mapping[str, object]]] = {
        "Points": [_rounded(row) for row in rows],
        f"{one.title()}s that were not explained": [{one: name, "reason": why} for name, why in curve.refused.items()],
        "What the statuses mean": _meanings(met),
        "Shares by variable": shares,
    }
    domains = {
        name: {
            "totals": dict(report.totals),
            **{
                point.name: {"value": point.value, "low": point.low, "high": point.high, "status": point.status}
                for point in curve.points
                if point.domain == name
            },
        }
        for name, report in curve.reports.items()
    }
    result = {
        "mode": "curve",
        "loss": curve.loss,
        "level": curve.level,
        "each_level": curve.each_level,
        "domains": domains,
    }
    result |= {"refused": dict(curve.refused), **extra}
    folder.finish(result, {title: table for title, table in tables.items() if table}, summary=curve.summary())
    folder.say(curve.to_text())


def _meanings(met: set[object]) -> list[dict[str, object]]:
    return [{"status": name, "meaning": meaning} for name, meaning in STATUS_MEANING.items() if name in met]


def _draw_waterfall(folder: RunFolder, report: GapReport) -> None:
    figure, axes = _figure(7, 3.6)
    waterfall(report, axes)
    level, rows = report.totals[report.ends[0]], []
    for term in report.aggregate:
        level += term.value
        rows.append([term.name, term.value, term.low, term.high, level])
    start, end = report.ends
    folder.figure(
        "waterfall",
        figure,
        rows,
        ["term", "value", "low", "high", "level_after"],
        title=f"From {start} to {end}, term by term",
        told="Every bar begins where the one before it ended; red ones add loss, green ones take loss away, and the "
        "whiskers are intervals.",
    )


def _draw_shares(folder: RunFolder, name: str, terms: Sequence[Term], level: float) -> None:
    shown = [term for term in terms if not math.isnan(term.value)]
    figure, axes = _figure(7, 0.4 * len(shown) + 1.2)
    forest(shown, axes, f"share of the {name} shift explained, with {100 * level:g} % interval")
    rows = [[t.name, t.value, t.low, t.high, t.status] for t in terms]
    folder.figure(
        name,
        figure,
        rows,
        ["variable", "share", "low", "high", "status"],
        title=f"What the {name} shift depends on",
        told="A bar at 1 explains all of it, one at 0 nothing; lines are intervals, and grey bars are not to be relied "
        "on, for the reason beside the name.",
    )


def _draw_contributions(folder: RunFolder, report: GapReport) -> None:
    figure, axes = _figure(7, 0.4 * len(report.baseline) + 1.2)
    contributions(report, axes)
    rows = [[t.name, t.value, t.low, t.high, t.status] for t in report.baseline]
    folder.figure(
        "baseline",
        figure,
        rows,
        ["variable", "contribution", "low", "high", "status"],
        title="What the baseline columns contribute",
        told="Red bars add to the baseline term and green ones take from it; lines are intervals.",
    )


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # The object interface: it needs no display and leaves no global state behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _numbers(terms: Sequence[Term]) -> dict[str, dict[str, object]]:
    return {t.name: {"value": t.value, "se": t.se, "low": t.low, "high": t.high, "status": t.status} for t in terms}


def _rounded(row: Mapping[str, object]) -> dict[str, object]:
    return {key: _short(value) if isinstance(value, float) else value for key, value in row.items()}


def _short(value: float) -> float:
    return round(value, 5) if not 0 < abs(value) < 1e-3 else float(f"{value:.3g}")


def _flat(value: object, name: str = "") -> list[tuple[str, object]]:
    """Diagnostics as names and plain values, what is inside a dictionary under dotted names."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return [row for key, inner in value.items() for row in _flat(inner, f"{name}.{key}" if name else str(key))]
    return [(name, value)]
