"""Distillation losses as modules over `Outputs`: each usable alone, and the weighted sum that a training minimises.

Every term has one contract, ``term(student, teacher, labels) -> scalar``. What relates the samples of a batch with one
another (DIST's classes, RKD, CC, MLKD) sees the rows of all processes, so that several processes train as one does.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn

from distill import functional as L
from distill.arguments import check_given, check_names
from distill.errors import DistillError
from distill.gathering import gather
from distill.hard import HardLoss
from distill.terms import SIZES, Function, LogitTerm, Outputs, Term, check_call, check_values, features_of
from gapbridge.arguments import NotNegative, Positive, Share, accepts, shown
from gapbridge.installed import entry_points

Terms = Mapping[str, Any]  # options by name, or a loss of one's own, see `DistillLoss`
ENTRY_POINTS = "gapbridge.distill_losses"


class KD(LogitTerm):
    """Vanilla knowledge distillation, see `distill.functional.kd`.

    Args:
        temperature: Above 0.
        standardised: Compare z-scores of logits.
    """

    name = "kd"

    def __init__(self, temperature: Positive = 1.0, standardised: bool = False) -> None:
        super().__init__(standardised)
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Compare all logits or, where a cache keeps no more, some classes.

        Raises:
            DistillError: If a cache keeps classes for other temperatures.
        """
        if teacher.compact is None:
            return super().forward(student, teacher, labels)
        classes, known = teacher.compact
        self.check_known(known)
        if isinstance(classes, L.TopClasses):
            column = known.index(self.temperature)
            return L.top_kd(student.logits, classes, column=column, temperature=self.temperature)
        return L.sampled_kd(student.logits, classes, temperature=self.temperature)

    def check_known(self, known: Sequence[float]) -> None:
        """Refuse classes that a cache keeps for other temperatures, as :meth:`forward` does."""
        if self.temperature not in known or self.standardised:
            asked = "z-scores" if self.standardised else f"the temperature {self.temperature}"
            raise DistillError(
                f"kd asks for {asked}, but the cache keeps classes for the temperatures {', '.join(map(str, known))}; "
                "write it for those that are asked for"
            )

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Forward KL times the squared temperature."""
        return L.kd(student, teacher, temperature=self.temperature)


class BinaryKD(KD):
    """A KL of Bernoulli variables a class, see `distill.functional.binary_kd`."""

    name = "binary_kd"

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

    name = "dkd"
    needs_labels = True

    def __init__(
        self,
        alpha: NotNegative = 1.0,
        beta: NotNegative = 2.0,
        temperature: Positive = 1.0,
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

    name = "dist"

    def __init__(
        self, beta: NotNegative = 1.0, gamma: NotNegative = 1.0, temperature: Positive = 1.0, standardised: bool = False
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

    name = "mlkd"

    def __init__(
        self, temperatures: tuple[Positive, ...] = (2.0, 3.0, 4.0, 5.0, 6.0), standardised: bool = False
    ) -> None:
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

    name = "jsd"

    def __init__(self, beta: Share = 0.5, temperature: Positive = 1.0, standardised: bool = False) -> None:
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

    name = "rkd"
    needs = "features"

    def __init__(self, distance: NotNegative = 25.0, angle: NotNegative = 50.0) -> None:
        super().__init__()
        self.distance, self.angle = distance, angle

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Distances and angles of the pooled features."""
        s, t = (gather(features_of(z).float()) for z in (student, teacher))
        return L.rkd(s, t, distance=self.distance, angle=self.angle)


@functools.cache
def terms_by_name() -> dict[str, type[Term]]:
    """Every distillation term by the name that recipes use: this package's, then those of installed packages.

    A package gives one by an entry point of the group `gapbridge.distill_losses`, which names a class like `Term`.

    Raises:
        DistillError: If two have one name.
    """
    from distill import cross_tokenizer, hints

    found: dict[str, type[Term]] = {}
    for module in (sys.modules[__name__], hints, cross_tokenizer):
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__ and kind.__dict__.get("name"):
                found[kind.__dict__["name"]] = kind
    for point in entry_points(ENTRY_POINTS):
        if point.name in found or point.name == "hard":
            raise DistillError(f"the package of {point.value} names its loss {point.name!r}, which is taken; rename it")
        found[point.name] = point.load()
    return found


class DistillLoss(nn.Module):
    """A weighted sum of named losses.

    Args:
        terms: By name, the options of each term: `hard` (the labels) or one of `terms_by_name`; `weight` (1 by
            default, at least 0) is its weight and `ramp` the number of epochs over which the weight rises linearly.
            A loss of one's own, an object, a function or a class, stands in place of the options or beside them as
            `loss`; it is called as a `Term` is, and may say by `needs` what it compares.
        sizes: What hints need to know about the two networks (`student_width`, `teacher_width`, `student_channels`,
            `teacher_channels`, `item_labels`); each term takes what its class asks for.

    Raises:
        DistillError: If a name, an option or a weight is wrong.

    Example:
        >>> import torch
        >>> loss = DistillLoss({"hard": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}})
        >>> outputs = Outputs(torch.tensor([[1.0, 0.0]]))
        >>> {name: round(float(value), 3) for name, value in loss(outputs, outputs, torch.tensor([0])).items()}
        {'hard': 0.031, 'kd': 0.0}
        >>> own = DistillLoss({"l2": {"loss": lambda s, t, _: (s.logits - t.logits).square().mean(), "weight": 2.0}})
        >>> own(outputs, Outputs(torch.zeros(1, 2)), None)
        {'l2': tensor(1.)}
    """

    def __init__(self, terms: Terms, sizes: Mapping[str, object] | None = None) -> None:
        super().__init__()
        check_terms(terms)
        chosen = {name: choose(name, given) for name, given in terms.items()}
        self.weights = {name: made.weight for name, made in chosen.items()}
        self.ramps = {name: made.ramp for name, made in chosen.items()}
        self.terms = nn.ModuleDict({name: _build(made, sizes or {}) for name, made in chosen.items()})

    @property
    def needs(self) -> set[str]:
        """Fields of `Outputs` that the terms compare; empty where no teacher is needed."""
        soft = [term for term in self.terms.values() if not isinstance(term, HardLoss)]
        return {str(getattr(t, "needs", "logits")) for t in soft}.union(*(getattr(t, "asked_layers", ()) for t in soft))

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares."""
        return bool(self.needs)

    def forward(
        self, student: Outputs, teacher: Outputs | None, labels: Tensor | None, epoch: float = 0.0
    ) -> dict[str, Tensor]:
        """Every term times its weight, by name; their sum is what to minimise.

        Args:
            student: What the student says.
            teacher: What the teacher says; None where only labels count.
            labels: As in `Term`; None where there are none.
            epoch: Epochs that have passed, for ramps.

        Raises:
            DistillError: If the teacher is missing or has other classes than the student, a term lacks labels, or its
                value is not finite.
        """
        self._check(student, teacher, labels)
        losses = {}
        for name, term in self.terms.items():
            if isinstance(term, Term):
                term.epoch = epoch
            value = term(student.logits, labels) if isinstance(term, HardLoss) else term(student, teacher, labels)
            ramp = self.ramps[name]
            losses[name] = self.weights[name] * (min(1.0, epoch / ramp) if ramp else 1.0) * value
        check_values(losses)
        return losses

    def _check(self, student: Outputs, teacher: Outputs | None, labels: Tensor | None) -> None:
        """Refuse a batch that a term cannot read."""
        if self.needs and teacher is None:
            raise DistillError(f"the terms {', '.join(self.terms)} need a teacher, got none")
        for name, term in self.terms.items():
            if labels is None and (isinstance(term, HardLoss) or getattr(term, "needs_labels", False)):
                raise DistillError(f"{name} needs labels, but the batch has none; give labels, or leave {name} out")
            if teacher is not None and teacher.compact is not None:
                check_reads_some(name, type(term))
        whole = teacher if teacher is not None and teacher.compact is None and teacher.pairs is None else None
        if "logits" in self.needs and whole is not None and student.logits.shape != whole.logits.shape:
            raise DistillError(
                f"the student has {student.logits.shape[-1]} classes and the teacher {whole.logits.shape[-1]}; give "
                "two networks of the same classes, or terms that compare features"
            )


def check_reads_some(name: str, loss: Any) -> None:
    """Refuse a loss that needs more of the teacher than the classes that a compact cache keeps."""
    if loss not in (HardLoss, KD):
        raise DistillError(
            f"{name} compares all of the teacher's outputs, but the cache keeps some classes; use kd, or a cache of "
            "logits"
        )


class Choice(NamedTuple):
    """A loss as it was asked for.

    Attributes:
        loss: A class, an object or a function.
        options: For a class.
        weight: At least 0.
        ramp: Epochs.
    """

    loss: Callable[..., Any]
    options: dict[str, object]
    weight: float
    ramp: float


def choose(name: str, given: object) -> Choice:
    """Read what stands under a name in `terms`.

    Raises:
        DistillError: If no loss is called so.
    """
    options = dict(given) if isinstance(given, Mapping) else {"loss": given}
    weight, ramp = (cast(float, options.pop(key, default)) for key, default in (("weight", 1.0), ("ramp", 0.0)))
    for key, value in (("weight", weight), ("ramp", ramp)):
        if not accepts(NotNegative, value):
            raise DistillError(f"{key} of {name} is {value}, but it must be a finite number of at least 0")
    loss = options.pop("loss", None)
    if loss is None:
        loss = HardLoss if name == "hard" else terms_by_name().get(name)
    if loss is None:
        raise DistillError(f"no loss is called {name!r}; accepted are hard, {', '.join(terms_by_name())}")
    if not callable(loss):
        raise DistillError(f"the loss of {name} is {shown(loss)}, but it must be a class, an object or a function")
    if HardLoss not in (loss, type(loss)):
        check_call(name, loss)
    return Choice(loss, options, float(weight), float(ramp))


def check_terms(terms: Terms) -> None:
    """Refuse unknown terms and options, and weights that no loss could use, without building anything.

    Raises:
        DistillError: With one sentence.
    """
    check_given(check_terms, {"terms": terms})
    if not terms:
        raise DistillError(f"no loss is given; accepted are hard, {', '.join(terms_by_name())}")
    check_names(terms, "term")
    chosen = {name: choose(name, given) for name, given in terms.items()}
    for name, made in chosen.items():
        named = isinstance(made.loss, type)
        accepted = set(inspect.signature(made.loss.__init__).parameters) - {"self"} if named else set[str]()
        if unknown := sorted(set(made.options) - accepted):
            known = ", ".join(("weight", "ramp", *sorted(accepted - set(SIZES))))
            raise DistillError(f"{name} has no option {unknown[0]!r}; accepted are {known}")
        if named:
            check_given(inspect.unwrap(made.loss.__init__), made.options, name)
    if not any(made.weight for made in chosen.values()):
        raise DistillError(f"every weight of {', '.join(terms)} is 0, so there is nothing to learn; raise one")


def _build(made: Choice, sizes: Mapping[str, object]) -> nn.Module:
    loss = made.loss
    if isinstance(loss, type):
        needed = inspect.signature(loss.__init__).parameters  # type: ignore[misc]
        asked = {key: sizes[key] for key in SIZES if key in needed and key in sizes}
        lacking = [k for k in SIZES if k in needed and needed[k].default is inspect.Parameter.empty and k not in asked]
        if absent := [key for key in lacking if key not in made.options]:
            raise DistillError(
                f"{getattr(loss, 'name', '') or loss.__name__} needs {', '.join(absent)}, which the networks or the "
                "data do not tell; give them as sizes or options, or use another term"
            )
        try:
            loss = loss(**asked, **made.options)
        except TypeError as error:
            raise DistillError(
                f"the loss {loss.__name__} cannot be made: {error}; give its options, or an object"
            ) from error
    return loss if isinstance(loss, nn.Module) else Function(loss)
