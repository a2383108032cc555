"""What every distillation term is: the contract of a term, and the outputs of networks that it compares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from distill import functional as L
from distill.arguments import checked
from distill.errors import DistillError
from distill.functional.chunked import LanguageHead

# What networks and data may tell a term as it is made, by the names of its arguments.
SIZES = (
    *("student_width", "teacher_width", "student_channels", "teacher_channels", "item_labels"),
    *("student_layers", "teacher_layers"),
)


class Compact(NamedTuple):
    """What a cache keeps of a teacher's logits instead of all.

    Attributes:
        classes: Of `functional.top_classes` or `functional.sampled_classes`, for the rows of a batch.
        temperatures: At which they can be compared.
    """

    classes: L.TopClasses | L.SampledClasses
    temperatures: tuple[float, ...]


class Outputs(NamedTuple):
    """What a network says about a batch.

    Attributes:
        logits: Shape (batch, classes).
        features: Pooled features before the classifier, shape (batch, width), where a term needs them.
        maps: Feature maps from fine to coarse, each (batch, channels, height, width), where a term needs them.
        rows: Position of every row in the training set, shape (batch,), where a term needs it.
        head: For language models in chunks, what turns features into logits.
        compact: Of a teacher of whom a cache keeps some classes only, in place of the logits.
        pairs: Of a teacher that reads other tokens: the student's row that each of its rows belongs to, shape (rows,).
        layers: Outputs of modules by their names, where a term needs them; of texts (tokens, width), without padding.
    """

    logits: Tensor
    features: Tensor | None = None
    maps: tuple[Tensor, ...] = ()
    rows: Tensor | None = None
    head: LanguageHead | None = None
    compact: Compact | None = None
    pairs: Tensor | None = None
    layers: Mapping[str, Tensor] = MappingProxyType({})


class Term(nn.Module):
    """One distillation loss. Arguments of a subclass are checked by their annotations, see `gapbridge.arguments`.

    Attributes:
        name: What recipes call it; empty for a loss that is only given as an object.
        needs: The field of `Outputs` that it compares.
        asked_layers: Where that is layers, of which modules, see `distill.layers.asked`.
        needs_labels: Whether it has no value for a batch without labels.
        epoch: Epochs that have passed, for what changes over them.
    """

    name: ClassVar[str] = ""
    needs: Literal["logits", "features", "maps", "layers"] = "logits"
    asked_layers: frozenset[str] = frozenset()
    needs_labels: bool = False
    epoch: float = 0.0

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            student: What the student says.
            teacher: What the teacher says about the same view; no gradient flows into it.
            labels: Class indices (batch,) or label distributions (batch, classes).
        """
        raise NotImplementedError


class LogitTerm(Term):
    """A loss of two matrices of logits.

    Args:
        standardised: Replace every row of both by its z-score first (logit standardisation).
    """

    def __init__(self, standardised: bool = False) -> None:
        super().__init__()
        self.standardised = standardised

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Compare the logits, in float32 at least whatever precision made them."""
        s, t = (z.logits.to(torch.promote_types(z.logits.dtype, torch.float32)) for z in (student, teacher))
        if self.standardised:
            s, t = L.standardise(s), L.standardise(t)
        return self.compare(s, t, labels)

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The loss of two matrices (batch, classes)."""
        raise NotImplementedError


def features_of(outputs: Outputs) -> Tensor:
    """Pooled features of a network.

    Raises:
        DistillError: If it gave none.
    """
    if outputs.features is None:
        raise DistillError("a term compares features, but a network gave logits only; give Outputs with features")
    return outputs.features


class Function(Term):
    """A plain function as a term."""

    def __init__(self, function: Callable[[Outputs, Outputs, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.needs = function, getattr(function, "needs", "logits")

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """What the function says."""
        value: Tensor = self.function(student, teacher, labels)
        return value


def check_call(name: str, loss: Callable[..., object]) -> None:
    """Refuse a loss of one's own that cannot be called as a `Term` is; what cannot be read is tried in training.

    Args:
        name: Its name.
        loss: A class, an object or a function.

    Raises:
        DistillError: If it takes other arguments.
    """
    of_module = (isinstance(loss, type) and issubclass(loss, nn.Module)) or isinstance(loss, nn.Module)
    if isinstance(loss, type) and not of_module:
        return
    forward = getattr(loss, "forward", loss) if of_module else loss
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*[None] * (3 + isinstance(loss, type)))
    except TypeError as error:
        raise DistillError(
            f"the loss of {name} takes {signature}, but it is called with the student's outputs, the teacher's and the "
            "labels; see distill.Term"
        ) from error


def check_values(losses: Mapping[str, Tensor]) -> None:
    """Refuse losses that are NaN or infinite, before they reach any weight.

    Raises:
        DistillError: With the name of the first.
    """
    if not bool(torch.stack([value.detach().float().sum() for value in losses.values()]).isfinite().all()):
        name, value = next((n, v) for n, v in losses.items() if not bool(v.isfinite().all()))
        raise DistillError(
            f"the loss {name} is {float(value.detach())}, from which nothing can be learnt: outputs overflow, as in a "
            "training that diverged; lower the learning rate, or clip"
        )
