"""What every benchmark shares: the results contract and timing by interleaved rounds.

A script ``benchmarks/<name>.py`` is run as ``python -m benchmarks.<name>`` and ends with :func:`write_results`, which
writes ``benchmarks/results/<name>.json``::

    {"command": "python -m benchmarks.<name>", "versions": {"python": "...", "torch": "...", ...},
     "machine": {"cores": 2, "ram_gb": 24.0}, "seeds": 3,
     "figures": {"<figure>": 1.5, "<other>": {"value": 1.5, "low": 1.4, "high": 1.6}},
     "tables": {"<table>": [{"<column>": ..., ...}, ...]}}

A timing claim is a ratio of two times from the same rounds of :func:`interleaved_times`, never a bare time.
"""

import importlib.metadata
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binom

RESULTS = Path(__file__).parent / "results"
PACKAGES = [
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "lightning",
    "transformers",
    "peft",
    "scikit-learn",
    "stable-baselines3",
    "torchdistill",
    "mpe2",
    "open-spiel",
    "mujoco",
]
FIELDS = ("command", "versions", "machine", "seeds", "figures", "tables")

Figure = float | Mapping[str, float]
Table = Sequence[Mapping[str, Any]]


def write_results(name: str, figures: Mapping[str, Figure], tables: Mapping[str, Table], seeds: int) -> Path:
    """Write a benchmark's results file whole or not at all.

    Args:
        name: Name of the script without ``.py``.
        figures: Numbers that README and docs may quote; a value, or a value with ``low`` and ``high``.
        tables: Rows behind the figures.
        seeds: How many seeds every figure rests on.

    Returns:
        Path of the file.

    Raises:
        ValueError: If the results break the contract.
    """
    results = {
        "command": f"python -m benchmarks.{name}",
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        },
        "seeds": seeds,
        "figures": dict(figures),
        "tables": {title: list(rows) for title, rows in tables.items()},
    }
    if problem := breach(results, name):
        raise ValueError(f"the results of '{name}' break the contract: {problem}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def breach(results: Mapping[str, Any], name: str) -> str | None:
    """The first way in which a results file breaks the contract, or None.

    Args:
        results: The parsed file.
        name: Its name without ``.json``.

    Returns:
        A sentence without its full stop, or None.
    """
    if set(results) != set(FIELDS):
        return f"its fields are {sorted(results)}, not {sorted(FIELDS)}"
    if results["command"] != f"python -m benchmarks.{name}":
        return f"its command is '{results['command']}', not 'python -m benchmarks.{name}'"
    if set(results["machine"]) != {"cores", "ram_gb"} or "python" not in results["versions"]:
        return "machine needs exactly cores and ram_gb, and versions needs python"
    if not isinstance(results["seeds"], int) or results["seeds"] < 1:
        return f"seeds is {results['seeds']!r}, not a count of at least 1"
    if not results["figures"]:
        return "it has no figure"
    for title, figure in results["figures"].items():
        values = figure if isinstance(figure, Mapping) else {"value": figure}
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values.values()):
            return f"the figure '{title}' is {figure!r}, not made of finite numbers"
        if isinstance(figure, Mapping) and (
            set(values) != {"value", "low", "high"} or not values["low"] <= values["value"] <= values["high"]
        ):
            return f"the figure '{title}' is {figure!r}, not a value between low and high"
    if not all(isinstance(row, Mapping) for rows in results["tables"].values() for row in rows):
        return "a table is not a list of rows by column"
    return None


def interleaved_times(
    functions: Mapping[str, Callable[[], Any]], *, repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of several functions, measured in rounds in which each runs once.

    Other work on the machine then slows all of them alike, and ratios within a round stay meaningful.

    Args:
        functions: What to time, by name.
        repeats: Measured rounds, at least 1.
        warm_up: Rounds before them that are not counted.

    Returns:
        Seconds by name, one for each measured round.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def median_ratio(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """Median of the ratios round by round, with a 95 % interval for the median from order statistics.

    Args:
        slower: Seconds of the numerator by round.
        faster: Seconds of the denominator by round.

    Returns:
        ``{"value": median, "low": ..., "high": ...}``; with fewer than 6 rounds the interval is the range.
    """
    ratios = sorted(a / b for a, b in zip(slower, faster, strict=True))
    skipped = max(0, int(binom.ppf(0.025, len(ratios), 0.5)) - 1)
    return {"value": statistics.median(ratios), "low": ratios[skipped], "high": ratios[-1 - skipped]}


def _versions() -> dict[str, str]:
    """Versions of the packages a figure can depend on, where they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
