"""What an explain run reports: tables, the waterfall of the aggregate terms, bars of the detailed ones, overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from explain.report import STATUS_MEANING, GapReport, Term
from recipes.running.files import write_text

if TYPE_CHECKING:
    from recipes.running.folder import RunFolder

UP, DOWN, FLAT = "tab:red", "tab:green", "tab:grey"  # a loss that grows is bad


def finish(folder: RunFolder, report: GapReport, extra: dict[str, Any]) -> None:
    """Write gap.json, figures, tables, report.html and result.json.

    Args:
        folder: The run folder.
        report: What was found.
        extra: What the run itself knows, such as how many rows were explained.
    """
    write_text(folder.path / "gap.json", report.to_json() + "\n")
    if report.aggregate:
        _draw_waterfall(folder, report)
    for name, terms in (("covariate", report.covariate), ("outcome", report.outcome)):
        if any(not math.isnan(term.value) for term in terms):
            _draw_shares(folder, name, terms, report.level)
    rows = [_rounded(row) for row in report.table()]
    values = [
        {"kind": v.kind, "subset": ", ".join(v.subset) or "(none)", "value": v.value, "se": v.se, "status": v.status}
        for v in report.values
    ]
    met = {row["status"] for row in rows}
    meanings = [{"status": name, "meaning": meaning} for name, meaning in STATUS_MEANING.items() if name in met]
    numbers = [{"diagnostic": name, "value": value} for name, value in _flat(report.diagnostics)]
    tables: dict[str, list[dict[str, Any]]] = {
        "Terms": rows,
        "What the statuses mean": meanings,
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
        "covariate": _numbers(report.covariate),
        "outcome": _numbers(report.outcome),
        **extra,
    }
    folder.finish(result, {title: table for title, table in tables.items() if table}, summary=_summary(report))
    folder.say(report.to_text())


def _summary(report: GapReport) -> str:
    start, end = report.ends
    text = (
        f"Mean {report.loss} loss: {start} {report.totals[start]:.4f}, {end} {report.totals[end]:.4f}, gap "
        f"{report.totals['gap']:+.4f}. {report.sign} Intervals are at {100 * report.level:g} %."
    )
    if report.aggregate:
        largest = max(report.aggregate, key=lambda term: abs(term.value))
        text += (
            f" The largest term is '{largest.name}' ({largest.value:+.4f} [{largest.low:+.4f}, {largest.high:+.4f}])."
        )
    return text + (
        " Shares by variable are shares of explained variation of the shift across inputs, not of the mean gap: a "
        "variable can have a large share of a term that is near 0."
    )


def _draw_waterfall(folder: RunFolder, report: GapReport) -> None:
    start, end = report.ends
    names = [start, *(term.name for term in report.aggregate), end]
    levels = [report.totals[start]]
    for term in report.aggregate:
        levels.append(levels[-1] + term.value)
    figure, axes = _figure(7, 3.6)
    for place, term in enumerate(report.aggregate, start=1):
        before, after = levels[place - 1], levels[place]
        axes.bar(place, after - before, bottom=before, color=UP if term.value > 0 else DOWN, alpha=0.7)
        error = [[max(0.0, term.value - term.low)], [max(0.0, term.high - term.value)]]
        axes.errorbar(place, after, yerr=error, color="black", capsize=4, linewidth=1)
        axes.plot([place - 0.6, place + 0.4], [before, before], color="grey", linewidth=0.6)
    for place, level in ((0, levels[0]), (len(names) - 1, levels[-1])):
        axes.plot([place - 0.4, place + 0.4], [level, level], color=FLAT, linewidth=3)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel(f"mean {report.loss} loss")
    axes.set_title(report.sign, fontsize=8)
    rows = [[t.name, t.value, t.low, t.high, level] for t, level in zip(report.aggregate, levels[1:], strict=True)]
    folder.figure("waterfall", figure, rows, ["term", "value", "low", "high", "level_after"])


def _draw_shares(folder: RunFolder, name: str, terms: Sequence[Term], level: float) -> None:
    shown = [term for term in reversed(terms) if not math.isnan(term.value)]
    figure, axes = _figure(7, 0.4 * len(shown) + 1.2)
    finite = [bound for term in shown for bound in (term.low, term.high) if math.isfinite(bound)]
    reach = max([1.0, *map(abs, finite), *(abs(term.value) for term in shown)])
    for place, term in enumerate(shown):
        low, high = max(term.low, -2 * reach), min(term.high, 2 * reach)  # an infinite end leaves the picture
        axes.barh(place, term.value, color="tab:blue" if term.status == "ok" else FLAT, alpha=0.7)
        axes.plot([low, high], [place, place], color="black", linewidth=1)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(max(-2.0, min([0.0, *finite]) - 0.1), min(3.0, max([1.0, *finite]) + 0.1))
    axes.set_yticks(range(len(shown)), [t.name if t.status == "ok" else f"{t.name} ({t.status})" for t in shown])
    axes.set_xlabel(f"share of the {name} shift explained, with {100 * level:g} % interval")
    rows = [[t.name, t.value, t.low, t.high, t.status] for t in terms]
    folder.figure(name, figure, rows, ["variable", "share", "low", "high", "status"])


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # The object interface: it needs no display and leaves no global state behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _numbers(terms: Sequence[Term]) -> dict[str, dict[str, Any]]:
    return {t.name: {"value": t.value, "se": t.se, "low": t.low, "high": t.high, "status": t.status} for t in terms}


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Diagnostics as names and plain values, what is inside a dictionary under dotted names."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return [row for key, inner in value.items() for row in _flat(inner, f"{name}.{key}" if name else str(key))]
    return [(name, value)]
