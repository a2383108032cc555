"""Columns as numbers: dates as days, two values as 0 and 1, texts as codes of categories; names of rows are refused.

Nothing here depends on how values are written: codes follow how often and with which losses a value occurs, so that
0/1, -1/+1 and yes/no, or another spelling of the same categories, give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from explain.dates import DATES, DURATIONS, days_of_dates, days_of_durations, is_dates
from explain.errors import ExplainError
from explain.functional.rows import Floats
from explain.tables import check_size

KEPT_LEVELS = 100  # of a category; boosting takes 255 at most
ID_SHARE = 0.5  # of the rows: with more different texts than this, a column names rows
ID_ROWS = 50  # below so many rows, many different texts prove nothing

Kind = Literal["number", "date", "duration", "category"]
_INFERRED: dict[str, Kind] = {
    **dict.fromkeys(("boolean", "integer", "floating", "mixed-integer-float", "decimal", "empty"), "number"),
    **dict.fromkeys(DATES, "date"),
    **dict.fromkeys(DURATIONS, "duration"),
    **dict.fromkeys(("string", "bytes", "categorical"), "category"),
}


class Column(NamedTuple):
    """A feature as numbers.

    Attributes:
        parts: One array for each table; NaN where a number is missing.
        category: Whether the numbers are codes of three or more categories.
        said: What a reader should know of it, such as grouped categories and missing values; empty for plain numbers.
    """

    parts: list[Floats]
    category: bool
    said: dict[str, object]


class _Content(NamedTuple):
    """What orders values whatever they are called: losses, weights and missing values of every table.

    Where it is anchored, the first table decides, and others only the order of what that one does not have.
    """

    losses: Sequence[Floats]
    weights: Sequence[Floats]
    missing: Sequence[NDArray[np.bool_]]
    anchored: bool = False


def encode(
    columns: Sequence[pd.Series],
    losses: Sequence[Floats],
    weights: Sequence[Floats] | None = None,
    *,
    categorical: bool = False,
    levels: Sequence[Hashable] | None = None,
    anchored: bool = False,
) -> Column:
    """A feature as numbers.

    Args:
        columns: The column of every table.
        losses: Losses of the same rows; they only tell equally frequent categories apart.
        weights: Weights of the rows; equal when not given.
        categorical: Whether numbers are codes of categories.
        levels: The values from the lowest to the highest, where they have an order of their own.
        anchored: Whether codes follow the first table alone, those of values that it does not have come last.

    Raises:
        ExplainError: If the column is complex, mixes kinds of values, is infinite, too large or wholly missing
            somewhere, names rows, or has a value that is not among the levels.
    """
    name = columns[0].name
    missing = [column.isna().to_numpy() for column in columns]
    for column, role, absent in zip(columns, ("source", "target"), missing, strict=False):
        if len(column) and absent.all():
            raise ExplainError(
                f"column '{name}' of the {role} has {len(column)} missing values, all of its rows: leave it out"
            )
    said: dict[str, object] = {}
    if any(part.any() for part in missing):
        said["missing"] = [int(part.sum()) for part in missing]
    if levels is None and all(getattr(column.dtype, "ordered", False) for column in columns):
        orders = [list(column.cat.categories) for column in columns]
        levels = orders[0] if all(order == orders[0] for order in orders) else None
    if levels is not None:
        return Column(_ranks(columns, list(levels), missing), False, {"kind": "ordinal", **said})

    kind = _kind(columns)
    weights = [np.ones(len(loss)) for loss in losses] if weights is None else weights
    content = _Content(losses, weights, missing, anchored)
    if kind == "category" or categorical:
        return _category(columns, content, kind, said)
    if kind == "date":
        return Column(days_of_dates(columns), False, {"kind": "date", **said})
    if kind == "duration":
        return Column([days_of_durations(column) for column in columns], False, {"kind": "duration", **said})
    parts = [column.to_numpy(np.float64, na_value=math.nan) + 0.0 for column in columns]  # -0.0 is 0.0
    if infinite := sum(int(np.isinf(part).sum()) for part in parts):
        raise ExplainError(f"column '{name}' has {infinite} infinite values: drop those rows or leave them empty")
    check_size(np.concatenate(parts), name)
    if all(_counts_rows(part) for part in parts if len(part)):
        raise ExplainError(
            f"column '{name}' counts the rows, so it tells nothing about them: leave it out, or list it as ordinal if "
            "it is a rank"
        )
    values, codes = np.unique(np.concatenate(parts)[~np.concatenate(missing)], return_inverse=True)
    if len(values) <= 2:
        return Column(_spread(_canonical(codes, len(values), content), missing), False, said)
    return Column(parts, False, said)


def _kind(columns: Sequence[pd.Series]) -> Kind:
    """What kind of values all tables hold."""
    found: set[Kind] = set()
    for column in columns:
        if not len(column):
            continue
        plain = column.astype(object) if isinstance(column.dtype, pd.CategoricalDtype) else column
        inferred = pd.api.types.infer_dtype(plain, skipna=True)
        kind = _INFERRED.get(inferred)
        if kind is None:
            what = {"mixed-integer": "numbers and texts", "mixed": "several kinds of values"}.get(inferred, inferred)
            raise ExplainError(
                f"column '{column.name}' holds {what}, but numbers, dates or texts of one kind are needed: convert or "
                "leave it out"
            )
        if isinstance(column.dtype, pd.CategoricalDtype):
            kind = "category"
        elif inferred == "string" and is_dates(column):
            kind = "date"
        found.add(kind)
    if len(found) > 1:
        raise ExplainError(
            f"column '{columns[0].name}' holds {' and '.join(sorted(found))} values in different tables: convert one"
        )
    return found.pop()


def _ranks(columns: Sequence[pd.Series], levels: list[Hashable], missing: Sequence[NDArray[np.bool_]]) -> list[Floats]:
    """Places among the levels."""
    place = {level: float(rank) for rank, level in enumerate(levels)}
    place = {_text(level): rank for level, rank in place.items()} | place
    if len(set(map(_text, levels))) < len(levels) or len(levels) < 2:
        raise ExplainError(
            f"column '{columns[0].name}' has the ordinal levels {levels}, but two or more different ones are needed"
        )
    found = []
    for column, absent in zip(columns, missing, strict=True):
        part = np.full(len(column), math.nan)
        for row, value in enumerate(column.astype(object)):
            if absent[row]:
                continue
            rank = place.get(value, place.get(_text(value)))
            if rank is None:
                raise ExplainError(
                    f"column '{column.name}' holds {value!r}, which is not among its ordinal levels {levels}: list it"
                )
            part[row] = rank
        found.append(part)
    return found


def _category(
    columns: Sequence[pd.Series],
    content: _Content,
    kind: Kind,
    said: dict[str, object],
) -> Column:
    """Codes by frequency: missing values are a category, rare ones beyond the hundredth are one together."""
    name, missing = columns[0].name, content.missing
    present = [column[~absent] for column, absent in zip(columns, missing, strict=True)]
    if kind == "number":
        values = np.concatenate([part.to_numpy(np.float64) for part in present])
    else:
        values = np.array([_text(value) for part in present for value in part.astype(object)], dtype=str)
    found, codes = np.unique(values, return_inverse=True)
    if len(values) >= ID_ROWS and len(found) > ID_SHARE * len(values):
        raise ExplainError(
            f"column '{name}' has {len(found)} different values in {len(values)} rows, as a name of rows has: leave it "
            "out, or keep what it tells about groups of rows"
        )
    count = len(found)
    codes = _canonical(codes, count, content)
    if count <= 2:
        return Column(_spread(codes, missing), False, said)
    said = {"kind": "category", "levels": count, **said}
    absent = any(part.any() for part in missing)
    if count > KEPT_LEVELS:
        rare = codes >= KEPT_LEVELS - 1
        said |= {"grouped_levels": count - KEPT_LEVELS + 1, "grouped_rows": int(rare.sum())}
        codes, count = np.where(rare, KEPT_LEVELS - 1, codes), KEPT_LEVELS
    parts = _spread(codes, missing)
    return Column([np.nan_to_num(part, nan=count) for part in parts] if absent else parts, True, said)


def _text(value: object) -> str:
    """A value as it is written, a whole number without a decimal point whether it is held as 7 or as 7.0."""
    return str(int(value)) if isinstance(value, float | np.floating) and value.is_integer() else str(value)


def _canonical(codes: NDArray[np.int64], count: int, content: _Content) -> NDArray[np.int64]:
    """Codes by frequency, most frequent first; equally frequent values by their losses, then as they are sorted."""
    present = [~absent for absent in content.missing]
    parts = np.split(codes, np.cumsum([int(part.sum()) for part in present])[:-1])
    lost_keys: list[Floats] = []
    counts = []
    for part, loss, weight, here in zip(parts, content.losses, content.weights, present, strict=True):
        mass, lost = weight[here], (weight * loss)[here]
        order = np.lexsort([mass, lost, part])  # sums in one order, whatever that of the rows
        total = max(float(weight.sum()), 1e-300)
        counts.append((np.bincount(part[order], mass[order], count) / total).round(12))
        lost_keys.append((np.bincount(part[order], lost[order], count) / total).round(12))
    keys: list[Floats] = [np.arange(count, dtype=np.float64)]
    if content.anchored:
        for shares, losses in reversed(list(zip(counts, lost_keys, strict=True))):
            keys += [losses, -shares]
    else:
        keys += [*lost_keys, *(-part for part in counts), -np.sum(counts, axis=0).round(12)]
    rank = np.empty(count, dtype=np.int64)
    rank[np.lexsort(keys)] = np.arange(count)
    return rank[codes]


def _spread(codes: NDArray[np.int64], missing: Sequence[NDArray[np.bool_]]) -> list[Floats]:
    """Codes back at the rows of every table; NaN where missing."""
    every = np.concatenate(missing)
    whole = np.full(len(every), math.nan)
    whole[~every] = codes
    return np.split(whole, np.cumsum([len(part) for part in missing])[:-1])


def _counts_rows(part: Floats) -> bool:
    """Whether a column is the numbers of the rows, one after the other."""
    if len(part) < ID_ROWS or np.isnan(part).any() or (part % 1).any():
        return False
    return bool(part.max() - part.min() == len(part) - 1 and len(np.unique(part)) == len(part))
