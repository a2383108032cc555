"""What a merge run reports: rows of the table, the headline numbers, figures, and bytes of every alternative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.merge.baselines import DATA, DYNAMIC
from recipes.merge.warnings import warnings_of
from recipes.running.marks import mark
from twinmerge.methods import methods

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recipes.data.splits import TextTask
    from recipes.merge.baselines import Tuned
    from recipes.merge.evaluation import Scores
    from recipes.running.folder import RunFolder
    from twinmerge.folders import Expert

EXPLAINED = {
    "experts": "every input by its own expert",
    "pretrained": "frozen base with the experts' heads",
    "linear probe": "frozen base with a linear probe a task",
    **dict.fromkeys(methods(), "static"),
    **DATA,
    **DYNAMIC,
    "routed": "head named, mixture from the input alone",
    "routed, head routed too": "nothing named; a wrong head counts as wrong",
    "routed by knn": "head named, mixture by votes of the nearest training inputs",
    "emr": "EMR-Merging, head named, told the router's first choice",
    "oracle": "mixture told the true task",
}


def result(
    rows: Mapping[str, Scores],
    static: Tuned,
    routing: Mapping[str, float],
    sizes: Mapping[str, int],
    tasks: Sequence[TextTask] = (),
) -> dict[str, Any]:
    """The numbers the run is for, as plain values.

    Args:
        rows: test scores by row name; has `experts` and `pretrained`.
        static: method -> (normalised validation score of its best candidate, that candidate's options).
        routing: the router's accuracy and temperature.
        sizes: bytes by row name.
        tasks: for the warnings about their metrics.
    """
    experts, base = rows["experts"], rows["pretrained"]
    table = {}
    for name, row in rows.items():
        recovered = row.recovered(experts, base)
        table[name] = {
            "mean": row.mean,
            "normalised": row.normalised(experts),
            "gap_recovered": sum(recovered.values()) / len(recovered) if recovered else None,
            "gap_recovered_tasks": recovered,
            "ms_per_input": row.milliseconds,
            "bytes": sizes.get(name),
            "tasks": row.tasks,
        }
    best = max(static, key=lambda m: static[m][0])
    return {
        "rows": table,
        "tuned": {m: options for m, (_, options) in static.items()},
        "best_static": best,
        "best_static_normalised": table[best]["normalised"],
        "routed_normalised": table["routed"]["normalised"],
        "routed_gap_recovered": table["routed"]["gap_recovered"],
        "router": dict(routing),
        "warnings": warnings_of(rows, best, tasks, sizes),
    }


def sizes(base: int, experts: Mapping[str, Expert], target: Path) -> dict[str, int]:
    """Bytes that each alternative needs: one model, all experts (and the base under adapters), or the twin folder."""
    one = dict.fromkeys(EXPLAINED, base)
    every = sum(expert.bytes for expert in experts.values())
    routed = dict.fromkeys(("routed", "routed, head routed too", "oracle"), _weights(target))
    return {**one, **routed, "experts": every + base * any(expert.terms for expert in experts.values())}


def _weights(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*.safetensors"))


def places(target: Path) -> dict[str, int]:
    """Where the bytes of a twin folder are.

    The exclusive experts are told apart into factors and what they keep whole: norms, biases, modules without factors.
    """
    from twinmerge.checkpoints import read_header
    from twinmerge.headers import size_of

    found = dict.fromkeys(("shared expert", "factors", "kept whole", "heads", "router"), 0)
    for file in sorted(target.rglob("*.safetensors")):
        part = file.relative_to(target).parts[0]
        if part != "experts":
            found[part if part in found else "shared expert"] += file.stat().st_size
            continue
        for name, entry in read_header(file).items():
            factor = ".lora_" in name and not name.endswith("lora_B.bias")
            found["factors" if factor else "kept whole"] += size_of(entry)
    return found


def finish(
    folder: RunFolder,
    outcome: dict[str, Any],
    residuals: Mapping[str, Mapping[str, float]],
    confusion: list[list[float]],
    explained: Mapping[str, str] = EXPLAINED,
    more: Mapping[str, list[dict[str, Any]]] | None = None,
) -> None:
    """Write figures, tables, report.html and result.json.

    Args:
        folder: of the run.
        outcome: of `result`.
        residuals: of the truncation, by task and parameter.
        confusion: mean mixture of each task's test inputs.
        explained: what each row is.
        more: further tables by title.
    """
    table = [
        {
            "row": name,
            "what": explained.get(name, ""),
            "mean": row["mean"],
            "normalised": row["normalised"],
            "gap recovered": row["gap_recovered"],
            "ms per input": row["ms_per_input"],
            "MB": None if row["bytes"] is None else row["bytes"] / 1e6,
        }
        for name, row in outcome["rows"].items()
    ]
    tasks = list(outcome["rows"]["experts"]["tasks"])
    raw = [{"row": name, **row["tasks"]} for name, row in outcome["rows"].items()]
    _draw_scores(folder, table)
    _draw_tasks(folder, raw, tasks)
    _draw_confusion(folder, confusion, tasks)
    _draw_residuals(folder, residuals)
    routed = outcome["rows"]["routed"]
    gap = (
        ""
        if routed["gap_recovered"] is None
        else f", {routed['gap_recovered']:.1%} of the gap to the experts recovered"
    )
    summary = (
        f"Routed twin: {routed['normalised']:.1%} of the experts{gap}. Best static merge tuned on validation "
        f"({outcome['best_static']}): {outcome['best_static_normalised']:.1%}. The router names the task of "
        f"{outcome['router']['accuracy']:.1%} of the test inputs."
    )
    tuned = [{"method": m, **o} for m, o in outcome["tuned"].items()]
    tables = {"Summary": table, "Raw scores by task": raw, "Tuned on validation": tuned, **(more or {})}
    if parts := outcome.get("twin_bytes"):
        whole = sum(parts.values())
        tables["Bytes of the twin"] = [
            {"part": part, "MB": size / 1e6, "share": size / whole} for part, size in parts.items()
        ]
    told = " ".join((summary, *outcome["warnings"]))
    folder.finish(outcome, tables, summary=told)
    folder.say(told)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # The object interface: it needs no display and leaves no global state behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _draw_scores(folder: RunFolder, table: list[dict[str, Any]]) -> None:
    shown = sorted(table, key=lambda r: r["normalised"])
    figure, axes = _figure(7, 0.35 * len(shown) + 1)
    colours = ["tab:orange" if r["row"].startswith("routed") else "tab:grey" for r in shown]
    axes.barh([r["row"] for r in shown], [100 * r["normalised"] for r in shown], color=colours)
    axes.axvline(100, color="black", linewidth=0.8)
    axes.set_xlabel("mean score, % of the experts (test)")
    folder.figure(
        "normalised",
        figure,
        [[r["row"], r["normalised"]] for r in shown],
        ["row", "normalised"],
        title="Every row against the experts",
        told="The line at 100 % is every input answered by its own expert; the twin's rows are orange.",
    )


def _draw_tasks(folder: RunFolder, raw: list[dict[str, Any]], tasks: list[str]) -> None:
    figure, axes = _figure(max(6, 1.3 * len(tasks)), 4)
    for number, row in enumerate(raw):  # one column a task, its rows side by side
        places = [column + 0.7 * (number / max(len(raw) - 1, 1) - 0.5) for column in range(len(tasks))]
        colour, shape = mark(number)
        scores = [row[t] for t in tasks]
        axes.plot(places, scores, shape, color=colour, markersize=5, label=row["row"])
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylabel("test score")
    if max(row[task] for row in raw for task in tasks) > 2:  # a perplexity beside shares
        axes.set_yscale("symlog", linthresh=1)
    axes.tick_params(axis="x", rotation=30)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    folder.figure(
        "tasks",
        figure,
        [[r["row"], *(r[t] for t in tasks)] for r in raw],
        ["row", *tasks],
        title="Test scores by task",
        told="One column a task, in it the rows side by side in the order of the legend.",
    )


def _draw_confusion(folder: RunFolder, confusion: list[list[float]], tasks: list[str]) -> None:
    figure, axes = _figure(5, 4.5)
    image = axes.imshow(confusion, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right")
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_xlabel("mean weight of the expert")
    axes.set_ylabel("true task of the input")
    figure.colorbar(image)
    folder.figure(
        "mixture",
        figure,
        [[t, *row] for t, row in zip(tasks, confusion, strict=True)],
        ["task", *tasks],
        title="What the router mixes",
        told="On a dark diagonal, inputs are given to the expert of their own task; dark cells beside it are tasks "
        "that the router takes for one another.",
    )


def _draw_residuals(folder: RunFolder, residuals: Mapping[str, Mapping[str, float]]) -> None:
    figure, axes = _figure(6, 3.5)
    for task, values in residuals.items():
        axes.plot(sorted(values.values()), label=task)
    axes.set_xlabel("matrices, sorted")
    axes.set_ylabel("relative residual of the truncation")
    axes.legend(fontsize=7, ncols=2)
    rows = [[task, name, value] for task, values in residuals.items() for name, value in values.items()]
    folder.figure(
        "residuals",
        figure,
        rows,
        ["task", "parameter", "residual"],
        title="What the truncation leaves out",
        told="Every matrix of every exclusive expert: 0 is kept whole, 1 is lost; a higher rank lowers the curves.",
    )
