"""What an explain recipe says: the table, its domains, the models and how the gap is estimated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from recipes.explain.domains import DomainData
from recipes.explain.models import ExplainedModel
from recipes.fields import FieldError, check_name, check_range, check_seed
from recipes.front.signature import FedBlock, takes

FINITE = ("zero_one", "brier", "log")
METRICS = ("f1", "recall", "auc", "calibration")
LOSSES = (*FINITE, "squared", "quantile", *METRICS)
# Keys of the estimation that mean nothing in mode models, each with the reason.
UNUSED = {
    "outcome": "the difference of two losses is all that is explained",
    "n_bins": "no source risk is binned",
    "trim": "there is one domain",
    "attribute_baseline": "there is no baseline term",
}


@takes(
    "explain.explainer:GapExplainer",
    leave_out={
        "baseline": "the key baseline of the recipe names the columns",
        "groups": "the key groups of the recipe names them",
        "label": "the key label of the recipe names the column",
        "prediction": "the blocks model and second say what predicts",
        "loss": "the key loss of the recipe names it",
        "loss_column": "the blocks model and second name columns that hold losses",
        "cluster": "the key cluster of the recipe names the column",
        "weight": "the key weight of the recipe names the column",
        "categorical": "the key categorical of the recipe names the columns",
        "ordinal": "the key ordinal of the recipe has the values",
        "seed": "the key seed of the recipe seeds everything",
    },
)
@dataclass
class Estimation(FedBlock):
    """How the terms are estimated: every argument of explain.GapExplainer.

    Attributes:
        learners: Models that estimate the auxiliary quantities: linear (with squares and products), hist_gb (boosted
            trees), or auto, which chooses between the two by cross-validation.
    """

    learners: Literal["auto", "linear", "hist_gb"] = "auto"
    if TYPE_CHECKING:  # what the recipe itself reads of the explainer's arguments
        folds: int = field(init=False)
        outcome: str = field(init=False)


@dataclass
class Recipe:
    """Explain a performance gap.

    Attributes:
        recipe: Always explain.
        name: Name of the run.
        seed: Of the held-out rows, the samples, the model and the folds.
        mode: domain (one model, two domains), curve (one model, many domains against the source), models (two models,
            one domain) or gap-of-gaps (two of both).
        data: The table and its domains.
        label: Column of the outcome; none where losses are columns.
        loss: zero_one, brier or log for classes, f1, recall, auc or calibration for two classes (each as a loss),
            squared or quantile for numbers; what losses in columns are called.
        model: The model that is explained; of two the first, e.g. the teacher.
        second: The other model, e.g. the student.
        train_share: Share of the source rows that train models; they are not analysed. With cluster the share of its
            clusters, none of whose rows is analysed in either domain.
        baseline: Columns upstream of all others, within which the shifts of the others are looked at.
        groups: What the gap is shared out among: columns by name.
        by: Column whose values are explained each by itself, as the recall of women and of men; none for all together.
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
    mode: Literal["domain", "curve", "models", "gap-of-gaps"] = "domain"
    data: DomainData = field(default_factory=DomainData)
    label: str = ""
    loss: str = "zero_one"
    model: ExplainedModel = field(default_factory=ExplainedModel)
    second: ExplainedModel | None = None
    train_share: float = 0.5
    baseline: list[str] = field(default_factory=list)
    by: str = ""
    cluster: str = ""
    weight: str = ""
    categorical: list[str] = field(default_factory=list)
    ordinal: dict[str, list[str]] = field(default_factory=dict)
    estimation: Estimation = field(default_factory=Estimation)

    def __post_init__(self) -> None:
        """Refuse fields that do not belong together."""
        check_name(self.name, "name")
        check_seed(self.seed)
        alone = self.mode in ("domain", "curve")
        if (self.second is None) != alone:
            raise FieldError("second", f"expected {'no' if alone else 'a'} second model in mode {self.mode}")
        if self.data.chunked != (self.mode == "curve"):
            wanted = "what makes the domains, such as value" if self.mode == "curve" else "none"
            raise FieldError("data.chunk", f"expected {wanted} in mode {self.mode}, got {self.data.chunk!r}")
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
        if self.loss in ("squared", "quantile") and any(model.fitted for model in self.models):
            raise FieldError(
                "loss", f"expected a loss for classes: models that are trained here are classifiers, got {self.loss!r}"
            )
        if self.loss in METRICS and self.second is not None and not all(given):
            raise FieldError(
                "loss", f"expected a loss of rows where two models are compared, which {self.loss!r} is not"
            )
        if self.by and self.mode != "domain":
            raise FieldError("by", f"expected none in mode {self.mode}, got {self.by!r}")
        if self.by in every:
            raise FieldError("by", f"expected a column that is neither in baseline nor in groups, got {self.by!r}")
        check_range(self.train_share, "train_share", low=0, high=0.9, low_open=True)
        if self.train_share != Recipe.train_share and not any(model.fitted for model in self.models):
            raise FieldError("train_share", f"expected none where no model is trained, got {self.train_share}")
        self._check_mode()

    def _check_mode(self) -> None:
        """Refuse what the mode does not use."""
        estimation = self.estimation
        if self.mode == "models":
            for key, reason in UNUSED.items():
                value = getattr(estimation, key)
                if value != type(estimation).__dataclass_fields__[key].default:
                    raise FieldError(f"estimation.{key}", f"expected none in mode models, as {reason}, got {value!r}")
            if self.baseline:
                raise FieldError(
                    "baseline",
                    f"expected none in mode models, where no domain shifts, got {self.baseline}: make it a group",
                )
            if self.data.max_target:
                raise FieldError(
                    "data.max_target", f"expected none in mode models, which has no target, got {self.data.max_target}"
                )
            return
        losses = self.loss not in FINITE or all(model.kind == "losses" for model in self.models)
        if estimation.outcome == "risk" and (self.mode == "gap-of-gaps" or losses):
            why = "mode gap-of-gaps" if self.mode == "gap-of-gaps" else "a loss that is not of a finite label"
            raise FieldError("estimation.outcome", f"expected loss for {why}, got 'risk'")

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
        named = [*self.features, *(name for name in (self.label, self.by, self.cluster, self.weight) if name)]
        return named + [column for model in self.models for column in model.columns]
