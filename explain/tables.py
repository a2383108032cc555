"""The tables that are explained: as frames, their columns by name, and which columns play together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from explain.errors import ExplainError
from explain.functional.rows import Floats

Frames = Sequence[pd.DataFrame]

DOMAINS = ("source", "target")
RECALIBRATION = "recalibration"
LARGEST = 1e150  # of a number, and one over it the least range of a column: squares beyond are no numbers any more


def as_frame(table: object, role: str) -> pd.DataFrame:
    """A pandas DataFrame from a DataFrame, a mapping of columns, a `datasets.Dataset` or a matrix.

    Args:
        table: The data; columns of a matrix are named 0, 1, ...
        role: What it is called in messages.

    Raises:
        ExplainError: If it has no rows, two columns of one name, or is none of these.
    """
    if isinstance(table, pd.DataFrame):
        frame = table.reset_index(drop=True)
    elif isinstance(table, Mapping):
        frame = _from_mapping(table, role).reset_index(drop=True)
    elif hasattr(table, "to_pandas"):
        frame = table.to_pandas()
    elif np.ndim(np.asarray(table)) == 2:
        frame = pd.DataFrame(np.asarray(table))
    else:
        raise ExplainError(
            f"the {role} is a {type(table).__name__}, but a DataFrame, a mapping of columns, a datasets.Dataset or a "
            "matrix is needed"
        )
    if frame.empty:
        raise ExplainError(f"the {role} has {len(frame)} rows and {frame.shape[1]} columns: give at least one of each")
    if twice := list(frame.columns[frame.columns.duplicated()]):
        raise ExplainError(f"the {role} has several columns called '{twice[0]}': rename or drop all but one")
    return frame


def _from_mapping(table: Mapping[Hashable, object], role: str) -> pd.DataFrame:
    """Columns side by side; pandas columns by their index, where they have the same."""
    columns = {name: list(column) if np.ndim(column) > 1 else column for name, column in table.items()}  # type: ignore[arg-type,call-overload]
    series = [column for column in columns.values() if isinstance(column, pd.Series)]
    if any(len(one) != len(series[0]) or set(one.index) != set(series[0].index) for one in series):
        raise ExplainError(
            f"the columns of the {role} have different indexes, so that their rows do not belong together: make one "
            "DataFrame of them, or give them without an index"
        )
    try:
        return pd.DataFrame(columns)
    except ValueError as error:
        raise ExplainError(f"the columns of the {role} make no table ({error}): give each as many rows") from error


def find(frames: Frames, name: Hashable, use: str) -> list[pd.Series]:
    """A column of every table, as it is.

    Raises:
        ExplainError: If a table lacks it.
    """
    found = []
    for role, frame in zip(DOMAINS, frames, strict=False):
        if name not in frame.columns:
            some = ", ".join(map(str, frame.columns[:12]))
            raise ExplainError(f"the {role} has no column '{name}', named as {use}; its columns are {some}")
        found.append(frame[name])
    return found


def pick(frames: Frames, name: Hashable, use: str) -> list[pd.Series]:
    """A column of every table that must be complete.

    Raises:
        ExplainError: If a table lacks it or it has missing or infinite values.
    """
    found = find(frames, name, use)
    for role, column in zip(DOMAINS, found, strict=False):
        missing = int(column.isna().sum())
        if not missing and column.dtype.kind == "f":
            missing = int((~np.isfinite(column.to_numpy(np.float64))).sum())
        if missing:
            raise ExplainError(
                f"column '{name}' of the {role}, {use}, has {missing} missing or infinite values: drop those rows or "
                "fill them"
            )
    return found


def numbers(column: pd.Series, name: Hashable) -> Floats:
    """A complete column of numbers.

    Raises:
        ExplainError: If it holds something else.
    """
    if column.dtype.kind not in "fiub":
        raise ExplainError(f"column '{name}' holds {column.dtype} values, but numbers are needed")
    found = np.asarray(column.to_numpy(np.float64))
    check_size(found, name)
    return found


def check_size(values: Floats, name: Hashable) -> None:
    """Refuse numbers whose squares cannot be computed with; missing ones are left out.

    Raises:
        ExplainError: If one is too large, or all lie too close together.
    """
    present = values[~np.isnan(values)]
    if not len(present):
        return
    low, high = float(present.min()), float(present.max())
    if max(-low, high) > LARGEST:
        worst = high if high >= -low else low
        raise ExplainError(
            f"column '{name}' has the value {worst:g}, which is beyond {LARGEST:g}: rescale the column, or leave its "
            "rows empty where it stands for a missing value"
        )
    if 0 < high - low < 1 / LARGEST:
        raise ExplainError(f"column '{name}' has values from {low:g} to {high:g}, too close together: rescale it")


def read_weights(frames: Frames, name: Hashable) -> list[Floats]:
    """Weights of the rows, scaled to a mean of 1 in every table.

    Raises:
        ExplainError: If they are no positive numbers.
    """
    found = []
    for role, column in zip(DOMAINS, pick(frames, name, "the weight"), strict=False):
        weight = numbers(column, name)
        if len(weight) and weight.min() <= 0:
            raise ExplainError(
                f"column '{name}' of the {role} has the weight {weight.min():g}, but weights must be above 0: leave "
                "out rows that count nothing"
            )
        found.append(weight * (len(weight) / math.fsum(weight)) if len(weight) else weight)
    return found


def resolve_groups(
    columns: Sequence[Hashable],
    baseline: Sequence[Hashable],
    groups: Mapping[Hashable, object] | None,
    taken: set[Hashable],
) -> dict[str, list[Hashable]]:
    """Players by name: as given, or every column that is neither baseline nor taken, on its own.

    Raises:
        ExplainError: If there is no player, a column plays twice, or two players could be taken for each other.
    """
    if groups is None:
        alone = [name for name in columns if name not in {*baseline, *taken}]
        if len(set(map(str, alone))) < len(alone):
            twice = next(str(name) for name in alone if list(map(str, alone)).count(str(name)) > 1)
            raise ExplainError(f"two columns are called '{twice}' when written out: rename one")
        groups = {str(name): [name] for name in alone}
    players = players_of(groups)
    check_roles(baseline, players, taken)
    return players


def players_of(groups: Mapping[Hashable, object]) -> dict[str, list[Hashable]]:
    """The columns of every player by the name that is written out.

    Raises:
        ExplainError: If there is no player or one without columns, what stands for its columns is no column or list of
            columns, or two players could be taken for each other.
    """
    called = list(map(str, groups))
    for name in called:
        if called.count(name) > 1:
            raise ExplainError(f"two groups are called '{name}' when written out: rename one")
    players: dict[str, list[Hashable]] = {}
    for key, part in groups.items():
        if not isinstance(part, str | int | list | tuple) or isinstance(part, bool):
            raise ExplainError(f"group '{key}' is {part!r}, but it must be a column or a list of columns")
        players[str(key)] = [part] if isinstance(part, str | int) else list(part)
    if RECALIBRATION in players:
        raise ExplainError(
            f"a group is called '{RECALIBRATION}', which names the share that needs no variable: rename the group"
        )
    if not players or not all(players.values()):
        raise ExplainError("there is no variable to attribute the gap to: give groups, each of at least one column")
    return players


def check_roles(baseline: Sequence[Hashable], players: Mapping[str, Sequence[Hashable]], taken: set[Hashable]) -> None:
    """Refuse a column that is listed twice, or that is a feature and something else.

    Raises:
        ExplainError: For the first.
    """
    every = [*baseline, *(column for part in players.values() for column in part)]
    for column in every:
        if not isinstance(column, Hashable):
            raise ExplainError(f"{column!r} is listed as a column, but it is no name of one")
        if every.count(column) > 1:
            raise ExplainError(f"column '{column}' is listed twice: every column belongs to the baseline or one group")
        if column in taken:
            raise ExplainError(
                f"column '{column}' is a label, prediction, loss, cluster or weight and cannot be a feature too"
            )
