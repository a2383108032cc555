"""Pictures of a curve: the gap and its terms from domain to domain; and a page that shows them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from explain.curve_report import CURVES, GapCurve, Point
from explain.picture import FLAT, SHARE, UP, image, table_of, whole_page
from explain.report import STATUS_MEANING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 24  # domains whose names fit on the axis
_GAPS = {"domains": "gap to the reference", "groups": "gap to the target"}


def draw(curve: GapCurve) -> Figure:
    """Gap, baseline, covariate and outcome term, one below the other on a common axis of domains or groups.

    Args:
        curve: What to draw.

    Returns:
        A matplotlib figure; it needs no display and no pyplot.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7.0, min(14.0, 0.35 * len(curve.reports))), 8), layout="constrained")
    for axes, name in zip(figure.subplots(len(CURVES), 1, sharex=True), CURVES, strict=True):
        line(curve.curve(name), axes, _GAPS[curve.kind] if name == "gap" else f"{name} term")
    return figure


def line(points: Sequence[Point], axes: Axes, label: str) -> None:
    """One number from domain to domain: thick intervals hold alone, thin ones with a band for all at once.

    Red marks stand where the number differs from 0 with all of the curve taken into account.

    Args:
        points: In the order of the domains.
        axes: Where to draw.
        label: Of the axis.
    """
    places = range(len(points))
    values = [point.value for point in points]
    axes.axhline(0, color="black", linewidth=0.8)
    axes.fill_between(places, [p.low for p in points], [p.high for p in points], color=SHARE, alpha=0.15, linewidth=0)
    axes.plot(places, values, color=SHARE, linewidth=1)
    for place, point in zip(places, points, strict=True):
        axes.plot([place, place], [point.low, point.high], color=FLAT, linewidth=0.8)
        axes.plot([place, place], [point.low_alone, point.high_alone], color=SHARE, linewidth=2.5, alpha=0.6)
        filled = "full" if point.status == "ok" else "none"
        axes.plot(place, point.value, "o", color=UP if point.moved else SHARE, fillstyle=filled, markersize=5)
    step = -(-len(points) // _NAMED) if points else 1
    shown = list(places)[::step]
    axes.set_xticks(shown, [points[place].domain for place in shown], rotation=45, ha="right", fontsize=8)
    axes.set_ylabel(label, fontsize=9)


def page(curve: GapCurve) -> str:
    """A self-contained page: what was found in words, the curves, all points, the shares folded away.

    Args:
        curve: What to show.

    Returns:
        HTML without scripts or links.
    """
    met = {point.status for point in curve.points} | {str(row["status"]) for row in curve.shares()}
    known = [name for name in STATUS_MEANING if name in met and name != "ok"]
    meanings = "".join(f"<li><b>{name}</b>: {html.escape(STATUS_MEANING[name])}</li>" for name in known)
    parts = [
        f"<h1>Performance gaps of {len(curve.reports)} {curve.kind}</h1><p>{html.escape(curve.summary())}</p>",
        image(draw(curve), "the gap and its terms by domain"),
        "<p>Thick bars are intervals of each number alone, thin bars and the band hold for all at once; red marks "
        "differ from 0; hollow marks have a status other than ok.</p>",
        f"<h2>Points</h2>{table_of(curve.table())}" + (f"<ul>{meanings}</ul>" if meanings else ""),
        f"<details><summary>Shares by variable, each interval alone</summary>{table_of(curve.shares())}</details>",
    ]
    return whole_page("Performance gaps", parts)
