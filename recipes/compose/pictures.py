"""Figures of a composition: its stages with scores and bytes, and what every step loses by task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from recipes.compose.story import Part, Row
    from recipes.running.folder import RunFolder

STAGES = "stages"  # name of the figure that is the map of the page
BOX = {"boxstyle": "round,pad=0.5", "facecolor": "#f6f8fa", "edgecolor": "#57606a"}


def draw_stages(folder: RunFolder, scores: Mapping[str, Row], students: Iterable[str]) -> None:
    """Experts, twin and students as boxes, with score and size of each."""
    from matplotlib.figure import Figure

    names = list(students)
    figure = Figure(figsize=(8, max(2.2, 1.1 * len(names) + 0.6)))
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(-0.6, 2.6)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    middle = -(len(names) - 1) / 2
    places = {"experts": (0.0, middle), "twin": (1.0, middle)} | {name: (2.0, -row) for row, name in enumerate(names)}
    for name, place in places.items():
        row = scores[name]
        megabytes = (row["bytes"] or 0) / 1e6
        size = f"\n{megabytes:,.0f} MB" if megabytes >= 10 else f"\n{megabytes:.2g} MB" if megabytes else ""
        axes.annotate(f"{name}\n{row['mean']:.3f}{size}", place, ha="center", va="center", bbox=BOX)
    for start, end in [("experts", "twin"), *(("twin", name) for name in names)]:
        _arrow(axes, places[start], places[end])
    rows = [[name, scores[name]["mean"], scores[name]["bytes"]] for name in places]
    folder.figure(
        STAGES,
        figure,
        rows,
        ["model", "mean", "bytes"],
        title="From experts to students",
        told="The mean test score over tasks and the bytes of each; the experts' are those of all of them together.",
    )


def draw_contributions(folder: RunFolder, split: Mapping[tuple[str, str], list[Part]], loss: str) -> None:
    """What every task adds to the loss at every step, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * sum(map(len, split.values())) + 1.2), layout="constrained")
    axes = figure.subplots()
    rows: list[list[object]] = []
    ticks: list[str] = []
    for (first, second), found in split.items():
        for part in found:
            place = -len(rows)
            colour = "tab:red" if part.value > 0 else "tab:green"
            axes.barh(place, part.value, color=colour, xerr=part.half or None)
            ticks.append(f"{first} to {second}: {part.task}")
            rows.append([f"{first} to {second}", part.task, part.value, part.half])
    axes.set_yticks([-place for place in range(len(rows))], ticks)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"{loss} loss added")
    folder.figure(
        "contributions",
        figure,
        rows,
        ["step", "task", "loss_added", "half_interval"],
        title="What every step loses, by task",
        told="The bars of one step sum to the difference of the two models' mean losses; whiskers are 95 % intervals "
        "over test inputs, and green bars are tasks on which the later model is the better one.",
    )


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": "#57606a", "shrinkA": 45, "shrinkB": 45}
    axes.annotate("", end, start, arrowprops=style)
