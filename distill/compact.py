"""Some classes of a teacher's logits as they travel in a batch, from a cache to the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.batches import Batch
from distill.errors import DistillError
from distill.form import Form
from distill.functional.sparse import SampledClasses, TopClasses
from distill.losses import KD, Terms, check_reads_some, choose
from distill.terms import Compact

KEYS = {"teacher_top": TopClasses, "teacher_sampled": SampledClasses}
_TEMPERATURES = "teacher_temperatures"


def as_fields(
    classes: TopClasses | SampledClasses, temperatures: Sequence[float]
) -> list[dict[str, Tensor | dict[str, Tensor]]]:
    """Fields of the items of a batch, which a loader stacks.

    Args:
        classes: Of some rows.
        temperatures: At which they can be compared.

    Returns:
        A mapping a row.
    """
    key = next(key for key, kind in KEYS.items() if isinstance(classes, kind))
    known = torch.tensor(tuple(temperatures), dtype=torch.float64)
    parts: dict[str, Tensor] = classes._asdict()
    rows = range(len(classes.ids))
    return [{key: {name: part[row] for name, part in parts.items()}, _TEMPERATURES: known} for row in rows]


def stored_classes(batch: Batch) -> Compact | None:
    """What a batch of such items holds; None for other batches."""
    fields: Mapping[str, Any] = batch  # a loader stacks what `as_fields` gave, one mapping within another
    for key, kind in KEYS.items():
        if key in fields:
            return Compact(kind(**fields[key]), tuple(fields[_TEMPERATURES][0].tolist()))
    return None


def check_kept(terms: Terms, form: Form, classes: int) -> None:
    """Refuse losses that cannot be computed from what a cache keeps, before anything is written.

    Args:
        terms: As of `DistillLoss`.
        form: What the cache keeps.
        classes: Of the teacher.

    Raises:
        DistillError: If a loss needs more, or kd another temperature; or if ``top`` would keep every class.
    """
    if form.kind not in ("top", "sampled"):
        return
    if form.kind == "top" and form.kept >= classes:
        raise DistillError(f"the cache keeps {form.kept} of {classes} classes; keep fewer, or all of them as logits")
    for name, given in terms.items():
        made = choose(name, given)
        check_reads_some(name, made.loss)
        if made.loss is KD:
            options: dict[str, Any] = dict(made.options)
            KD(**options).check_known(form.temperatures if form.kind == "top" else form.temperatures[:1])
