"""Losses of the rows: from labels and predictions, or from a column that holds them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from explain.errors import ExplainError
from explain.functional.losses import loss_table, observed_loss, quantile_loss, squared_error
from explain.functional.metrics import METRICS, Metric
from explain.functional.rows import Floats
from explain.tables import DOMAINS, Frames, numbers, pick

Codes = NDArray[np.int64]
MAX_CLASSES = 50
LEAST_OF_A_CLASS = 20  # rows of either label in either table, for a metric


class Scores(NamedTuple):
    """What a metric of every table is computed from.

    Attributes:
        kind: The metric.
        positive: Labels, 0 or 1.
        score: Probabilities of the second label, or scores of any scale for the AUC.
    """

    kind: Metric
    positive: list[Floats]
    score: list[Floats]


class Losses(NamedTuple):
    """Losses of every table's rows.

    Attributes:
        loss: The losses.
        table: Losses for every label; only where labels are used.
        labels: Codes of the labels, likewise.
        pair: Losses of a first and of a second model whose difference `loss` is; only where two are compared.
        scored: What a metric is computed from that is no mean of losses; `loss` is then the squared error.
    """

    loss: list[Floats]
    table: list[Floats] | None = None
    labels: list[Codes] | None = None
    pair: tuple[list[Floats], list[Floats]] | None = None
    scored: Scores | None = None


def read_losses(
    frames: Frames, kind: str, outcome: str, label: Hashable, prediction: Any, given: Any, tau: float = 0.5
) -> Losses:
    """Losses from labels and predictions, or from a column that holds them.

    Args:
        frames: The tables.
        kind: "zero_one", "brier", "log", "squared", "quantile", "given", or a metric.
        outcome: "risk" to keep labels and losses for every label.
        label: Column of the labels.
        prediction: Column of predictions, or a list with the probabilities of every class.
        given: Column of a given loss.
        tau: Which quantile is predicted, for the quantile loss.

    Raises:
        ExplainError: If labels and predictions do not fit.
    """
    if kind == "given":
        return Losses([numbers(part, given) for part in pick(frames, given, "the loss")])
    raw = pick(frames, label, "the label")
    names = prediction if isinstance(prediction, list) else [prediction]
    predicted = [pick(frames, name, "the prediction") for name in names]
    if kind in ("squared", "quantile"):
        outcomes = [numbers(part, label) for part in raw]
        means = [numbers(part, names[0]) for part in predicted[0]]
        pairs = list(zip(means, outcomes, strict=True))
        return Losses([squared_error(f, y) if kind == "squared" else quantile_loss(f, y, tau) for f, y in pairs])

    classes, labels = _classes(raw, label, kind)
    if kind in METRICS:
        return _scored(kind, classes, labels, predicted, label)
    alone = _one_column(predicted[0], classes, kind, label) if len(predicted) == 1 else None
    tables = []
    for position in range(len(frames)):
        if alone is not None:
            f = alone[position]
        else:
            parts = [column[position] for column in predicted]
            f = np.column_stack([numbers(part, name) for part, name in zip(parts, names, strict=True)])
        try:
            tables.append(loss_table(kind, f, len(classes)))  # type: ignore[arg-type]
        except ValueError as error:
            raise ExplainError(f"the {DOMAINS[position]}'s {error}") from error
    loss = [observed_loss(table, code) for table, code in zip(tables, labels, strict=True)]
    return Losses(loss, tables, labels) if outcome == "risk" else Losses(loss)


def read_classes(frames: Frames, label: Hashable, kind: str) -> tuple[NDArray[np.generic], list[Codes]]:
    """The labels of all tables, sorted, and the code of every row's.

    Args:
        frames: The tables.
        label: Column of the labels.
        kind: Loss for labels of finitely many classes, or a metric.

    Raises:
        ExplainError: If labels are missing, of several types, or fewer or more than the loss takes.
    """
    return _classes(pick(frames, label, "the label"), label, kind)


def _classes(raw: list[pd.Series], label: Hashable, kind: str) -> tuple[NDArray[np.generic], list[Codes]]:
    one_type(raw, label, "labels")
    classes, codes = np.unique(np.concatenate([part.to_numpy() for part in raw]), return_inverse=True)
    if kind in METRICS and len(classes) != 2:
        raise ExplainError(
            f"column '{label}' holds {_listed(classes)}, but the loss '{kind}' is defined for two labels: make one of "
            "them the class that counts"
        )
    if len(classes) < 2:
        raise ExplainError(f"column '{label}' holds {_listed(classes)}, but at least two classes are needed")
    if len(classes) > MAX_CLASSES:
        raise ExplainError(
            f"column '{label}' holds {len(classes)} different labels, more than {MAX_CLASSES} classes: make classes of "
            "it, or take loss 'squared' or losses that are given, with outcome='loss'"
        )
    return classes, np.split(codes.astype(np.int64), [len(raw[0])])


def _listed(classes: NDArray[np.generic]) -> str:
    """Some labels in words."""
    some = ", ".join(map(repr, classes[:6].tolist())) + (", ..." if len(classes) > 6 else "")
    return f"{len(classes)} different labels ({some})" if len(classes) > 1 else f"one label ({some})"


def _scored(
    kind: str,
    classes: NDArray[np.generic],
    codes: list[Codes],
    predicted: list[list[pd.Series]],
    label: Hashable,
) -> Losses:
    """Labels and scores of two classes."""
    if len(predicted) != 1:
        raise ExplainError(
            f"the loss '{kind}' has {len(predicted)} prediction columns, but it needs one: the probability of "
            f"{classes[1:].tolist()[0]!r}"
        )
    positive = [part.astype(np.float64) for part in codes]
    for side, part in enumerate(positive):
        fewest = int(min(part.sum(), len(part) - part.sum()))
        if len(part) and fewest < LEAST_OF_A_CLASS:
            raise ExplainError(
                f"a label occurs {fewest} times in the {DOMAINS[side]}, but the loss '{kind}' needs at least "
                f"{LEAST_OF_A_CLASS} rows of both"
            )
    if kind == "auc":
        scores = [numbers(part, part.name) for part in predicted[0]]
    else:
        chances = _one_column(predicted[0], classes, "zero_one" if kind in ("f1", "recall") else kind, label)
        scores = [part if part.ndim == 1 else part[:, 1] for part in chances]
        if any(len(part) and not (part.min() >= 0 and part.max() <= 1) for part in scores):
            low, high = min(part.min() for part in scores), max(part.max() for part in scores)
            raise ExplainError(
                f"predictions range from {low:.4g} to {high:.4g}, but the loss '{kind}' needs probabilities: apply the "
                "sigmoid first"
            )
    # A loss of rows orders categories and chooses learners before the metric's own is known.
    spread = max(float(np.ptp(np.concatenate(scores))), 1e-12)
    loss = [((s - min(map(np.min, scores))) / spread - y) ** 2 for s, y in zip(scores, positive, strict=True)]
    return Losses(loss, scored=Scores(kind, positive, scores))  # type: ignore[arg-type]


def _one_column(columns: list[pd.Series], classes: NDArray[np.generic], kind: str, label: Hashable) -> list[Floats]:
    """Probabilities from one column: those of the second of two classes, or predicted labels for the 0-1 loss.

    What a column holds is decided for all tables together: a table where every row is predicted to be a 1 does not tell
    whether that is a label or a probability.
    """
    parts = [column.to_numpy() for column in columns]
    values = np.concatenate(parts)
    number = all(column.dtype.kind in "fiub" for column in columns)
    if number and len(classes) == 2 and (kind != "zero_one" or not np.isin(values, classes).all()):
        return [np.asarray(part, dtype=np.float64) for part in parts]
    if kind != "zero_one":
        two = "" if number else f", and column '{columns[0].name}' holds {columns[0].dtype} values"
        raise ExplainError(
            f"the loss '{kind}' needs probabilities, and column '{label}' holds {_listed(classes)}{two}: name "
            f"a list of {len(classes)} prediction columns of numbers, one a class in this order"
            + (", or one column of numbers, the probability of the last" if len(classes) == 2 else "")
        )
    unknown = set(np.unique(values).tolist()) - set(classes.tolist())
    if unknown:
        raise ExplainError(
            f"column '{columns[0].name}' predicts {min(unknown, key=str)!r}, which is not among the labels: column "
            f"'{label}' holds {_listed(classes)}; predict one, or name a list of prediction columns, one a class"
        )
    return [np.asarray(part[:, None] == classes, dtype=np.float64) for part in parts]


def one_type(columns: list[pd.Series], name: Hashable, what: str) -> None:
    """Refuse labels or clusters that are numbers here and texts there: different ones, or the same by accident.

    Raises:
        ExplainError: If there are several types.
    """
    kinds = set()
    for column in columns:
        plain = column.astype(object) if isinstance(column.dtype, pd.CategoricalDtype) else column
        kind = pd.api.types.infer_dtype(plain)
        kinds.add("number" if kind in ("integer", "floating", "boolean", "mixed-integer-float", "decimal") else kind)
    kinds -= {"empty"}
    if len(kinds) > 1 or any(kind.startswith("mixed") for kind in kinds):
        raise ExplainError(
            f"column '{name}' holds {what} of several types ({', '.join(sorted(kinds))}): make all of them numbers, or "
            "all of them texts"
        )
