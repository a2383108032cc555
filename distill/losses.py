"""Distillation losses as modules over `Outputs`: each usable alone, and the weighted sum that a training minimises.

Every term has one contract, ``term(student, teacher, labels) -> scalar``. What relates the samples of a batch with one
another (DIST's classes, RKD, CC, MLKD) sees the rows of all processes, so that several processes train as one does.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill import functional as L
from distill.errors import DistillError
from distill.functional.checks import check_temperature
from distill.gathering import gather
from distill.terms import LogitTerm, Outputs, Term, features_of

Terms = Mapping[str, Mapping[str, Any]]


class KD(LogitTerm):
    """Vanilla knowledge distillation, see `distill.functional.kd`.

    Args:
        temperature: Above 0.
        standardised: Compare z-scores of logits.
    """

    def __init__(self, temperature: float = 1.0, standardised: bool = False) -> None:
        super().__init__(standardised)
        self.temperature = temperature

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Forward KL times the squared temperature."""
        return L.kd(student, teacher, temperature=self.temperature)


class BinaryKD(KD):
    """A KL of Bernoulli variables a class, see `distill.functional.binary_kd`."""

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Sum over classes."""
        return L.binary_kd(student, teacher, temperature=self.temperature)


class DKD(LogitTerm):
    """Decoupled distillation, see `distill.functional.dkd`.

    Args:
        alpha: Weight of the target against the rest.
        beta: Weight of the rest among themselves.
        temperature: Above 0.
        mixed: What the target of a mixed label is, argmax or partition.
        standardised: Compare z-scores of logits.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 2.0,
        temperature: float = 1.0,
        mixed: Literal["argmax", "partition"] = "argmax",
        standardised: bool = False,
    ) -> None:
        super().__init__(standardised)
        self.alpha, self.beta, self.temperature, self.mixed = alpha, beta, temperature, mixed

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Two weighted parts."""
        options: dict[str, Any] = {"alpha": self.alpha, "beta": self.beta, "mixed": self.mixed}
        return L.dkd(student, teacher, labels, temperature=self.temperature, **options)


class DIST(LogitTerm):
    """Relational distillation, see `distill.functional.dist`; the relations within a class span all processes.

    Args:
        beta: Weight of the relations within a row.
        gamma: Weight of the relations within a class.
        temperature: Above 0.
        standardised: Compare z-scores of logits.
    """

    def __init__(
        self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0, standardised: bool = False
    ) -> None:
        super().__init__(standardised)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Both relations over the global batch."""
        options = {"beta": self.beta, "gamma": self.gamma, "temperature": self.temperature}
        return L.dist(gather(student), gather(teacher), **options)


class MultiTemperature(LogitTerm):
    """The multi-level term of MLKD, see `distill.functional.multi_temperature`.

    Args:
        temperatures: Each above 0.
        standardised: Compare z-scores of logits.
    """

    def __init__(self, temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0), standardised: bool = False) -> None:
        super().__init__(standardised)
        self.temperatures = tuple(temperatures)

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Instances, batch and classes over the global batch."""
        return L.multi_temperature(gather(student), gather(teacher), temperatures=self.temperatures)


class JSD(LogitTerm):
    """Generalised Jensen-Shannon divergence, see `distill.functional.generalised_jsd`.

    Args:
        beta: 0 is the forward KL, 1 the reverse.
        temperature: Above 0.
        standardised: Compare z-scores of logits.
    """

    def __init__(self, beta: float = 0.5, temperature: float = 1.0, standardised: bool = False) -> None:
        super().__init__(standardised)
        self.beta, self.temperature = beta, temperature

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Mean over rows."""
        return L.generalised_jsd(student, teacher, beta=self.beta, temperature=self.temperature)


class RKD(Term):
    """Relations between samples, see `distill.functional.rkd`; over the global batch.

    Args:
        distance: Weight of the distances.
        angle: Weight of the angles.
    """

    needs = "features"

    def __init__(self, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        self.distance, self.angle = distance, angle

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Distances and angles of the pooled features."""
        s, t = (gather(features_of(z).float()) for z in (student, teacher))
        return L.rkd(s, t, distance=self.distance, angle=self.angle)


class HardLoss(nn.Module):
    """Loss of the labels.

    Args:
        kind: ce, cross-entropy; or bce, one sigmoid a class.
        reduction: For bce, mean over batch and classes as in the official code, which makes the term about as many
            times smaller as there are classes; or sum_classes.
        smoothing: Label smoothing of class indices; mixed labels are smoothed where they are mixed.
    """

    def __init__(
        self,
        kind: Literal["ce", "bce"] = "ce",
        reduction: Literal["mean", "sum_classes"] = "mean",
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in ("ce", "bce") or reduction not in ("mean", "sum_classes"):
            raise DistillError(
                f"the hard loss is {kind!r} with reduction {reduction!r}; accepted are 'ce' and 'bce' with 'mean' and "
                "'sum_classes'"
            )
        if not 0 <= smoothing < 1:
            raise DistillError(f"smoothing is {smoothing}, but it must be from 0 to below 1")
        self.kind, self.reduction, self.smoothing = kind, reduction, smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (batch, classes) with labels as in `Term`."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.kind == "ce":
            smoothing = self.smoothing if labels.ndim == 1 else 0.0
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        from timm.loss import BinaryCrossEntropy

        loss: Tensor = BinaryCrossEntropy(self.smoothing, sum_classes=self.reduction == "sum_classes")(logits, labels)
        return loss


def terms_by_name() -> dict[str, type[Term]]:
    """Every distillation term by the name that recipes use."""
    from distill import hints

    return {
        "kd": KD,
        "binary_kd": BinaryKD,
        "dkd": DKD,
        "dist": DIST,
        "mlkd": MultiTemperature,
        "jsd": JSD,
        "rkd": RKD,
        "ctkd": hints.CurriculumTemperature,
        "fitnet": hints.FitNetHint,
        "cc": hints.CorrelationHint,
        "crd": hints.CRDHint,
        "review": hints.ReviewHint,
    }


class DistillLoss(nn.Module):
    """A weighted sum of named losses.

    Args:
        terms: By name, the options of each term: `hard` (the labels) or one of `terms_by_name`; `weight` (1 by
            default, at least 0) is its weight and `ramp` the number of epochs over which the weight rises linearly.
        sizes: What hints need to know about the two networks (`student_width`, `teacher_width`, `student_channels`,
            `teacher_channels`, `item_labels`); each term takes what its class asks for.

    Example:
        >>> loss = DistillLoss({"hard": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}})
        >>> outputs = Outputs(torch.tensor([[1.0, 0.0]]))
        >>> {name: round(float(value), 3) for name, value in loss(outputs, outputs, torch.tensor([0])).items()}
        {'hard': 0.031, 'kd': 0.0}
    """

    def __init__(self, terms: Terms, sizes: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        check_terms(terms)
        self.weights = {name: float(options.get("weight", 1.0)) for name, options in terms.items()}
        self.ramps = {name: float(options.get("ramp", 0.0)) for name, options in terms.items()}
        self.terms = nn.ModuleDict({name: _build(name, options, sizes or {}) for name, options in terms.items()})

    @property
    def needs(self) -> set[str]:
        """Fields of `Outputs` that the terms compare; empty where no teacher is needed."""
        return {term.needs for term in self.terms.values() if isinstance(term, Term)}

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares."""
        return bool(self.needs)

    def forward(
        self, student: Outputs, teacher: Outputs | None, labels: Tensor, epoch: float = 0.0
    ) -> dict[str, Tensor]:
        """Every term times its weight, by name; their sum is what to minimise.

        Args:
            student: What the student says.
            teacher: What the teacher says; None where only labels count.
            labels: As in `Term`.
            epoch: Epochs that have passed, for ramps.

        Raises:
            DistillError: If the teacher is missing or has other classes than the student.
        """
        if self.needs and teacher is None:
            raise DistillError(f"the terms {', '.join(self.terms)} need a teacher, got none")
        if "logits" in self.needs and teacher is not None and student.logits.shape != teacher.logits.shape:
            raise DistillError(
                f"the student has {student.logits.shape[-1]} classes and the teacher {teacher.logits.shape[-1]}; give "
                "two networks of the same classes, or terms that compare features"
            )
        losses = {}
        for name, term in self.terms.items():
            if isinstance(term, Term):
                term.epoch = epoch
            value = term(student.logits, labels) if name == "hard" else term(student, teacher, labels)
            ramp = self.ramps[name]
            losses[name] = self.weights[name] * (min(1.0, epoch / ramp) if ramp else 1.0) * value
        return losses


def check_terms(terms: Terms) -> None:
    """Refuse unknown terms and options, and weights that no loss could use, without building anything.

    Raises:
        DistillError: With one sentence.
    """
    known = terms_by_name()
    if not terms:
        raise DistillError(f"no loss is given; accepted are hard, {', '.join(known)}")
    for name, options in terms.items():
        if name != "hard" and name not in known:
            raise DistillError(f"no loss is called {name!r}; accepted are hard, {', '.join(known)}")
        accepted = _options(HardLoss if name == "hard" else known[name])
        if unknown := sorted(set(options) - accepted - {"weight", "ramp"}):
            named = ", ".join(("weight", "ramp", *sorted(accepted - set(SIZES))))
            raise DistillError(f"{name} has no option {unknown[0]!r}; accepted are {named}")
        for key in ("weight", "ramp"):
            value = options.get(key, 1.0)
            if not (math.isfinite(value) and value >= 0):
                raise DistillError(f"{key} of {name} is {value}, but it must be a finite number of at least 0")
        if "temperature" in options:
            try:
                check_temperature(options["temperature"])
            except ValueError as error:
                raise DistillError(f"{name}: {error}") from error
    if not any(options.get("weight", 1.0) for options in terms.values()):
        raise DistillError(f"every weight of {', '.join(terms)} is 0, so there is nothing to learn; raise one")


SIZES = ("student_width", "teacher_width", "student_channels", "teacher_channels", "item_labels")


def _options(kind: type[nn.Module]) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters) - {"self"}


def _build(name: str, options: Mapping[str, Any], sizes: Mapping[str, Any]) -> nn.Module:
    kind = HardLoss if name == "hard" else terms_by_name()[name]
    asked = {key: sizes[key] for key in SIZES if key in _options(kind) and key in sizes}
    return kind(**asked, **{key: value for key, value in options.items() if key not in ("weight", "ramp")})
