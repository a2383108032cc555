"""Losses of the rows: from labels and predictions, or from a column that holds them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from explain.errors import ExplainError
from explain.functional.losses import loss_table, observed_loss, squared_error
from explain.functional.rows import Floats
from explain.tables import DOMAINS, Frames, numbers, pick

Codes = NDArray[np.int64]
MAX_CLASSES = 50


class Losses(NamedTuple):
    """Losses of every table's rows.

    Attributes:
        loss: The losses.
        table: Losses for every label; only where labels are used.
        labels: Codes of the labels, likewise.
        pair: Losses of a first and of a second model whose difference `loss` is; only where two are compared.
    """

    loss: list[Floats]
    table: list[Floats] | None = None
    labels: list[Codes] | None = None
    pair: tuple[list[Floats], list[Floats]] | None = None


def read_losses(frames: Frames, kind: str, outcome: str, label: Hashable, prediction: Any, given: Any) -> Losses:
    """Losses from labels and predictions, or from a column that holds them.

    Args:
        frames: The tables.
        kind: "zero_one", "brier", "log", "squared" or "given".
        outcome: "risk" to keep labels and losses for every label.
        label: Column of the labels.
        prediction: Column of predictions, or a list with the probabilities of every class.
        given: Column of a given loss.

    Raises:
        ExplainError: If labels and predictions do not fit.
    """
    if kind == "given":
        return Losses([numbers(part, given) for part in pick(frames, given, "the loss")])
    raw = pick(frames, label, "the label")
    names = prediction if isinstance(prediction, list) else [prediction]
    predicted = [pick(frames, name, "the prediction") for name in names]
    if kind == "squared":
        outcomes = [numbers(part, label) for part in raw]
        means = [numbers(part, names[0]) for part in predicted[0]]
        return Losses([squared_error(f, y) for f, y in zip(means, outcomes, strict=True)])

    _one_type(raw, label)
    classes, codes = np.unique(np.concatenate([part.to_numpy() for part in raw]), return_inverse=True)
    if len(classes) < 2:
        raise ExplainError(f"column '{label}' holds one label, {classes[0]!r}, but at least two classes are needed")
    if len(classes) > MAX_CLASSES:
        raise ExplainError(
            f"column '{label}' holds {len(classes)} different labels, more than {MAX_CLASSES} classes: "
            "use loss='squared' or loss='given' with outcome='loss'"
        )
    labels = np.split(codes.astype(np.int64), [len(raw[0])])
    tables = []
    for position in range(len(frames)):
        parts = [column[position] for column in predicted]
        if len(parts) == 1:
            f = _one_column(parts[0], classes, kind)
        else:
            f = np.column_stack([numbers(part, name) for part, name in zip(parts, names, strict=True)])
        try:
            tables.append(loss_table(kind, f, len(classes)))  # type: ignore[arg-type]
        except ValueError as error:
            raise ExplainError(f"the {DOMAINS[position]}'s {error}") from error
    loss = [observed_loss(table, code) for table, code in zip(tables, labels, strict=True)]
    return Losses(loss, tables, labels) if outcome == "risk" else Losses(loss)


def _one_column(column: pd.Series, classes: NDArray[np.generic], kind: str) -> Floats:
    """Probabilities from one column: those of the second of two classes, or predicted labels for the 0-1 loss."""
    values = column.to_numpy()
    number = column.dtype.kind in "fiub"
    if number and len(classes) == 2 and (kind != "zero_one" or not np.isin(values, classes).all()):
        return np.asarray(values, dtype=np.float64)
    if kind != "zero_one":
        raise ExplainError(
            f"the loss '{kind}' needs probabilities: name a list of {len(classes)} prediction columns, one a class"
            + (" or one column of numbers" if len(classes) == 2 else "")
        )
    unknown = set(np.unique(values).tolist()) - set(classes.tolist())
    if unknown:
        raise ExplainError(
            f"column '{column.name}' predicts {min(unknown, key=str)!r}, which is not among the labels "
            f"{classes[:10].tolist()}"
        )
    return np.asarray(values[:, None] == classes, dtype=np.float64)


def _one_type(columns: list[pd.Series], name: Hashable) -> None:
    """Refuse labels that are numbers here and texts there, which would be different classes or the same by accident."""
    kinds = set()
    for column in columns:
        plain = column.astype(object) if isinstance(column.dtype, pd.CategoricalDtype) else column
        kind = pd.api.types.infer_dtype(plain)
        kinds.add("number" if kind in ("integer", "floating", "boolean", "mixed-integer-float", "decimal") else kind)
    kinds -= {"empty"}
    if len(kinds) > 1 or any(kind.startswith("mixed") for kind in kinds):
        raise ExplainError(
            f"column '{name}' holds labels of several types ({', '.join(sorted(kinds))}): make all of them numbers, or "
            "all of them texts"
        )
