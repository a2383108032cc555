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

    _one_type(raw, label)
    classes, codes = np.unique(np.concatenate([part.to_numpy() for part in raw]), return_inverse=True)
    if kind in METRICS:
        return _scored(kind, classes, np.split(codes, [len(raw[0])]), predicted, label)
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


def _scored(
    kind: str,
    classes: NDArray[np.generic],
    codes: list[NDArray[np.intp]],
    predicted: list[list[pd.Series]],
    label: Hashable,
) -> Losses:
    """Labels and scores of two classes."""
    if len(classes) != 2:
        raise ExplainError(
            f"column '{label}' holds {len(classes)} different labels, but the loss '{kind}' is defined for 2: make one "
            "of them the class that counts"
        )
    if len(predicted) != 1:
        raise ExplainError(
            f"the loss '{kind}' has {len(predicted)} prediction columns, but it needs one: the probability of "
            f"{classes[1]!r}"
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
        chances = [
            _one_column(part, classes, "zero_one" if kind in ("f1", "recall") else kind) for part in predicted[0]
        ]
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
