"""What a compose recipe says: the merge, the students, and how what they lose is explained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from distill.errors import DistillError
from distill.regimes import regime
from recipes.data.language_task import NO_COLUMNS
from recipes.distill.merge_run import merge_kind
from recipes.distill.schema import Data, Network, Recipe as Distillation, Terms, Values
from recipes.explain.domains import DomainData
from recipes.explain.models import ExplainedModel
from recipes.explain.schema import Estimation, Recipe as Explanation
from recipes.fields import FieldError, check_name, check_range, check_seed
from recipes.front.schema import did_you_mean
from recipes.merge.schema import Recipe as Merge
from recipes.running.trainer import TrainerConfig

MERGE = "merge"  # name of the first stage
GROUPS = {
    "task": ["task"],
    "length": ["words"],
    "confidence": ["confidence", "entropy"],
    "router": ["router_confidence"],
}
MODELS = ("expert", "twin")  # what the students are compared with
ANSWERS = "answers"  # name of the stage before the explanations
TAKEN = (MERGE, ANSWERS, *MODELS, "experts", "pretrained", "teacher")  # names of stages and of rows of their tables


@dataclass
class Student:
    """A dense model that learns from the twin.

    Attributes:
        model: Its body: a folder, a Hub name or shipped:minilm; empty is the base of the experts, started from the
            twin's shared expert.
        options: For its constructor, as num_hidden_layers.
        losses: Losses and their options, as in the recipe distill; kd alone reads no labels.
        changes: Values of the regime that are different for this student.
    """

    model: str = ""
    options: Values = field(default_factory=dict)
    losses: Terms = field(default_factory=lambda: {"kd": {"temperature": 2.0}})
    changes: Values = field(default_factory=dict)


@dataclass
class Explained:
    """How the losses of two models on the same inputs are explained.

    Attributes:
        loss: zero_one (a wrong answer), brier or log; for language models log, nats a token, tells most.
        groups: What the difference is shared out among: columns by name. The columns are task, source, label, words
            (of a text), confidence and entropy (of the expert), router_confidence (largest weight of the mixture), and
            those of `columns`. None at all takes task, length (words), confidence and router.
        columns: Further columns of the tasks' own files; of texts with classes only.
        examples: How many inputs on which the models differ are shown.
        estimation: How the shares are estimated.
    """

    loss: Literal["zero_one", "brier", "log"] = "zero_one"
    groups: dict[str, list[str]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    examples: int = 12
    estimation: Estimation = field(default_factory=Estimation)

    def __post_init__(self) -> None:
        """Refuse what cannot be explained."""
        check_range(self.examples, "examples", low=0, high=1000)


@dataclass
class Recipe:
    """Merge experts, distil the twin into dense students, and explain what every step loses.

    Attributes:
        recipe: Always compose.
        name: Name of the run.
        seed: Seeds every stage.
        merge: The merge, as in the recipe merge; its seed is that of this recipe.
        students: The students by name.
        regime: How students are trained: a regime of the recipe distill.
        changes: Values of the regime that are different here.
        trainer: Arguments of lightning.Trainer for the students.
        explain: How their losses are explained.
        taken: Folders of finished runs that are taken as stages: of merge, or of a student by its name.
    """

    recipe: Literal["compose"] = "compose"
    name: str = "composed"
    seed: int = 0
    merge: Merge | None = None
    students: dict[str, Student] = field(default_factory=lambda: {"dense": Student()})
    regime: str = "A2"
    changes: Values = field(default_factory=dict)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    explain: Explained = field(default_factory=Explained)
    taken: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse stages that do not belong together, and what no stage could be made of."""
        check_name(self.name, "name")
        check_seed(self.seed)
        if (self.merge is None) != (MERGE in self.taken):
            got = "both" if self.merge else "neither"
            raise FieldError("merge", f"expected exactly one of merge and taken.merge, got {got}")
        if self.merge is not None and self.merge.seed not in (Merge.seed, self.seed):
            raise FieldError("merge.seed", f"expected none, as `seed` is every stage's, got {self.merge.seed}")
        if self.merge is not None and not self.merge.tasks:
            raise FieldError("merge.tasks", "expected the tasks that the students learn, got none")
        if not self.students:
            raise FieldError("students", "expected at least one, got none")
        for name, student in self.students.items():
            check_name(name, "students")
            taken = [*TAKEN, *map("-".join, self.pairs())]
            if name in taken:
                raise FieldError(f"students.{name}", f"expected another name than {', '.join(taken)}")
            if not student.losses:
                raise FieldError(f"students.{name}.losses", "expected at least one loss, got none")
            try:
                regime(self.regime, self.changes | student.changes)
            except DistillError as error:
                where = "regime" if "no regime" in str(error) else f"students.{name}.changes"
                raise FieldError(where, str(error)) from error
        if unknown := sorted(set(self.taken) - {MERGE, *self.students}):
            raise FieldError(f"taken.{unknown[0]}", f"expected {MERGE} or one of {', '.join(self.students)}")
        self._check_kind()
        self._check_columns()
        for name in self.students:
            self.distillation(name, Path("run"))
        for pair in self.pairs():
            self.explanation(pair, Path("answers.parquet"))

    @property
    def kind(self) -> Literal["images", "texts", "language"]:
        """What the tasks of the merge are made of."""
        if self.merge is None:
            return merge_kind(self.taken[MERGE])
        if self.merge.training.model == "causal":
            return "language"
        return "images" if self.merge.tasks[0].kind == "images" else "texts"

    def _check_kind(self) -> None:
        """Refuse at once what the stages after the merge would refuse once it is made."""
        kind, tasks = self.kind, self.merge.tasks if self.merge else []
        for index, task in enumerate(tasks):
            if task.kind == "regression":
                told = (
                    f"expected classes, since losses of numbers are not compared, got {task.kind!r}; leave the task out"
                )
                raise FieldError(f"merge.tasks.{index}.kind", told)
        if self.explain.columns and kind != "texts":
            why = NO_COLUMNS if kind == "language" else "expected none with images, whose files have no columns"
            raise FieldError("explain.columns", f"{why}, got {self.explain.columns}")
        for name, student in self.students.items():
            if kind == "language" and "uld" in student.losses:
                told = "expected another loss than uld, which is for other tokens than the twin's, such as kd, got uld"
                raise FieldError(f"students.{name}.losses", told)

    def _check_columns(self) -> None:
        """Refuse at once groups of columns that the table of all answers will not have."""
        try:
            students = dict.fromkeys(self.students, "")
            table = DomainData("merge", MERGE, students=students, columns=self.explain.columns)
        except FieldError as error:
            raise FieldError(f"explain.{error.where}", error.message) from error
        shown = ["text", *(f"{model}_answer" for model in (*MODELS, *self.students))]
        if taken := [name for name in self.explain.columns if name in shown]:
            raise FieldError("explain.columns", f"expected further columns; {taken[0]!r} is one of the table's own")
        known = [*table.merged, *self.explain.columns]
        known = [name for name in known if name != "words" or self.kind != "images"]
        for group, columns in self.explain.groups.items():
            if unknown := [name for name in columns if name not in known]:
                told = f"no column is called {unknown[0]!r}; {did_you_mean(unknown[0], known)}"
                raise FieldError(
                    f"explain.groups.{group}", f"{told}; a column of your files is named in explain.columns"
                )

    def merging(self) -> Merge | None:
        """The recipe of the merge; None where a run is taken."""
        return None if self.merge is None else replace(self.merge, seed=self.seed)

    def distillation(self, name: str, run: Path) -> Distillation:
        """The recipe of a student.

        Args:
            name: Of the student.
            run: Folder of the merge that teaches it.

        Raises:
            FieldError: When the recipe distill refuses it.
        """
        student = self.students[name]
        losses = {loss: dict(sorted(options.items())) for loss, options in student.losses.items()}
        whole: Values = {"chunk": 0} if self.kind == "language" else {}  # as a routed twin's logits are made
        try:
            return Distillation(
                # Keys are sorted, as the order in which they are written down must not make a student anew.
                student=Network(student.model, dict(sorted(student.options.items()))),
                name=name,
                seed=self.seed,
                data=Data(source="merge", path=str(run)),
                regime=self.regime,
                changes=dict(sorted((self.changes | student.changes).items())),
                methods={name: losses},
                trainer=self.trainer,
                **whole,
            )
        except FieldError as error:
            raise FieldError(f"students.{name}", f"{error.where}: {error.message}") from error

    def _groups(self) -> dict[str, list[str]]:
        """What losses are shared out among; images have no length."""
        if self.explain.groups:
            return self.explain.groups
        usual = {name: columns for name, columns in GROUPS.items() if "words" not in columns or self.kind != "images"}
        return usual | {f"column {name}" if name in usual else name: [name] for name in self.explain.columns}

    def pairs(self) -> list[tuple[str, str]]:
        """What is compared with what: the experts with the twin, and the twin with every student."""
        return [MODELS, *((MODELS[1], name) for name in self.students)]

    def explanation(self, pair: tuple[str, str], table: Path) -> Explanation:
        """The recipe that explains what the second model of a pair loses against the first.

        Args:
            pair: Of `pairs`.
            table: The file of `recipes.compose.answers`.

        Raises:
            FieldError: When the recipe explain refuses it.
        """
        first, second = (ExplainedModel("losses", columns=[f"{model}_{self.explain.loss}"]) for model in pair)
        try:
            return Explanation(
                groups=self._groups(),
                name="-".join(pair),
                seed=self.seed,
                mode="models",
                data=DomainData("parquet", str(table)),
                loss=self.explain.loss,
                model=first,
                second=second,
                estimation=self.explain.estimation,
            )
        except FieldError as error:
            raise FieldError("explain", f"{error.where}: {error.message}") from error
