"""Per-example losses: as a number for every row, and for finite outcomes as a table for every label."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from explain.functional.rows import Floats

FiniteLoss = Literal["zero_one", "brier", "log"]
FINITE_LOSSES: tuple[str, ...] = get_args(FiniteLoss)


def loss_table(kind: FiniteLoss, predictions: Floats, classes: int) -> Floats:
    r"""The loss of every row for every label it could have had.

    With f_c the predicted probability of class c: 0-1 loss :math:`1[\arg\max f \ne y]` (two classes: class 1 when its
    probability is above 0.5), Brier score :math:`\frac12 \sum_c (f_c - 1[y = c])^2` (two classes: :math:`(f - y)^2`),
    log loss :math:`-\log f_y`.

    Args:
        kind: "zero_one", "brier" or "log".
        predictions: Probability of class 1, shape (n,), for two classes; or of every class, shape (n, classes).
        classes: Number of labels C, at least 2.

    Returns:
        Losses, shape (n, C).

    Raises:
        ValueError: If predictions have another shape or are no probabilities, or a probability of 0 or 1 makes the log
            loss infinite.

    Example:
        >>> import numpy as np
        >>> loss_table("brier", np.array([0.75]), 2)
        array([[0.5625, 0.0625]])
    """
    predictions = given = np.asarray(predictions, dtype=np.float64)
    if predictions.ndim == 1 and classes == 2:
        predictions = np.stack([1 - predictions, predictions], axis=1)
    if predictions.ndim != 2 or predictions.shape[1] != classes:
        raise ValueError(
            f"predictions have the shape {predictions.shape}, but {classes} classes need (n, {classes})"
            + (" or (n,)" if classes == 2 else "")
        )
    worst = np.abs(predictions.sum(1) - 1).max(initial=0.0)
    if not (predictions.min(initial=0.0) >= 0 and worst < 1e-4):
        missed = "" if worst < 1e-4 else f" and miss a sum of 1 by {worst:.2g}"
        raise ValueError(
            f"predictions range from {given.min():.4g} to {given.max():.4g}{missed}, but they must be probabilities, "
            "between 0 and 1: apply the sigmoid or softmax first, or divide percentages by 100"
        )
    if kind == "zero_one":
        return np.asarray(np.arange(classes) != predictions.argmax(1)[:, None], dtype=np.float64)
    if kind == "brier":
        squares = (predictions**2).sum(1, keepdims=True)
        table: Floats = (squares - 2 * predictions + 1) / 2
        return table
    if kind == "log":
        if predictions.min(initial=1.0) <= 0:
            raise ValueError("predictions of 0 have an infinite log loss: clip predictions to 1e-6")
        return -np.log(predictions)
    raise ValueError(f"predictions have losses for every label under {', '.join(FINITE_LOSSES)}, not under '{kind}'")


def observed_loss(table: Floats, labels: NDArray[np.int64]) -> Floats:
    """The loss of every row for the label it has.

    Args:
        table: Losses for every label, shape (n, C).
        labels: Codes from 0 to C - 1, shape (n,).

    Returns:
        Losses, shape (n,).
    """
    return np.take_along_axis(table, labels[:, None], axis=1)[:, 0]


def squared_error(predictions: Floats, outcomes: Floats) -> Floats:
    """The squared error of every row, for outcomes that are numbers.

    Args:
        predictions: Shape (n,).
        outcomes: Shape (n,).

    Returns:
        Losses, shape (n,).
    """
    return np.asarray((predictions - outcomes) ** 2, dtype=np.float64)


def quantile_loss(predictions: Floats, outcomes: Floats, tau: float) -> Floats:
    r"""The quantile (pinball) loss of every row, :math:`\max(\tau (y - f), (\tau - 1) (y - f))`.

    Its mean is least where f is the tau-quantile of y; for a tau of 0.5 it is half of the absolute error.

    Args:
        predictions: Predicted quantiles f, shape (n,).
        outcomes: y, shape (n,).
        tau: Which quantile, in (0, 1).

    Returns:
        Losses, shape (n,).

    Example:
        >>> import numpy as np
        >>> quantile_loss(np.array([1.0, 1.0]), np.array([3.0, 0.0]), 0.9).round(3)
        array([1.8, 0.1])

    Reference:
        Koenker and Bassett (1978), "Regression quantiles".
    """
    left = outcomes - predictions
    return np.asarray(np.maximum(tau * left, (tau - 1) * left), dtype=np.float64)
