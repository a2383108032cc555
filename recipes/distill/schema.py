"""What a distill recipe says: teacher, student, data, regime and methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distill.errors import DistillError
from distill.form import Form
from distill.regimes import Regime, method, regime
from recipes.data.task_source import TaskSource
from recipes.distill.compare_block import Compare
from recipes.distill.merge_run import TWIN, merge_kind
from recipes.fields import FieldError, check_name, check_positive, check_range, check_seed
from recipes.front.signature import FedBlock, takes
from recipes.running.trainer import TrainerConfig

Values = dict[str, Any]  # options and changes: what their names take is known where they are used
Terms = dict[str, Values]


@dataclass
class Network:
    """A teacher or a student.

    Attributes:
        model: Images: a timm name, small_cnn_<width> or cifar_resnet<depth>. Texts and language: shipped:minilm,
            shipped:smollm2, a folder or a Hub name. With a merge as data, empty for the merge's own: as a teacher its
            twin, as a student the twin's shared expert.
        options: For its constructor, as pretrained, in_chans, checkpoint_path or num_hidden_layers; mean, std and size
            for images. With a merge as data, num_hidden_layers keeps as many layers of the student's model, evenly
            spaced from the first to the last, and layers the ones that it lists, from 0.
    """

    model: str = ""
    options: Values = field(default_factory=dict)


@dataclass
class Voice(Network):
    """A further teacher, taken as it is.

    Attributes:
        weight: Its share of what all teachers say together, beside those of the others.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a weight that is none."""
        check_positive(self.weight, "weight")


@dataclass(frozen=True)
class Keep(Form):
    """What the cache keeps of an answer; top and sampled keep some classes, which teach kd alone."""

    def __post_init__(self) -> None:
        """Refuse what no row can be kept in, and what the recipe does not write."""
        try:
            super().__post_init__()
        except DistillError as error:
            raise FieldError("kind", str(error)) from error
        if self.kind in ("hidden", "tokens"):
            raise FieldError(
                "kind", f"expected logits, top or sampled, got {self.kind!r}, which only your own loop writes"
            )
        for index, temperature in enumerate(self.temperatures):
            check_positive(temperature, f"temperatures.{index}")


@dataclass
class Teacher(Network):
    """The teacher.

    Attributes:
        train: Train it on the labels of the same data first; otherwise it is taken as it is.
        changes: Values of the regime that are different for its training.
        dtype: Type of its weights while it teaches.
        views: Distinct views of an image that it answers once, into a cache under the run folder, and that students see
            over and over; 0 asks it anew about ever new views. Images only.
        keep: What that cache keeps of an answer. For language, kind top lets the teacher answer once about every block.
        server: Address of an OpenAI-compatible server in place of a model, as in http://localhost:8000/v1; language
            only, with keep.kind top.
        served: Name under which the server knows the model.
        weight: Its share of what all teachers say together, where there are others.
        others: Further teachers; what is taught is the mean of all teachers' probabilities, by weight.
    """

    train: bool = False
    changes: Values = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"
    views: int = 0
    keep: Keep = field(default_factory=Keep)
    server: str = ""
    served: str = ""
    weight: float = 1.0
    others: list[Voice] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse teachers that cannot teach together."""
        check_positive(self.weight, "weight")
        if self.others and (self.views or not self.model):
            raise FieldError(
                "others", f"expected none beside a cache of views or without a model, got {len(self.others)}"
            )

    @property
    def voices(self) -> list[Network]:
        """All teachers that have a model."""
        return [network for network in (self, *self.others) if network.model]


@dataclass
class Data:
    """What is learned from.

    Attributes:
        source: Images: folder, hub, digits, mnist, fashion_mnist, cifar100, glyphs, or drawn_glyphs, which one process
            augments batch by batch for trainings of trainer.max_steps updates; texts: task; language: files; merge is
            the inputs of all tasks of a merge run, for one student with a head for every task.
        path: Folder, file or Hub name; for files a folder of text files, or python for the standard library; for merge
            the run folder.
        pattern: Which files of the folder.
        task: The text task.
        classes: Number of classes of images; texts know theirs.
        grey: Images of one channel.
        rows: Training rows to keep, for merge of every task (more than its experts had, where there are more, since no
            label is needed); 0 keeps all, for merge those of the experts.
        test_rows: Validation and test rows to keep, each; 0 keeps all.
        length: Longest text, or block of language, in tokens.
        workers: Processes that load images.
    """

    source: Literal[
        "folder",
        "hub",
        "digits",
        "mnist",
        "fashion_mnist",
        "cifar100",
        "glyphs",
        "drawn_glyphs",
        "task",
        "files",
        "merge",
    ] = "folder"
    path: str = ""
    pattern: str = "**/*.txt"
    task: TaskSource | None = None
    classes: int = 1000
    grey: bool = False
    rows: int = 0
    test_rows: int = 0
    length: int = 64
    workers: int = 0


DECIDED = ("pattern", "classes", "grey", "test_rows", "length")  # keys of the data that a merge decides
# Values of a regime about how images are shown, which drawn glyphs do not follow.
UNDRAWN = (
    *("repeats", "color_jitter", "erase", "crop", "padding", "scale", "ratio", "interpolation", "flip", "test_crop"),
)
# Values of a regime about images and about networks that a merge's data and students do not take.
SHOWN = (
    *("image_size", "drop_path", "dropout", "auto_augment", "mixup", "cutmix", "mix_probability", "switch_probability"),
    *UNDRAWN,
)
GLYPH = 16  # side of a glyph, in pixels


@takes(
    "distill.module:DistillModule",
    leave_out={
        "student": "the block student says which",
        "teacher": "the block teacher says which",
        "terms": "the key methods of the recipe has the losses of every student",
        "method": "the key methods of the recipe names them",
        "task": "the block data decides it",
        "classes": "the block data knows them",
        "student_options": "the block student has them as options",
        "teacher_options": "the block teacher has them as options",
        "teacher_dtype": "the block teacher has it as dtype",
        "labels": "the block data knows the names of its classes",
        "item_labels": "they are read from the data where a loss needs them",
    },
)
@dataclass
class Recipe(FedBlock):
    """Distil a teacher into students.

    Attributes:
        recipe: Always distill.
        name: Name of the run.
        seed: Of initial weights, order and views.
        teacher: The teacher; no training needs it when every method is ce.
        student: The student.
        data: The data.
        regime: How students are trained: A1, A2, previous_imagenet, previous_cifar or a substitute.
        changes: Values of the regime that are different here.
        methods: Losses and their options by the name of the method; an empty entry takes what was published for the
            regime, as do the names ce, kd, dkd, dist and others.
        compare: Tune all methods alike and train them over seeds instead, for their gaps with intervals.
        trainer: Arguments of lightning.Trainer.
    """

    recipe: Literal["distill"] = "distill"
    name: str = "student"
    seed: int = 0
    teacher: Teacher = field(default_factory=Teacher)
    student: Network = field(default_factory=Network)
    data: Data = field(default_factory=Data)
    regime: str = "A2"
    changes: Values = field(default_factory=dict)
    methods: dict[str, Terms] = field(default_factory=lambda: {"kd": {}})
    compare: Compare | None = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    if TYPE_CHECKING:  # what the recipe itself reads of the module's arguments
        samples: dict[str, dict[str, float]] | None = field(init=False)
        rate_factors: dict[str, float] | None = field(init=False)
        prompt_tokens: int = field(init=False)
        sampling_temperature: float = field(init=False)
        channels_last: bool = field(init=False)
        lora_rank: int = field(init=False)
        chunk: int = field(init=False)

    def __post_init__(self) -> None:
        """Refuse what no data could make right."""
        check_name(self.name, "name")
        check_seed(self.seed)
        for key in ("rows", "test_rows", "workers"):
            check_range(getattr(self.data, key), f"data.{key}", low=0)
        check_range(self.data.length, "data.length", low=2)
        check_range(self.data.classes, "data.classes", low=2)
        if (self.data.source == "task") != (self.data.task is not None):
            raise FieldError("data.task", f"expected a text task with source task, and none with {self.data.source!r}")
        check_range(self.teacher.views, "teacher.views", low=0)
        if self.data.source == "merge":
            self._check_merge()
        elif not self.student.model:
            raise FieldError("student.model", "expected a model unless the data is a merge, got ''")
        if self.teacher.views and (self.kind != "images" or not self.teacher.model):
            raise FieldError("teacher.views", f"expected 0 without a teacher of images, got {self.teacher.views}")
        if self.teacher.views and self.data.source == "drawn_glyphs":
            raise FieldError("teacher.views", f"expected 0 with drawn_glyphs, got {self.teacher.views}; take glyphs")
        if self.data.task is not None and self.data.task.kind != "classification":
            raise FieldError("data.task.kind", f"expected classification, got {self.data.task.kind!r}")
        self._check_kept()
        if not self.methods:
            raise FieldError("methods", "expected at least one method, got none")
        for where, changes in (("changes", self.changes), ("teacher.changes", self.changes | self.teacher.changes)):
            try:
                regime(self.regime, changes)
            except DistillError as error:
                raise FieldError("regime" if "no regime" in str(error) else where, str(error)) from error
        for name in self.methods:
            check_name(name, "methods")
            if name == "teacher":
                raise FieldError("methods.teacher", "expected another name: the teacher is called so in every table")
            try:
                self.terms(name)
            except DistillError as error:
                raise FieldError(f"methods.{name}", str(error)) from error
        if self.compare is not None:
            self._check_compare(self.compare)

    def _check_merge(self) -> None:
        """Refuse what the merge decides, and what is not done with its data."""
        if not self.data.path:
            raise FieldError("data.path", "expected the folder of a merge run with source merge, got ''")
        plain, none = Data(), "a merge's teacher is its twin"
        decided: dict[str, tuple[object, object, str]] = {
            **{f"data.{key}": (getattr(self.data, key), getattr(plain, key), "it decides this") for key in DECIDED},
            "teacher.changes": (self.teacher.changes, {}, none),
            "teacher.options": (self.teacher.options, {}, none),
            "teacher.train": (self.teacher.train, False, none),
            "teacher.others": (self.teacher.others, [], none),
            "teacher.views": (self.teacher.views, 0, none),
            "teacher.server": (self.teacher.server, "", none),
            "teacher.keep": (self.teacher.keep, Keep(), "what it says is kept whole"),
            "teacher.dtype": (self.teacher.dtype, "float32", "its router reads what it computes"),
            "compare": (self.compare, None, "its students train one by one"),
            "samples": (self.samples or None, None, "the inputs are the merge's"),
            "lora_rank": (self.lora_rank, 0, "students are made whole"),
        }
        if shown := sorted(set(self.changes) & set(SHOWN)):
            raise FieldError(f"changes.{shown[0]}", "expected none with a merge as data, whose inputs are as they are")
        if self.kind == "language":
            decided["chunk"] = (self.chunk, 0, "a routed twin's logits are made whole")
        for where, (given, wanted, why) in decided.items():
            if given != wanted:
                told = "none" if wanted in (None, [], {}, "", Keep()) else str(wanted).lower()
                raise FieldError(where, f"expected {told} with a merge as data, since {why}, got {given!r}")

    def _check_compare(self, compare: Compare) -> None:
        """Refuse what a comparison does not do: whatever is kept beside a training is that of one seed."""
        compare.check(self.methods)
        teacher = self.teacher
        alone = {"teacher.views": teacher.views, "teacher.server": teacher.server, "samples": self.samples}
        alone |= {"rate_factors": self.rate_factors, "teacher.keep": teacher.keep != Keep()}
        if where := next((name for name, given in alone.items() if given), None):
            raise FieldError(where, "expected none with compare, whose trainings have seeds and rates of their own")
        if where := next((name for name, terms in self.tried.items() if "uld" in terms), None):
            raise FieldError(where, "expected losses of one tokenizer with compare, got uld, which pairs two")

    def _check_kept(self) -> None:
        """Refuse what no cache keeps, and a server that cannot be asked."""
        teacher = self.teacher
        if teacher.keep != Keep() and not teacher.views and self.kind != "language":
            raise FieldError("teacher.keep", "expected teacher.views above 0 with it, got 0: there is no cache")
        if self.kind == "language" and teacher.keep.kind not in ("logits", "top"):
            raise FieldError("teacher.keep.kind", f"expected top for language, got {teacher.keep.kind!r}")
        if bool(teacher.server) != bool(teacher.served):
            raise FieldError(
                "teacher.served", f"expected a name with a server, and none without, got {teacher.served!r}"
            )
        if not teacher.server:
            return
        if self.kind != "language" or teacher.model or teacher.keep.kind != "top":
            raise FieldError(
                "teacher.server",
                f"expected data of language, no teacher.model and keep.kind top with it, got {self.kind}, "
                f"{teacher.model!r} and {teacher.keep.kind}",
            )
        if teacher.keep.temperatures != (1.0,):
            raise FieldError("teacher.keep.temperatures", "expected 1.0 alone: a server answers at no other")

    @property
    def voices(self) -> list[Network]:
        """All teachers that have a model: of a merge its twin, where no other is named."""
        if self.data.source == "merge" and not self.teacher.model:
            return [Network(str(Path(self.data.path) / TWIN))]
        return self.teacher.voices

    @property
    def apart(self) -> bool:
        """Whether the teacher reads tokens of its own."""
        return any("uld" in self.terms(name) for name in self.methods)

    @property
    def kind(self) -> Literal["images", "texts", "language"]:
        """What the networks read."""
        if self.data.source == "merge":
            return merge_kind(self.data.path)
        return {"task": "texts", "files": "language"}.get(self.data.source, "images")  # type: ignore[return-value]

    def terms(self, name: str) -> Terms:
        """Losses of a method: its own, else the published ones."""
        return self.methods[name] or method(name, self.regime)

    def candidates(self, name: str) -> dict[str, Terms]:
        """All losses that are tried for a method, by where the recipe has them; one unless methods are compared."""
        further = self.compare.candidates.get(name, []) if self.compare else []
        return {f"methods.{name}": self.terms(name)} | {
            f"compare.candidates.{name}.{index}": terms for index, terms in enumerate(further)
        }

    @property
    def tried(self) -> dict[str, Terms]:
        """All losses that are trained with, by where the recipe has them."""
        return {where: terms for name in self.methods for where, terms in self.candidates(name).items()}

    @property
    def training(self) -> Regime:
        """The regime of the students."""
        return regime(self.regime, self.changes)
