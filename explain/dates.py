"""Dates and durations as days, however a table holds them: as pandas dates, periods, objects or texts as 2024-01-31."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from explain.errors import ExplainError
from explain.functional.rows import Floats

DATES = ("date", "datetime", "datetime64", "period")  # as pandas infers them
DURATIONS = ("timedelta", "timedelta64")
_ISO = r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:.*)?"
_ZONE = r"(?:Z|[+-]\d{2}:?\d{2})$"


def is_dates(column: pd.Series) -> bool:
    """Whether a column holds dates, or texts that in all rows with a value are written year first, as 2024-01-31."""
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind != "string":
        return kind in DATES
    values = pd.Series(column.dropna().unique()).astype(str)
    return bool(len(values) and values.head(1).str.fullmatch(_ISO).all() and values.str.fullmatch(_ISO).all())


def days_of_dates(columns: Sequence[pd.Series]) -> list[Floats]:
    """Dates as days since 1970, NaN where missing.

    Args:
        columns: The column of every table.

    Raises:
        ExplainError: If a date cannot be read, or only some of them have a time zone.
    """
    name = columns[0].name
    if len(set[bool]().union(*map(_zoned, columns))) > 1:
        raise ExplainError(
            f"column '{name}' holds dates with and without a time zone, which are hours apart: give all of them one, "
            "or none"
        )
    return [_days(column) for column in columns]


def days_of_durations(column: pd.Series) -> Floats:
    """Durations as days, NaN where missing."""
    return np.asarray(pd.to_timedelta(column) / pd.Timedelta(days=1), dtype=np.float64)


def _days(column: pd.Series) -> Floats:
    if isinstance(column.dtype, pd.PeriodDtype) or pd.api.types.infer_dtype(column, skipna=True) == "period":
        column = pd.Series(pd.PeriodIndex(column).to_timestamp(), name=column.name)
    try:
        text = pd.api.types.infer_dtype(column, skipna=True) == "string"
        stamps = pd.to_datetime(column, utc=True, format="ISO8601" if text else None)
        epoch = pd.Timestamp(0, tz="UTC").as_unit(stamps.dt.unit)
        return np.asarray((stamps - epoch) / pd.Timedelta(days=1), dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ExplainError(f"column '{column.name}' holds dates that cannot be read ({reason}): convert it") from error


def _zoned(column: pd.Series) -> set[bool]:
    """Whether dates have a time zone; both answers where some have and some have not."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return {True}
    if column.dtype.kind == "M" and isinstance(column.dtype, np.dtype):
        return {False}
    values = column.dropna()
    if pd.api.types.infer_dtype(values) == "string":
        return set(values.astype(str).str.contains(_ZONE).tolist())
    return {getattr(value, "tzinfo", None) is not None for value in values}
