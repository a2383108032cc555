"""Pictures of a report: waterfall of the aggregate terms, forests of shares, overlap; and a page that shows them."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from explain.report import STATUS_MEANING, GapReport, Term

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UP, DOWN, FLAT, SHARE = "tab:red", "tab:green", "tab:grey", "tab:blue"  # a loss that grows is bad
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child,td:nth-child(2){text-align:left}"
)


def draw(report: GapReport) -> Figure:
    """Waterfall, forests and overlap of a report, one below the other.

    Args:
        report: What to draw.

    Returns:
        A matplotlib figure; it needs no display and no pyplot.
    """
    from matplotlib.figure import Figure

    shares = [(name, [term for term in terms if not math.isnan(term.value)]) for name, terms in _shares(report)]
    shares = [(name, terms) for name, terms in shares if terms]
    chances = report.diagnostics.get("overlap", {}).get("chances", [[], []])
    heights = [3.4] * bool(report.aggregate)
    heights += [0.4 * len(report.baseline) + 1.2] * bool(report.baseline) + [
        0.4 * len(terms) + 1.2 for _, terms in shares
    ]
    heights += [2.0] * bool(chances[0])
    figure = Figure(figsize=(7, max(sum(heights), 1.0)), layout="constrained")
    if not heights:
        return figure
    every = list(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if report.aggregate:
        waterfall(report, every.pop(0))
    if report.baseline:
        contributions(report, every.pop(0))
    if chances[0]:
        overlapping(chances, every.pop())
    for axes, (name, terms) in zip(every, shares, strict=True):
        forest(terms, axes, f"share of the {name}, with {100 * report.level:g} % interval")
    return figure


def waterfall(report: GapReport, axes: Axes) -> None:
    """One bar a term, each beginning where the former ended, from the first total to the last."""
    start, end = report.ends
    names = [start, *(term.name for term in report.aggregate), end]
    levels = [report.totals[start]]
    for place, term in enumerate(report.aggregate, start=1):
        before, after = levels[-1], levels[-1] + term.value
        levels.append(after)
        axes.bar(place, term.value, bottom=before, color=UP if term.value > 0 else DOWN, alpha=0.7)
        error = [[max(0.0, term.value - term.low)], [max(0.0, term.high - term.value)]]
        axes.errorbar(place, after, yerr=error, color="black", capsize=4, linewidth=1)
        axes.plot([place - 0.6, place + 0.4], [before, before], color="grey", linewidth=0.6)
    for place, level in ((0, levels[0]), (len(names) - 1, levels[-1])):
        axes.plot([place - 0.4, place + 0.4], [level, level], color=FLAT, linewidth=3)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel(f"mean {report.loss} loss")
    axes.set_title(report.sign, fontsize=8)


def forest(terms: Sequence[Term], axes: Axes, label: str) -> None:
    """Shares with their intervals, the first on top; an interval that is too wide leaves the picture.

    Args:
        terms: Shares that were estimated.
        axes: Where to draw.
        label: Of the axis.
    """
    shown = list(reversed(terms))
    finite = [bound for term in shown for bound in (term.low, term.high) if math.isfinite(bound)]
    reach = max([1.0, *map(abs, finite), *(abs(term.value) for term in shown)])
    for place, term in enumerate(shown):
        axes.barh(place, term.value, color=SHARE if term.status == "ok" else FLAT, alpha=0.7)
        ends = [max(term.low, -2 * reach), min(term.high, 2 * reach)]
        axes.plot(ends, [place, place], color="black", linewidth=1)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(max(-2.0, min([0.0, *finite]) - 0.1), min(3.0, max([1.0, *finite]) + 0.1))
    axes.set_yticks(range(len(shown)), [t.name if t.status == "ok" else f"{t.name} ({t.status})" for t in shown])
    axes.set_xlabel(label)


def contributions(report: GapReport, axes: Axes) -> None:
    """What the baseline columns contribute to the baseline term, the first on top.

    Args:
        report: With contributions.
        axes: Where to draw.
    """
    shown = list(reversed(report.baseline))
    for place, term in enumerate(shown):
        axes.barh(place, term.value, color=UP if term.value > 0 else DOWN, alpha=0.7)
        axes.plot([term.low, term.high], [place, place], color="black", linewidth=1)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [t.name if t.status == "ok" else f"{t.name} ({t.status})" for t in shown])
    axes.set_xlabel(f"contribution to the baseline term (beyond the paper), with {100 * report.level:g} % interval")


def overlapping(chances: Sequence[Sequence[float]], axes: Axes) -> None:
    """How often rows of each domain look like the target: where the two hardly meet, nothing can be reweighted.

    Args:
        chances: Shares of the source and of the target by bins of equal width of P(target | features).
        axes: Where to draw.
    """
    edges = [place / len(chances[0]) for place in range(len(chances[0]) + 1)]
    for name, part, color in zip(("source", "target"), chances, (SHARE, UP), strict=True):
        axes.stairs(part, edges, fill=True, alpha=0.4, color=color, label=name)
    axes.set_xlabel("probability of the target given all features")
    axes.set_ylabel("share of rows")
    axes.legend(fontsize=8)


def page(report: GapReport) -> str:
    """A self-contained page: what was found in words, the picture, all terms, the subsets folded away.

    Args:
        report: What to show.

    Returns:
        HTML without scripts or links.
    """
    values = [
        {"shift": v.kind, "subset": ", ".join(v.subset) or "(none)", "value": v.value, "low": v.low, "high": v.high}
        | {"status": v.status}
        for v in report.values
    ]
    met = {row["status"] for row in report.table()} - {"ok"}
    meanings = "".join(f"<li><b>{name}</b>: {html.escape(STATUS_MEANING[name])}</li>" for name in sorted(met))
    parts = [
        f"<h1>Performance gap</h1><p>{html.escape(report.summary())}</p>",
        image(draw(report), "waterfall and shares"),
        f"<h2>Terms</h2>{table_of(report.table())}" + (f"<ul>{meanings}</ul>" if meanings else ""),
        f"<details><summary>Values of all subsets</summary>{table_of(values)}</details>" if values else "",
    ]
    return whole_page("Performance gap", parts)


def whole_page(title: str, parts: Sequence[str]) -> str:
    """A page of its own: a title and what stands on it, one part below the other."""
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
    return "\n".join([head, *parts]) + "</html>\n"


def image(figure: Figure, says: str) -> str:
    """A figure inside of a page."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    data = base64.b64encode(picture.getvalue()).decode()
    return f"<img alt='{says}' style='max-width:100%' src='data:image/png;base64,{data}'>"


def _shares(report: GapReport) -> list[tuple[str, tuple[Term, ...]]]:
    between = report.mode == "models"
    return [("covariate shift", report.covariate), ("difference" if between else "outcome shift", report.outcome)]


def table_of(rows: Sequence[dict[str, object]]) -> str:
    """Rows as a table of a page."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values()) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}" if not 0 < abs(value) < 1e-3 else f"{value:.3g}"
    return html.escape(str(value))
