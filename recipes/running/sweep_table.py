"""The table of a sweep: every number of its runs, by combination, as a mean over seeds with its interval."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.errors import RecipeError
from recipes.front.schema import did_you_mean
from recipes.running.files import write_text
from recipes.running.intervals import half_interval

if TYPE_CHECKING:
    from recipes.running.folder import RunFolder

MOST_LINES = 12  # that a figure has room for
ENDS = ("low", "high")  # of an interval; one of them is missing where it is infinite, both where there is none

Settings = Mapping[str, str]
Line = dict[str, Any]
Done = tuple[Settings, int, dict[str, float], Path]  # settings, seed, every number, folder


def numbers(result: object, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a result by its dotted key, lists left out.

    >>> dict(numbers({"a": 1, "b": {"c": 0.5, "d": [1, 2], "e": True, "f": None}}))
    {'a': 1.0, 'b.c': 0.5}
    """
    if isinstance(result, Mapping):
        for name, value in result.items():
            yield from numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(result, int | float) and not isinstance(result, bool):
        yield key, float(result)


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean of independent runs with its interval, which one run has not."""
    mean, half = statistics.fmean(values), half_interval(values)
    return {"mean": mean} if half is None else {"mean": mean, "low": mean - half, "high": mean + half}


def finish(
    folder: RunFolder,
    cells: Iterable[tuple[Settings, int, Path]],
    asked: Sequence[str],
    more: Mapping[str, object] | None = None,
    told: str = "",
) -> None:
    """Write `runs.csv` with every number of every run, and the table of those asked for: page and `result.json`.

    Args:
        folder: The sweep's.
        cells: Settings, seed and folder of every run; those without a result are left out.
        asked: Dotted keys of results, or of all numbers below one; those at the top of a result where none is named,
            else all.
        more: Further entries of `result.json`.
        told: What was found, for the page.

    Raises:
        RecipeError: For a key that no result has.
    """
    done = [
        (settings, seed, dict(numbers(json.loads((place / "result.json").read_text(encoding="utf-8")))), place)
        for settings, seed, place in cells
        if (place / "result.json").is_file()
    ]
    if not done:
        return
    found = list(dict.fromkeys(name for _, _, values, _ in done for name in values))
    _write_runs(folder.path / "runs.csv", done)
    told_with = [name.removesuffix(".value") for name in found if name.endswith(".value")]
    own = [name for name in told_with if {f"{name}.low", f"{name}.high"} <= set(found)]
    for name in own:  # a number with an interval of its own is one number
        found[found.index(f"{name}.value")] = name
        found = [other for other in dict.fromkeys(found) if other not in (f"{name}.low", f"{name}.high")]
    groups = {key: [name for name in found if name == key or name.startswith(f"{key}.")] for key in asked}
    for key, names in groups.items():
        if not names:
            raise RecipeError(f"--show {key}: no result has this number; {did_you_mean(key, found)}")
    groups = groups or {name: [name] for name in [name for name in found if "." not in name] or found}
    shown = list(dict.fromkeys(name for names in groups.values() for name in names))
    rows = list(_rows(done, shown, own))
    for key, names in groups.items():
        _draw(folder, key, names, rows)
    runs = [
        {**settings, "seed": seed, "folder": str(place.relative_to(folder.path))} for settings, seed, _, place in done
    ]
    table = [{key: value for key, value in row.items() if not isinstance(value, Mapping)} | _flat(row) for row in rows]
    found_out = {"rows": rows, "runs": runs, **(more or {})}
    folder.finish(found_out, {"Mean over seeds, 95 % interval": table, "Runs": runs}, summary=told)
    for line in _lines(table):
        folder.say(line)


def _rows(done: Sequence[Done], shown: Sequence[str], own: Sequence[str]) -> Iterator[Line]:
    """A line a combination; a number that a run tells with an interval keeps that where there is one run."""
    combinations: dict[tuple[tuple[str, str], ...], list[dict[str, float]]] = {}
    for settings, _, values, _ in done:
        combinations.setdefault(tuple(settings.items()), []).append(values)
    for chosen, runs in combinations.items():
        row: Line = {**dict(chosen), "runs": len(runs)}
        for name in shown:
            keys = (name, f"{name}.value") if name in own else (name,)  # a run may tell the number alone
            told = [(values, next((values[key] for key in keys if key in values), math.nan)) for values in runs]
            known = [(values, number) for values, number in told if math.isfinite(number)]
            row[name] = interval([number for _, number in known]) if known else {}
            if name in own and len(known) == 1:
                row[name] |= {end: known[0][0][f"{name}.{end}"] for end in ENDS if f"{name}.{end}" in known[0][0]}
        yield row


def _flat(row: Line) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, found in row.items():
        if isinstance(found, Mapping):
            flat[name] = found.get("mean")
            flat |= {f"{name} {end}": found[end] for end in ENDS if end in found}
    return flat


def _lines(table: Sequence[Line]) -> Iterator[str]:
    """The table for a terminal."""
    names = list(dict.fromkeys(name for row in table for name in row))
    text = [names, *([f"{v:.4g}" if isinstance(v := row.get(n), float) else str(v) for n in names] for row in table)]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    for line in text:
        yield "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()


def _write_runs(path: Path, done: Sequence[Done]) -> None:
    keys = list(dict.fromkeys(key for settings, *_ in done for key in settings))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, "seed", "number", "value"])
    for settings, seed, values, _ in done:
        writer.writerows(
            [*(settings.get(key, "") for key in keys), seed, name, value] for name, value in values.items()
        )
    write_text(path, text.getvalue())


def _draw(folder: RunFolder, key: str, names: Sequence[str], rows: Sequence[Line]) -> None:
    """Numbers over the last key that is varied, where its values are numbers; a line for each, and for other keys."""
    varied = [name for name, value in rows[0].items() if isinstance(value, str)]
    lines: dict[str, list[tuple[float, Mapping[str, float]]]] = {}
    try:
        for row in rows:
            others = [f"{name} {row[name]}" for name in varied[:-1]]
            for name in names:
                parts = [name.removeprefix(f"{key}.")] * (len(names) > 1) + others
                if row[name]:
                    lines.setdefault(", ".join(parts) or key, []).append((float(row[varied[-1]]), row[name]))
    except (ValueError, IndexError):
        return
    places = {place for line in lines.values() for place, _ in line}
    if len(places) < 2 or len(lines) > MOST_LINES:
        return
    from matplotlib.figure import Figure

    figure, table = Figure(figsize=(6, 3.6)), []
    axes = figure.add_subplot()
    for label, line in lines.items():
        known = sorted(line, key=lambda point: point[0])
        means = [found["mean"] for _, found in known]
        spans = [[abs(found["mean"] - found.get(end, found["mean"])) for _, found in known] for end in ENDS]
        axes.errorbar([place for place, _ in known], means, yerr=spans, marker="o", capsize=3, label=label)
        named = [label] if len(lines) > 1 else []
        table += [[place, *named, found["mean"], found.get("low"), found.get("high")] for place, found in known]
    if min(places) > 0 and max(places) / min(places) >= 10:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(sorted(places), [f"{place:g}" for place in sorted(places)])
    axes.set(xlabel=varied[-1], ylabel=key)
    columns = [varied[-1], "mean", "low", "high"]
    if len(lines) > 1:
        axes.legend(fontsize=8)
        columns.insert(1, "line")
    file = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in key)
    told = "Means over seeds; the bars are 95 % Student intervals."
    folder.figure(file, figure, table, columns, title=f"{key} over {varied[-1]}", told=told)
