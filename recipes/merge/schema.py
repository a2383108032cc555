"""What a merge recipe says: base, tasks, experts, how they are merged, routed and compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from recipes.data.task_source import TaskSource, check_templates
from recipes.fields import FieldError, check_name, check_positive, check_seed
from recipes.front.schema import did_you_mean
from recipes.merge.baselines import DATA, SHARED, Baselines, Shared, told
from recipes.merge.routing import RouterTraining
from recipes.running.trainer import TrainerConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from recipes.merge.baselines import Tuned


@dataclass
class ExclusiveRanks:
    """How much of each exclusive expert is kept; give exactly one of the four.

    Attributes:
        rank: Singular directions of every matrix.
        density: Share of min(rows, columns) of every matrix; the paper uses 0.1.
        energy: Share of every difference's squared norm.
        budget: Bytes of all factors together, spent where they help most.
        dense: Which vectors they keep beside the matrices: all, norms, biases, or none, which makes expert folders that
            PEFT mixes in one batch; what is not kept is left to the shared expert.
    """

    rank: int | None = None
    density: float | None = None
    energy: float | None = None
    budget: int | None = None
    dense: Literal["all", "norms", "biases", "none"] = "all"

    def __post_init__(self) -> None:
        """Refuse none, several, and values out of range."""
        given = [k for k in ("rank", "density", "energy", "budget") if getattr(self, k) is not None]
        if len(given) > 1:
            raise FieldError(
                given[1], f"expected exactly one of rank, density, energy and budget, got {' and '.join(given)}"
            )
        for key in given:
            value = getattr(self, key)
            check_positive(value, key)
            if key in ("density", "energy") and value > 1:
                raise FieldError(key, f"expected a share above 0 and up to 1, got {value}")

    def policy(self) -> dict[str, Any]:
        """The chosen policy as arguments of `exclusive_experts`; density 0.1, the paper's, when none is given."""
        given = {k: v for k, v in asdict(self).items() if v is not None and k != "dense"}
        return given or {"density": 0.1}


@dataclass
class Training:
    """How an expert is trained.

    Attributes:
        model: encoder (AutoModel with a head of ours), classifier (AutoModelForSequenceClassification), or causal
            (AutoModelForCausalLM, whose tasks have a language block).
        heads: trained; fixed (one random orthonormal head a task that is never trained); or zeroshot, the names of the
            classes as the base's text model reads them (CLIP and its kin; the experts are given).
        pooling: Which states the head of an encoder sees: mean, first or last token; of images also patches (the mean
            of all but the first token), first_patches (both), or pooled (what the body pools to).
        batch_size: Rows a training step.
        max_length: Longest sequence in tokens.
        templates: Sentences of zero-shot heads, with {} for the name of a class; a task may have its own.
        image_size: Side of images in pixels; 0 takes that of the base's processor.
        augmentation: Of training images: none, crop (shifts), flip (shifts and mirrors) or trivial (TrivialAugment).
        statistics: Of batch norms: frozen at the base's, as short trainings need them, or trained; static merges of
            trained ones take them anew from validation images.
        learning_rate: Peak of AdamW's rate.
        weight_decay: Of AdamW, on matrices.
        warmup: Share of the steps with a rising rate.
        frozen: Parameters whose name contains one of these are not trained.
        lora_rank: 0 trains the weights themselves, else LoRA adapters of this rank.
        lora_alpha: The adapters' product is scaled by this over the rank; 0 is twice the rank.
        lora_dropout: Share of an adapter's inputs that is dropped in training.
        lora_targets: Names of the modules that are adapted; none at all adapts every linear layer but the output.
        packing: For causal models, put several rows into one sequence of max_length; none sees another.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.
        qlora: For adapters of causal models, hold the base in 4 bits (NF4) while they are trained; needs bitsandbytes
            and a CUDA device.
    """

    model: Literal["encoder", "classifier", "causal"] = "encoder"
    heads: Literal["trained", "fixed", "zeroshot"] = "trained"
    pooling: Literal["mean", "first", "last", "patches", "first_patches", "pooled"] = "mean"
    batch_size: int = 16
    max_length: int = 64
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    image_size: int = 0
    augmentation: Literal["none", "crop", "flip", "trivial"] = "none"
    statistics: Literal["frozen", "trained"] = "frozen"
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    warmup: float = 0.1
    frozen: list[str] = field(default_factory=list)
    lora_rank: int = 0
    lora_alpha: float = 0.0
    lora_dropout: float = 0.0
    lora_targets: list[str] = field(default_factory=list)
    packing: bool = False
    gradient_checkpointing: bool = False
    qlora: bool = False

    def __post_init__(self) -> None:
        """Refuse what no training could use."""
        for key in ("batch_size", "max_length", "learning_rate"):
            check_positive(getattr(self, key), key)
        if not 0 <= self.warmup < 1:
            raise FieldError("warmup", f"expected a share from 0 to below 1, got {self.warmup}")
        for key in ("weight_decay", "lora_rank", "lora_alpha", "image_size"):
            if getattr(self, key) < 0:
                raise FieldError(key, f"expected 0 or more, got {getattr(self, key)}")
        if not 0 <= self.lora_dropout < 1:
            raise FieldError("lora_dropout", f"expected a share from 0 to below 1, got {self.lora_dropout}")
        for key in ("lora_alpha", "lora_dropout", "lora_targets"):
            if getattr(self, key) and not self.lora_rank:
                raise FieldError(key, f"expected none without lora_rank, got {getattr(self, key)}")
        if self.statistics == "trained" and self.lora_rank:
            raise FieldError("statistics", "expected frozen with a lora_rank, as adapters hold none, got 'trained'")
        if self.qlora and (self.model != "causal" or not self.lora_rank):
            raise FieldError("qlora", "expected false without model 'causal' and a lora_rank, got true")
        if self.packing and self.model != "causal":
            raise FieldError("packing", f"expected false for model {self.model!r}, got true")
        if self.heads != "trained" and self.model != "encoder":
            raise FieldError(
                "heads", f"expected trained for model {self.model!r}, which has its own head, got {self.heads!r}"
            )
        check_templates(self.templates)
        if self.heads == "fixed" and self.pooling != "mean":
            raise FieldError("pooling", f"expected mean for fixed heads, got {self.pooling!r}")


def check_tasks(tasks: list[TaskSource], training: Training) -> None:
    """Refuse a recipe without tasks, with two of one name, or with tasks that the kind of model cannot learn."""
    model = training.model
    if not tasks:
        raise FieldError("tasks", "expected at least one task, got none")
    names = [task.name for task in tasks]
    if twice := [n for n in names if names.count(n) > 1]:
        raise FieldError("tasks", f"two tasks are called {twice[0]!r}; give each its own name")
    for index, task in enumerate(tasks):
        if (task.kind == "images") != (tasks[0].kind == "images"):
            raise FieldError(f"tasks.{index}.kind", "expected all tasks of images or none, got both")
        if task.templates and training.heads != "zeroshot":
            raise FieldError(
                f"tasks.{index}.templates", f"expected none with {training.heads} heads, which read no sentences"
            )
        if task.kind == "images" and model != "encoder":
            raise FieldError("training.model", f"expected encoder for tasks of images, got {model!r}")
        if model == "causal" and task.language is None:
            raise FieldError(f"tasks.{index}.language", "expected how the model is asked, for model 'causal'; got none")
        if model != "causal" and task.language is not None:
            raise FieldError(f"tasks.{index}.language", f"expected none for model {model!r}, got some")


@dataclass
class Recipe:
    """Merge experts into a routed twin and evaluate it.

    Attributes:
        recipe: Always merge.
        name: Name of the run.
        seed: Seed of the data's subsamples, the experts, the sketches and the router.
        base: The experts' common base: shipped:minilm, shipped:efficientnet-lite0 (images), a folder or a Hub name.
        tasks: The tasks, one expert each; at least two. None at all merges the given experts without any data.
        experts: Folders (or Hub names) of experts that exist already, by task name, as transformers, PEFT or the
            finetune recipe wrote them, or the folder of a finetune run; the others are trained and cached.
        labels: Names of an expert's outputs in order, by task name, where its folder does not name them.
        texts: Without tasks, files of unlabelled texts (one a line) by expert name, from which the router is made.
        images: Likewise, of a base that reads images, folders of unlabelled images by expert name.
        vocabulary: What becomes of experts with other vocabularies: strict refuses them, pad lengthens embeddings
            beside one tokenizer, union takes in the tokens that experts added.
        training: How missing experts are trained.
        trainer: Arguments of lightning.Trainer for them.
        shared: The shared expert.
        exclusive: Rank policy of the exclusive experts.
        router: The router.
        baselines: Static merges to compare with.
        eval_batch_size: Inputs an evaluation batch.
        eval_precision: Number format of the forwards that score and route, all rows alike: 32, bf16 by autocast, or
            auto, which takes bf16 where a trial batch gets the same answers in it and is done faster.
        unseen: Of a causal merge, tasks whose experts stay out of it and are only compared with.
    """

    recipe: Literal["merge"] = "merge"
    tasks: list[TaskSource] = field(default_factory=list)
    name: str = "twin"
    seed: int = 0
    base: str = "shipped:minilm"
    experts: dict[str, str] | str = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    vocabulary: Literal["strict", "pad", "union"] = "strict"
    training: Training = field(default_factory=Training)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=3, gradient_clip_val=1.0))
    shared: Shared = field(default_factory=Shared)
    exclusive: ExclusiveRanks = field(default_factory=ExclusiveRanks)
    router: RouterTraining = field(default_factory=RouterTraining)
    baselines: Baselines = field(default_factory=Baselines)
    eval_batch_size: int = 64
    eval_precision: Literal["auto", "32", "bf16"] = "auto"
    unseen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what cannot be merged."""
        check_name(self.name, "name")
        check_seed(self.seed)
        check_positive(self.eval_batch_size, "eval_batch_size")
        self.router = self.router.settled(self.training.model == "causal")
        if self.tasks:
            check_tasks(self.tasks, self.training)
            if len(self.tasks) < 2:
                raise FieldError("tasks", "expected at least two tasks to merge, got one")
            for key in ("texts", "images"):
                if getattr(self, key):
                    raise FieldError(key, "expected none beside tasks, whose training inputs train the router")
        elif self.shared.tune:
            raise FieldError("shared.tune", "expected none without tasks, whose validation rows would decide")
        elif self.shared.method in DATA:
            raise FieldError(
                "shared.method", f"expected a merge of weights alone without tasks, got {self.shared.method!r}"
            )
        elif isinstance(self.experts, dict) and len(self.experts) < 2:
            raise FieldError("tasks", "expected at least two tasks to merge, or two experts without tasks")
        names = [task.name for task in self.tasks] or (list(self.experts) if isinstance(self.experts, dict) else [])
        for key in ("experts", "labels", "texts", "images"):
            given = getattr(self, key)
            if names and isinstance(given, dict) and (unknown := sorted(set(given) - set(names))):
                raise FieldError(f"{key}.{unknown[0]}", f"no task has this name; {did_you_mean(unknown[0], names)}")
        for name in names:
            check_name(name, "experts")
        for key, what in (("texts", "file"), ("images", "folder")):
            if (by := getattr(self, key)) and (missing := sorted(set(names) - set(by))):
                raise FieldError(key, f"expected a {what} for every expert, got none for {missing[0]!r}")
        if self.texts and self.images:
            raise FieldError("images", "expected none beside texts, as the base reads one of the two")
        if self.training.heads == "zeroshot":
            self._check_zero_shot()
        if self.training.model == "classifier":
            raise FieldError("training.model", "expected encoder (experts with heads) or causal, got 'classifier'")
        self._check_causal(names)

    def _check_zero_shot(self) -> None:
        """Refuse zero-shot heads of texts, and experts that would have to be trained with them."""
        if not self.tasks or self.tasks[0].kind != "images":
            raise FieldError("training.heads", "expected trained or fixed without tasks of images, got 'zeroshot'")
        given = self.experts if isinstance(self.experts, dict) else {task.name: "" for task in self.tasks}
        if missing := [task.name for task in self.tasks if task.name not in given]:
            raise FieldError(
                "experts", f"expected one for every task with zero-shot heads, got none for {missing[0]!r}"
            )

    def _check_causal(self, names: list[str]) -> None:
        """Refuse what only one of the two kinds of merges knows."""
        if self.training.model != "causal":
            if self.router.features == "generated":
                raise FieldError("router.features", "expected last or all for model 'encoder', got 'generated'")
            if self.unseen:
                raise FieldError("unseen", f"expected none for model {self.training.model!r}, got {self.unseen!r}")
            return
        if not self.tasks:
            raise FieldError("tasks", "expected tasks for model 'causal', got none; twinmerge.merge_folders needs none")
        for key, plain in (("vocabulary", "strict"), ("labels", {})):
            if getattr(self, key) != plain:
                raise FieldError(key, f"expected {plain!r} for model 'causal', got {getattr(self, key)!r}")
        if unknown := sorted(set(self.unseen) - set(names)):
            raise FieldError("unseen", f"no task is called {unknown[0]!r}; {did_you_mean(unknown[0], names)}")
        if len(names) - len(set(self.unseen)) < 2:
            raise FieldError("unseen", f"expected at least two tasks beside them to merge, got {len(names)} in all")

    def of_layers(self) -> list[str]:
        """Methods of the recipe that look at data or at layers, which a base must have."""
        shared = [self.shared.method] if self.shared.method in DATA else []
        return list(dict.fromkeys([*shared, *self.baselines.data, *self.baselines.dynamic]))

    def with_shared(self, best: Tuned, say: Callable[[str], object]) -> Recipe:
        """The recipe with the options of the shared expert that are best on validation, which leave the table."""
        if (found := best.pop(SHARED, None)) is None:
            return self
        say(f"shared expert: {self.shared.method} with {told(found[1])} is best on validation")
        return replace(self, shared=Shared(self.shared.method, dict(found[1])))

    def given(self) -> dict[str, str]:
        """The given experts by task name, those of a finetune run's folder looked up.

        Raises:
            RecipeError: When the folder does not hold them.
        """
        from recipes.merge.experts import expand

        return (
            dict(self.experts) if isinstance(self.experts, dict) else expand(self.experts, [t.name for t in self.tasks])
        )
