"""Torchmetrics that collect features and losses in any evaluation loop, on any number of processes, and explain."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from explain.errors import ExplainError
from explain.explainer import GapExplainer
from explain.paired import ModelGapExplainer
from explain.report import GapReport
from gapbridge.arguments import accepts

# Names in the collected table that no feature can be mistaken for.
DOMAIN, LABEL, LOSS, LOSS_A, LOSS_B = "(domain)", "(label)", "(loss)", "(loss a)", "(loss b)"


class _Box:
    """Holds a report where torchmetrics would take it apart in search of tensors."""

    def __init__(self, report: GapReport) -> None:
        self.report = report


class _Collector(Metric):
    """Collects rows of numbers as one state, which is gathered from all processes when the report is computed."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, features: Sequence[str], categorical: Sequence[str]) -> None:
        super().__init__()
        for option, names in (("features", features), ("categorical", categorical)):
            if not accepts(Sequence[str], names) or len(set(names)) < len(names):
                raise ExplainError(f"{option} is {names!r}, but it must be a list of names, each once")
        self.features, self.categorical = list(features), list(categorical)
        if not self.features:
            raise ExplainError("features is empty, but a gap is shared out among at least one: name the columns")
        if unknown := sorted(set(self.categorical) - set(self.features)):
            raise ExplainError(f"categorical names '{unknown[0]}', but the features are {', '.join(self.features)}")
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def forward(self, *args: object, **kwargs: object) -> None:
        """Collect, as `update` does: one batch alone has no gap that could be explained."""
        self.update(*args, **kwargs)

    def _collect(self, features: Tensor, *columns: Tensor | float) -> None:
        """Keep a batch: features, and columns of shape (n,), (n, k) or numbers that hold for all its rows."""
        if features.dim() != 2 or features.shape[1] != len(self.features):
            raise ExplainError(
                f"features have the shape {tuple(features.shape)}, but they need a column for each of "
                f"{', '.join(self.features)}"
            )
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        parts = []
        for column in (*columns, features):
            part = torch.as_tensor(column).detach().to(self.device, dtype)
            part = part.expand(len(features)) if part.dim() == 0 else part
            if len(part) != len(features):
                raise ExplainError(
                    f"a column has {len(part)} rows and the features {len(features)}: give one value a row"
                )
            parts.append(part if part.dim() == 2 else part[:, None])
        self.rows.append(torch.cat(parts, 1))

    def _table(self, names: Sequence[str]) -> pd.DataFrame:
        """Everything collected: the named columns first, then the others by number, then the features."""
        if not len(self.rows):
            raise ExplainError("nothing was collected: call update with the batches of the evaluation first")
        rows = dim_zero_cat(self.rows).cpu().double().numpy()
        others = [f"(column {number})" for number in range(rows.shape[1] - len(names) - len(self.features))]
        frame = pd.DataFrame(rows, columns=[*names, *others, *self.features])
        return frame.astype(dict.fromkeys(self.categorical, str))

    def _wrap_compute(self, compute: Callable[[], GapReport]) -> Callable[[], GapReport]:
        boxed = super()._wrap_compute(lambda: _Box(compute()))
        return functools.wraps(compute)(lambda: boxed().report)


class PerformanceGap(_Collector):
    """Collects two domains from an evaluation loop and explains the gap between them.

    Call `update` with every batch of both domains (two test loops, or batches that mix them), and `compute` once, at
    the end. A report is no number, so it is not for `self.log`; keep what `compute` returns. On several processes the
    rows of all of them are gathered and every process computes the same report; a distributed sampler that repeats
    rows to make the shares equal repeats them here as well.

    Args:
        features: Names of the columns of the features.
        categorical: Those among them that hold codes of categories.
        **options: Arguments of :class:`~explain.explainer.GapExplainer`: baseline, groups, loss, learners, ...

    Example:
        >>> metric = PerformanceGap(["age", "income"], baseline=["age"], learners="linear", folds=2)
        >>> for domain in (0, 1):
        ...     generator = torch.Generator().manual_seed(domain)
        ...     x = torch.randn(400, 2, generator=generator)
        ...     target = (torch.rand(400, generator=generator) < (x[:, 1] * (1 - 2 * domain)).sigmoid()).int()
        ...     metric.update(x, x[:, 1].sigmoid(), target, domain=domain)
        >>> report = metric.compute()
        >>> max(report.aggregate, key=lambda term: term.value).name
        'outcome'
    """

    def __init__(self, features: Sequence[str], *, categorical: Sequence[str] = (), **options: Any) -> None:
        super().__init__(features, categorical)
        given = options.get("loss") == "given"
        self.explainer = GapExplainer(label=LABEL, loss_column=LOSS, **{"prediction": "(column 0)", **options})
        self.given = given

    def update(
        self,
        features: Tensor,
        preds: Tensor | None = None,
        target: Tensor | None = None,
        loss: Tensor | None = None,
        *,
        domain: Tensor | int,
    ) -> None:
        """Collect a batch.

        Args:
            features: Shape (n, number of features).
            preds: Probability of class 1, shape (n,), or of every class, shape (n, C); numbers for the squared loss.
            target: Labels from 0 on, or numbers, shape (n,).
            loss: Loss of every row, shape (n,), in the place of both, when the loss is "given".
            domain: 0 for rows of the source and 1 for rows of the target: a number, or one a row, shape (n,).

        Raises:
            ExplainError: If shapes do not fit, or it is not preds and target, or loss, that is given.
        """
        wanted, unused = ((loss,), (preds, target)) if self.given else ((target, preds), (loss,))
        if any(part is None for part in wanted) or any(part is not None for part in unused):
            what = "the loss of every row, and no preds or target" if self.given else "preds and target, and no loss"
            raise ExplainError(f"update for loss='{self.explainer.loss}' takes {what}")
        self._collect(features, domain, *(part for part in wanted if part is not None))

    def compute(self) -> GapReport:
        """The report on all rows of both domains.

        Raises:
            ExplainError: As :meth:`~explain.explainer.GapExplainer.fit`.
        """
        names = [DOMAIN, LOSS] if self.given else [DOMAIN, LABEL]
        table = self._table(names)
        chances = [name for name in table if name not in {*names, *self.features}]
        self.explainer.set_params(prediction=chances[0] if len(chances) == 1 else chances)
        source, target = (table[table[DOMAIN] == side].drop(columns=DOMAIN) for side in (0, 1))
        return self.explainer.fit(source, target).report_


class ModelGap(_Collector):
    """Collects the losses of two models on the same rows and explains their difference.

    As :class:`PerformanceGap`: `update` with every batch, `compute` once, at the end.

    Args:
        features: Names of the columns of the features: what is known of an input independently of the second model.
        categorical: Those among them that hold codes of categories.
        **options: Arguments of :class:`~explain.paired.ModelGapExplainer`: groups, learners, folds, ...
    """

    def __init__(self, features: Sequence[str], *, categorical: Sequence[str] = (), **options: Any) -> None:
        super().__init__(features, categorical)
        self.explainer = ModelGapExplainer(models=(LOSS_A, LOSS_B), loss="given", **options)

    def update(self, features: Tensor, loss_a: Tensor, loss_b: Tensor) -> None:
        """Collect a batch.

        Args:
            features: Shape (n, number of features).
            loss_a: Loss of the first model on every row, e.g. of the teacher, shape (n,).
            loss_b: Loss of the second model, e.g. of the student, shape (n,).

        Raises:
            ExplainError: If shapes do not fit.
        """
        self._collect(features, loss_a, loss_b)

    def compute(self) -> GapReport:
        """The report on all rows.

        Raises:
            ExplainError: As :meth:`~explain.paired.ModelGapExplainer.fit`.
        """
        return self.explainer.fit(self._table([LOSS_A, LOSS_B])).report_
