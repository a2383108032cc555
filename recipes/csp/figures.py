"""Figures and replays of a csp run."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recipes.running.files import write_bytes
from recipes.running.marks import mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import nn

    from recipes.csp.games import Scenario
    from recipes.running.folder import RunFolder
    from rl.csp.module import CSPModule
    from rl.csp.worst_case import WorstCase
    from rl.envs.hybrid import State
    from rl.envs.markov_game import BatchedGame


FAMILIES = {"csp": "CSP, C", "rnr": "RNR, p", "dbr": "DBR, P"}
FRONTIER_TOLD = (
    "Policies further up gain more, and those further right lose less in the worst case; a line joins the settings of "
    "one method."
)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # The object interface: it needs no display and leaves no global state behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def draw_ladder(folder: RunFolder, ladder: Sequence[Mapping[str, Any]]) -> None:
    """Bars of the value ladder."""
    figure, axes = _figure(6, 2.6)
    axes.barh([f"{row['step']} ({row['how']})" for row in ladder], [row["value"] for row in ladder], color="tab:blue")
    axes.invert_yaxis()
    axes.set_xlabel("our discounted return")
    folder.figure(
        "ladder",
        figure,
        [list(row.values()) for row in ladder],
        ["step", "value", "how"],
        title="The value of every step",
        told="The further right a bar ends, the larger the return; behind each name stands how the value was found.",
    )


def draw_coverage(folder: RunFolder, coverage: Sequence[Mapping[str, Any]]) -> None:
    """How often each policy leaves the data."""
    figure, axes = _figure(6, 0.4 * len(coverage) + 1)
    left = np.zeros(len(coverage))
    titles = [title for title in coverage[0] if title != "policy"]
    for title, colour in zip(titles, ("tab:red", "tab:orange", "tab:olive", "tab:green"), strict=True):
        shares = np.array([row[title] for row in coverage])
        axes.barh([row["policy"] for row in coverage], shares, left=left, color=colour, label=title)
        left += shares
    axes.set_xlabel("share of the target's steps, by how often the data saw the state")
    axes.legend(fontsize=7)
    folder.figure(
        "coverage",
        figure,
        [list(row.values()) for row in coverage],
        list(coverage[0]),
        title="How often each policy leaves the data",
        told="The parts of a bar sum to 1; the more of it is red, the more often the policy meets states that the data "
        "never saw.",
    )


def draw_histories(folder: RunFolder, histories: Mapping[str, Sequence[Mapping[str, float]]], slack: float) -> None:
    """Consistency of the proxies and our return over the iterations."""
    within = "Proxies below the black line agree with the data as well as is asked of them."
    rising = "One line a policy; a line that still rises has not learned all it can."
    for name, key, label, told in (
        ("consistency", "excess", "excess of the data's NLL under the proxy, nats", within),
        ("learning", "return", "our return in training", rising),
    ):
        figure, axes = _figure(6.5, 3.5)
        rows = []
        for row, history in histories.items():
            points = [(point["iteration"], point[key]) for point in history if key in point]
            if points:
                axes.plot(*zip(*points, strict=True), label=row, linewidth=2 if row == "csp" else 1)
                rows += [[row, *point] for point in points]
        if key == "excess":
            axes.axhline(slack, color="black", linewidth=0.8)
            axes.set_yscale("symlog", linthresh=slack)
        axes.set_xlabel("iteration")
        axes.set_ylabel(label)
        axes.legend(fontsize=7)
        title = f"{label[0].upper()}{label[1:]}, over iterations"
        folder.figure(name, figure, rows, ["row", "iteration", key], title=title, told=told)


def draw_frontier(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Obtained against the worst value."""
    figure, axes = _figure(5.5, 4)
    shown: list[tuple[str, float, float]] = []
    for row in rows:
        worst = row.get("worst exact", row["worst estimated (optimistic)"])
        gain = row["obtained"] if row["obtained"] is not None else row["against model"]
        if worst is not None:
            shown.append((row["policy"], worst, gain))
    draw_policies(axes, [(FAMILIES.get(row[0].split()[0], row[0]), *row) for row in shown])
    axes.set_xlabel("worst value against targets that agree with the data")
    axes.set_ylabel("obtained")
    folder.figure(
        "frontier",
        figure,
        shown,
        ["policy", "worst", "obtained"],
        title="What is obtained against what is risked",
        told=FRONTIER_TOLD,
    )


def draw_policies(axes: Axes, policies: Iterable[tuple[str, str, float, float]]) -> None:
    """Policies by two values: a colour and a shape for every method, and a line through its settings.

    Args:
        axes: Where they are drawn.
        policies: Method, name, and the values to the right and up.
    """
    methods: dict[str, list[tuple[float, float]]] = {}
    for method, name, right, up in policies:
        methods.setdefault(method, []).append((right, up))
        axes.annotate(name, (right, up), fontsize=6, xytext=(3, 3), textcoords="offset points")
    for number, (method, places) in enumerate(methods.items()):
        colour, shape = mark(number)
        axes.plot(
            *zip(*sorted(places), strict=True), color=colour, marker=shape, markersize=5, linewidth=1, label=method
        )
    axes.legend(fontsize=7)


def replay(folder: RunFolder, scenario: Scenario, problem: CSPModule, search: WorstCase) -> dict[str, str]:
    """One episode against every named adversary, as `replays/<name>.gif`; nothing where the game draws nothing.

    Returns:
        The files, relative to the run folder, by the adversary.
    """
    others = {a.name: a.policy for a in search.adversaries}
    if target := scenario.true_target():
        others["true target"] = target
    made = {}
    for name, other in others.items():
        try:
            picture = film(problem.game, problem.agent, other)
        except NotImplementedError:
            return {}
        path = folder.path / "replays" / f"{name.replace(' ', '-')}.gif"
        write_bytes(path, picture)
        made[name] = str(path.relative_to(folder.path))
    return made


def film(game: BatchedGame, agent: nn.Module, other: nn.Module, seed: int = 0) -> bytes:
    """One episode as the bytes of a GIF.

    Args:
        game: What is played.
        agent: Our policy.
        other: The target's.
        seed: Of the episode.

    Raises:
        NotImplementedError: If the game draws nothing.
    """
    import torch
    from PIL import Image

    from rl.csp.rollout import play

    frames: list[NDArray[np.uint8]] = []
    play(game, (agent, other), 1, torch.Generator().manual_seed(seed), watch=partial(_keep_frame, game, frames))
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, "gif", save_all=True, append_images=images[1:], duration=300, loop=0)
    return buffer.getvalue()


def _keep_frame(game: BatchedGame, frames: list[NDArray[np.uint8]], state: State) -> None:
    frames.append(game.frame(state, 0))
