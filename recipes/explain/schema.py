"""What an explain recipe says: the table, its domains, the models and how the gap is estimated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from recipes.explain.domains import DomainData
from recipes.explain.models import ExplainedModel
from recipes.fields import FieldError, check_name, check_range

LOSSES = ("zero_one", "brier", "log", "squared")


@dataclass
class Estimation:
    """How the terms are estimated; see `explain.GapExplainer`.

    Attributes:
        learners: Nuisances: auto (cross-validated choice), linear (with squares and products) or hist_gb (boosting).
        outcome: In mode domain, risk (the paper's outcome shift, needs labels) or loss (from the losses alone).
        bins: Bins of the source risk in the outcome shift.
        folds: Folds of the cross-fitting.
        repeats: Repetitions of it with other folds; the median counts.
        level: Level of the intervals.
        min_shift: Standard errors that a shift must be away from 0 to be shared out among variables.
        interval: wald, or fieller where the shift is weak.
        trim: Leave out rows whose probability of the target, given all features, is within this distance of 0 or 1.
        jobs: Processes that work on subsets at once.
    """

    learners: Literal["auto", "linear", "hist_gb"] = "auto"
    outcome: Literal["risk", "loss"] = "risk"
    bins: int = 20
    folds: int = 5
    repeats: int = 1
    level: float = 0.9
    min_shift: float = 2.0
    interval: Literal["wald", "fieller"] = "wald"
    trim: float = 0.0
    jobs: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_range(self.bins, "bins", low=1)
        check_range(self.folds, "folds", low=2)
        check_range(self.repeats, "repeats", low=1)
        check_range(self.level, "level", low=0.5, high=0.999)
        check_range(self.min_shift, "min_shift", low=0)
        check_range(self.trim, "trim", low=0, high=0.45)
        if self.jobs < 1 and self.jobs != -1:
            raise FieldError("jobs", f"expected a number of processes, or -1 for one a core, got {self.jobs}")


@dataclass
class Recipe:
    """Explain a performance gap.

    Attributes:
        recipe: Always explain.
        name: Name of the run.
        seed: Of the held-out rows, the samples, the model and the folds.
        mode: domain (one model, two domains), models (two models, one domain) or gap-of-gaps (two of both).
        data: The table and its domains.
        label: Column of the outcome; none where losses are columns.
        loss: zero_one, brier or log for classes, squared for numbers; what losses in columns are called.
        model: The model that is explained; of two the first, e.g. the teacher.
        second: The other model, e.g. the student.
        train_share: Share of the source rows that train models; they are not analysed.
        baseline: Columns upstream of all others, within which the shifts of the others are looked at.
        groups: What the gap is shared out among: columns by name.
        cluster: Column that tells which rows belong together, such as a patient or a prompt.
        weight: Column of survey or sample weights, such as PWGTP; models that are trained here learn without them.
        categorical: Columns of numbers that are codes of categories.
        ordinal: Values of a column from the lowest to the highest, by column, where texts have an order.
        estimation: How the terms are estimated.
    """

    groups: dict[str, list[str]]
    recipe: Literal["explain"] = "explain"
    name: str = "gap"
    seed: int = 0
    mode: Literal["domain", "models", "gap-of-gaps"] = "domain"
    data: DomainData = field(default_factory=DomainData)
    label: str = ""
    loss: str = "zero_one"
    model: ExplainedModel = field(default_factory=ExplainedModel)
    second: ExplainedModel | None = None
    train_share: float = 0.5
    baseline: list[str] = field(default_factory=list)
    cluster: str = ""
    weight: str = ""
    categorical: list[str] = field(default_factory=list)
    ordinal: dict[str, list[str]] = field(default_factory=dict)
    estimation: Estimation = field(default_factory=Estimation)

    def __post_init__(self) -> None:
        """Refuse fields that do not belong together."""
        check_name(self.name, "name")
        if (self.second is not None) != (self.mode != "domain"):
            raise FieldError(
                "second", f"expected {'no' if self.mode == 'domain' else 'a'} second model in mode {self.mode}"
            )
        if self.data.two != (self.mode != "models"):
            wanted = (
                "one domain: leave out column and target_path" if self.mode == "models" else "a column or target_path"
            )
            raise FieldError("data", f"expected {wanted} in mode {self.mode}")
        if not self.baseline and self.mode != "models":
            raise FieldError("baseline", f"expected at least one column in mode {self.mode}, got none")
        if not self.groups or not all(self.groups.values()):
            raise FieldError("groups", f"expected at least one group, each of at least one column, got {self.groups}")
        every = [*self.baseline, *(column for columns in self.groups.values() for column in columns)]
        for column in every:
            if every.count(column) > 1:
                raise FieldError("groups", f"column {column!r} is listed twice among baseline and groups")
        if "recalibration" in self.groups:
            raise FieldError("groups", "expected another name than 'recalibration', the share that needs no variable")
        for key, listed in (("categorical", self.categorical), ("ordinal", list(self.ordinal))):
            if unknown := [column for column in listed if column not in every]:
                raise FieldError(key, f"expected columns of baseline or groups, got {unknown[0]!r}")
        given = [model.kind == "losses" for model in self.models]
        if any(given) and not all(given):
            raise FieldError("second.kind", "expected losses for both models or for none")
        if all(given) == bool(self.label):
            raise FieldError("label", f"expected a column unless losses are columns, got {self.label!r}")
        if not all(given) and self.loss not in LOSSES:
            raise FieldError("loss", f"expected {', '.join(LOSSES)}, got {self.loss!r}")
        if self.loss == "squared" and any(model.fitted for model in self.models):
            raise FieldError(
                "loss", "expected a loss for classes: models that are trained here are classifiers, got 'squared'"
            )
        check_range(self.train_share, "train_share", low=0, high=0.9, low_open=True)

    @property
    def models(self) -> list[ExplainedModel]:
        """The one or two models."""
        return [self.model, *([self.second] if self.second is not None else [])]

    @property
    def features(self) -> list[str]:
        """Baseline and grouped columns."""
        return [*self.baseline, *(column for columns in self.groups.values() for column in columns)]

    @property
    def columns(self) -> list[str]:
        """Every column that the table must have."""
        named = [*self.features, *(name for name in (self.label, self.cluster, self.weight) if name)]
        return named + [column for model in self.models for column in model.columns]
