"""Batches as people's loaders give them, in the one form that students and teacher read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from distill.errors import DistillError

Batch = Mapping[str, Tensor]
Task = Literal["images", "texts", "language"]
INPUTS = {"images": "images", "texts": "input_ids", "language": "input_ids"}
_SUM = 0.02  # how far from 1 a label distribution in half precision may add up


def as_batch(given: object, task: Task) -> dict[str, Tensor]:
    """A batch as a mapping with the task's inputs, and labels where it has any.

    Args:
        given: A mapping with `images` or `input_ids`, and `labels` where there are; or inputs alone; or a pair of
            inputs and labels, as most loaders give. Inputs are a tensor or, for texts, a mapping.
        task: What the networks read.

    Returns:
        A new mapping. A language model's missing labels are its own tokens, without the padding.

    Raises:
        DistillError: If there is no input in it.

    Example:
        >>> sorted(as_batch((torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])), "images"))
        ['images', 'labels']
    """
    if isinstance(given, Mapping):
        batch = dict(given)
    elif isinstance(given, list | tuple) and len(given) in (1, 2):
        batch = dict(given[0]) if isinstance(given[0], Mapping) else {INPUTS[task]: given[0]}
        batch |= {"labels": given[1]} if len(given) == 2 else {}
    else:
        batch = {INPUTS[task]: given}
    inputs = batch.get(INPUTS[task])
    if not isinstance(inputs, Tensor):
        found = f"a {type(given).__name__}" + (
            f" of {', '.join(map(str, batch))}" if isinstance(given, Mapping) else ""
        )
        raise DistillError(
            f"a batch of {task} needs the tensor {INPUTS[task]!r}, got {found}; give a mapping with {INPUTS[task]!r} "
            "and 'labels', or pairs of inputs and labels"
        )
    if task == "language" and batch.get("labels") is None:
        mask = batch.get("attention_mask")
        batch["labels"] = inputs if mask is None else inputs.masked_fill(mask == 0, -100)
    if batch.get("labels") is None:
        batch.pop("labels", None)
    return batch


def device_of(batch: Batch) -> torch.device:
    """Where a batch lies."""
    return next(value.device for value in batch.values() if isinstance(value, Tensor))


def read_labels(labels: object, rows: int) -> Tensor:
    """Labels in a form that losses read.

    Args:
        labels: Whole numbers (rows,) of any type, or distributions (rows, classes).
        rows: Of the inputs.

    Returns:
        Indices as int64, distributions as they are.

    Raises:
        DistillError: If they have another form.
    """
    if isinstance(labels, Tensor) and len(labels) == rows:
        if labels.ndim == 1 and not labels.is_floating_point():
            return labels.long()
        if labels.ndim == 2 and labels.is_floating_point():
            return labels
    shape = f"shape {tuple(labels.shape)} and type {labels.dtype}" if isinstance(labels, Tensor) else str(type(labels))
    raise DistillError(
        f"labels of {rows} rows are class indices ({rows},) of whole numbers or distributions ({rows}, classes), got "
        f"{shape}"
    )


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels that are no classes.

    Args:
        labels: Class indices (batch,) or distributions (batch, classes).
        classes: Number of classes.

    Raises:
        DistillError: With the range found.

    Example:
        >>> check_labels(torch.tensor([0, 3]), 3)
        Traceback (most recent call last):
        distill.errors.DistillError: labels go from 0 to 3, but there are 3 classes, 0 to 2; set classes to 4 or more
    """
    if labels.ndim == 2:
        if labels.shape[1] != classes:
            raise DistillError(f"labels are distributions over {labels.shape[1]} classes, but there are {classes}")
        sums = labels.float().sum(-1)
        if not (bool((labels >= 0).all()) and bool(((sums - 1).abs() < _SUM).all())):
            raise DistillError(
                f"labels are distributions, but their least entry is {float(labels.min()):.3g} and their rows add up "
                f"to {float(sums.min()):.3g} to {float(sums.max()):.3g}; give entries of at least 0 that add up to 1"
            )
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DistillError(
            f"labels go from {low} to {high}, but there are {classes} classes, 0 to {classes - 1}; set classes to "
            f"{high + 1} or more"
        )
