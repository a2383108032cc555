"""Merge fine-tunes of one base into a twin: shared expert, exclusive experts, router; then score it against everything else.

``python -m recipes.run merge.yaml`` makes the experts it is not given (once, in the user's cache), tunes every static method
on validation, builds the twin over the chosen shared expert, trains the router on training inputs, and writes the twin
folder ``merged/`` and a table on the test inputs of all tasks shuffled together. In every row but `oracle` the mixture comes
from the input alone; the rows say whether the question (the head) was named by the caller or routed too.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recipes.data.models import check_model, resolve_model
from recipes.data.sources import TaskSource, check_task, load_task
from recipes.data.wheels import cache_root
from recipes.finetune import Training, check_tasks, train_expert
from recipes.front.errors import RecipeError, RunError
from recipes.front.types import FieldError, check_name, check_positive
from recipes.quiet import hush_libraries
from recipes.trainer import TrainerConfig, build_trainer

if TYPE_CHECKING:
    from recipes.runfolder import RunFolder

Static = Literal["average", "task_arithmetic", "ties", "dare", "dare_ties"]


@dataclass
class Shared:
    """The shared expert: an ordinary static merge.

    Attributes:
        method: average, task_arithmetic, ties, dare or dare_ties.
        options: Options of the method, such as scale, density or drop.
    """

    method: Static = "task_arithmetic"
    options: dict[str, float] = field(default_factory=lambda: {"scale": 0.3})


@dataclass
class ExclusiveRanks:
    """How much of each exclusive expert is kept; give exactly one of the four.

    Attributes:
        rank: Singular directions of every matrix.
        density: Share of min(rows, columns) of every matrix; the paper uses 0.1.
        energy: Share of every difference's squared norm.
        budget: Bytes of all factors together, spent where they help most.
    """

    rank: int | None = None
    density: float | None = None
    energy: float | None = None
    budget: int | None = None

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
        given = {k: v for k, v in asdict(self).items() if v is not None}
        return given or {"density": 0.1}


@dataclass
class RouterTraining:
    """The router: which network, on how much data.

    Attributes:
        kind: mlp (the paper's network), linear, or knn (training-free, a deviation).
        items: Training inputs a task; only their task is used, not their labels.
        epochs: Passes over them; the epoch with the lowest validation loss is kept.
        batch_size: Features a step.
        learning_rate: Of AdamW.
        top_k: Weights kept per input, 0 keeps all as in the paper.
        temperature: Of the softmax; 0 fits it on validation.
    """

    kind: Literal["mlp", "linear", "knn"] = "mlp"
    items: int = 3000
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 5e-4
    top_k: int = 0
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Refuse counts and rates that are not positive."""
        for key in ("items", "epochs", "batch_size", "learning_rate"):
            check_positive(getattr(self, key), key)
        for key in ("top_k", "temperature"):
            if getattr(self, key) < 0:
                raise FieldError(key, f"expected 0 or more, got {getattr(self, key)}")


@dataclass
class Baselines:
    """Static merges to compare with, each tuned on validation over its grid.

    Attributes:
        scales: Coefficients tried for task arithmetic, TIES and DARE.
        densities: Densities tried for TIES.
        drops: Drop rates tried for DARE.
        probe: Also fit a linear probe on the frozen base.
    """

    scales: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0])
    densities: list[float] = field(default_factory=lambda: [0.2])
    drops: list[float] = field(default_factory=lambda: [0.7])
    probe: bool = True

    def grid(self) -> list[tuple[str, dict[str, float]]]:
        """Every candidate: method and options."""
        made: list[tuple[str, dict[str, float]]] = [("average", {})]
        made += [("task_arithmetic", {"scale": s}) for s in self.scales]
        made += [("ties", {"scale": s, "density": d}) for s in self.scales for d in self.densities]
        made += [("dare", {"scale": s, "drop": p}) for s in self.scales for p in self.drops]
        made += [("dare_ties", {"scale": s, "drop": p}) for s in self.scales for p in self.drops]
        return made


@dataclass
class Recipe:
    """Merge experts into a routed twin and evaluate it.

    Attributes:
        recipe: Always merge.
        name: Name of the run.
        seed: Seed of the data's subsamples, the experts, the sketches and the router.
        base: The experts' common base: shipped:minilm, a folder or a Hub name.
        tasks: The tasks, one expert each; at least two.
        experts: Folders of experts that exist already, by task name; the others are trained and cached.
        training: How missing experts are trained.
        trainer: Arguments of lightning.Trainer for them.
        shared: The shared expert; give tuned to take the best task arithmetic of the baselines' grid.
        exclusive: Rank policy of the exclusive experts.
        router: The router.
        baselines: Static merges to compare with.
        eval_batch_size: Inputs an evaluation batch.
    """

    tasks: list[TaskSource]
    recipe: Literal["merge"] = "merge"
    name: str = "twin"
    seed: int = 0
    base: str = "shipped:minilm"
    experts: dict[str, str] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=3, gradient_clip_val=1.0))
    shared: Shared = field(default_factory=Shared)
    exclusive: ExclusiveRanks = field(default_factory=ExclusiveRanks)
    router: RouterTraining = field(default_factory=RouterTraining)
    baselines: Baselines = field(default_factory=Baselines)
    eval_batch_size: int = 64

    def __post_init__(self) -> None:
        """Refuse what cannot be merged."""
        check_name(self.name, "name")
        check_tasks(self.tasks)
        check_positive(self.eval_batch_size, "eval_batch_size")
        if len(self.tasks) < 2:
            raise FieldError("tasks", "expected at least two tasks to merge, got one")
        if unknown := sorted(set(self.experts) - {t.name for t in self.tasks}):
            raise FieldError("experts", f"{unknown[0]!r} is none of the tasks {', '.join(t.name for t in self.tasks)}")
        if self.training.model != "encoder":
            raise FieldError("training.model", f"expected encoder for experts with heads, got {self.training.model!r}")


def check(recipe: Recipe) -> Iterator[str]:
    """Compare everything that exists by its headers, and say what would be made; write nothing."""
    import shutil

    from twinmerge.checkpoints import check_compatible, inspect_checkpoint
    from twinmerge.errors import CheckpointError

    yield check_model(recipe.base)
    for task in recipe.tasks:
        yield check_task(task)
    local = Path(recipe.base).expanduser()
    for name, folder in recipe.experts.items():
        try:
            found = inspect_checkpoint(Path(folder).expanduser())
            if local.is_dir():
                yield f"expert {name}: {check_compatible(inspect_checkpoint(local), found)}"
            else:
                yield f"expert {name}: {folder}, {len(found.tensors)} tensors, {found.bytes / 1e6:.1f} MB"
        except CheckpointError as error:
            raise RecipeError(f"experts.{name}: {error}") from error
    for task in recipe.tasks:
        if task.name not in recipe.experts:
            cached = (expert_folder(recipe, task) / "expert.json").exists()
            yield f"expert {task.name}: {'cached' if cached else 'to be trained, then cached'}"
    free = shutil.disk_usage(Path.cwd()).free
    yield f"disk: {free / 1e9:.1f} GB free in the working folder"
    policy = ", ".join(f"{k} {v}" for k, v in recipe.exclusive.policy().items())
    yield (
        f"plan: shared expert by {recipe.shared.method} {recipe.shared.options or ''}, exclusive experts with {policy}, "
        f"router {recipe.router.kind}, {len(recipe.baselines.grid())} static candidates tuned on validation"
    )


def expert_folder(recipe: Recipe, task: TaskSource) -> Path:
    """Where an expert made by this recipe lives: a cache entry named by everything that decides its weights."""
    trainer = {
        k: v
        for k, v in asdict(recipe.trainer).items()
        if k not in ("enable_progress_bar", "logger", "default_root_dir")
    }
    decides = [recipe.base, recipe.seed, asdict(task), asdict(recipe.training), trainer]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return cache_root() / "experts" / f"{task.name}-{digest}"


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Experts, static baselines, twin, router, table, folder, report."""
    import torch

    from recipes import merge_report
    from recipes.data.text_module import MixedTextDataModule
    from recipes.evaluation import evaluate, linear_probe, with_experts, with_heads
    from twinmerge.artefact import save
    from twinmerge.merging import set_parameters, shared_expert

    hush_libraries()
    base = resolve_model(recipe.base)
    model = _encoder(base)
    read = _experts(recipe, folder, model)
    experts, heads = {t: e.state for t, e in read.items()}, {t: e.head for t, e in read.items()}
    # The router may read more inputs than the experts had labels for; only the task of each is used.
    tasks = [load_task(replace(t, max_train=recipe.router.items), recipe.seed) for t in recipe.tasks]
    data = MixedTextDataModule(
        tasks,
        base,
        batch_size=recipe.training.batch_size,
        max_length=recipe.training.max_length,
        seed=recipe.seed,
        eval_batch_size=recipe.eval_batch_size,
    )
    data.setup(None)
    batches = {"validation": list(data.val_dataloader()), "test": list(data.test_dataloader())}

    def score(name: str, answer: Any, split: str = "test") -> Any:
        with folder.phase(f"{split}: {name}", len(batches[split])) as progress:
            return evaluate(answer, tasks, batches[split], progress.advance)

    held = {
        split: score("experts", with_experts(_all(model, experts), heads), split) for split in ("validation", "test")
    }
    rows = {"experts": held["test"], "pretrained": score("pretrained", with_heads(model, heads))}

    # Static baselines: every candidate on validation, the best of each method on test.
    static, work = {}, copy.deepcopy(model)
    for method, options in recipe.baselines.grid():
        set_parameters(work, shared_expert(model, experts, method, **options, **_seeded(method, recipe.seed)))
        label = f"{method} {' '.join(f'{k} {v}' for k, v in options.items())}".strip()
        result = score(label, with_heads(work, heads), "validation").normalised(held["validation"])
        if method not in static or result > static[method][0]:
            static[method] = (result, options)
    for method, (_, options) in static.items():
        set_parameters(work, shared_expert(model, experts, method, **options, **_seeded(method, recipe.seed)))
        rows[method] = score(method, with_heads(work, heads))

    with folder.phase("exclusive experts", 1) as progress:
        twin, exclusive = _merge(recipe, copy.deepcopy(model), read)
        progress.advance()
    for name, head in heads.items():
        twin.heads[name] = head
    twin.eval()
    twin.router, routing = train_router(recipe, folder, twin, data)

    eye = torch.eye(len(tasks))
    index = {task.name: i for i, task in enumerate(tasks)}
    rows["routed"] = score("routed", lambda x, q: twin.classify(**x, head=q).logits)
    rows["routed, head routed too"] = score("routed, head routed too", lambda x, q: _own_head(twin, x, q))
    rows["oracle"] = score(
        "oracle", lambda x, q: twin.classify(**x, head=q, router_weights=eye[[index[n] for n in q]]).logits
    )
    if recipe.baselines.probe:
        limits = [source.max_train for source in recipe.tasks]
        train = {split: task_features(_pooled(model), data, split, folder) for split in ("train", "validation")}
        rows["linear probe"] = score("linear probe", linear_probe(model, train, limits, tasks))

    resolved = folder.path / "recipe.yaml"
    card = {
        "base": recipe.base,
        "residuals": exclusive.residuals,
        "sources": {t: e.digest for t, e in read.items()},
    }
    labels = {t.name: list(t.labels) for t in tasks}
    texts = {"recipe.yaml": resolved.read_text(encoding="utf-8")}
    target = save(twin, folder.path / "merged", tokenizer=base, card=card, texts=texts, labels=labels, overwrite=True)
    trained = sum(v.numel() * v.element_size() for v in next(iter(experts.values())).values())
    size = merge_report.sizes(trained, trained, len(tasks), target)
    outcome = merge_report.result(rows, static, routing.numbers, size)
    merge_report.finish(folder, outcome, exclusive.residuals, routing.mixture)


@dataclass(frozen=True)
class Expert:
    """One expert, read and checked: full weights, LoRA terms where it is an adapter, head, and its folder's digest."""

    state: dict[str, Any]
    terms: dict[str, Any]
    head: Any
    digest: str


def _experts(recipe: Recipe, folder: RunFolder, model: Any) -> dict[str, Expert]:
    """All experts by task, trained where missing, compared with the base."""
    import torch
    from safetensors.torch import load_file

    from twinmerge.checkpoints import check_compatible, inspect_checkpoint, read_lora, read_state
    from twinmerge.modeling_twin import Head

    base = Path(resolve_model(recipe.base))
    pretrained = {name: value.detach() for name, value in model.named_parameters()}
    experts: dict[str, Expert] = {}
    for source in recipe.tasks:
        given = recipe.experts.get(source.name)
        where = Path(given).expanduser() if given else expert_folder(recipe, source)
        if not given:
            train_expert(recipe.base, source, recipe.training, recipe.trainer, recipe.seed, where, folder)
        found = inspect_checkpoint(where)
        if base.is_dir():
            check_compatible(inspect_checkpoint(base), found)
        terms = read_lora(found, pretrained) if found.kind == "lora" else {}
        if terms:
            state = dict(pretrained)
            for name, (scale, B, A) in terms.items():
                state[name] = pretrained[name] + (scale * torch.matmul(B, A)).to(pretrained[name].dtype)
        else:
            state, _ = read_state(found, pretrained)
        if not (where / "expert.json").exists() or not (where / "head.safetensors").exists():
            raise RunError(f"expert folder {where} has no expert.json and head.safetensors; make it with recipe finetune")
        card = json.loads((where / "expert.json").read_text(encoding="utf-8"))
        tensors = load_file(where / "head.safetensors")
        outputs, width = tensors["out_proj.weight"].shape
        head = Head(width, outputs, card["pooling"], card["layer_norm"], "dense.weight" in tensors)
        head.load_state_dict(tensors)
        digest = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(set(found.files.values())))).hexdigest()
        experts[source.name] = Expert(state, terms, head.eval(), digest)
    return experts


def _merge(recipe: Recipe, model: Any, experts: Mapping[str, Expert]) -> tuple[Any, Any]:
    """The twin without its router: LoRA experts in the product form where the shared expert allows it."""
    from twinmerge.merging import merge, merge_lora

    shared, policy = recipe.shared, recipe.exclusive.policy()
    lora = {task: e.terms for task, e in experts.items()}
    if all(lora.values()) and shared.method in ("average", "task_arithmetic") and "rank" in policy:
        scale = 1 / len(lora) if shared.method == "average" else shared.options.get("scale", 0.3)
        return merge_lora(model, lora, scale, policy["rank"])
    options = {**shared.options, **_seeded(shared.method, recipe.seed)}
    states = {task: e.state for task, e in experts.items()}
    return merge(model, states, shared.method, rank={**policy, "seed": recipe.seed}, **options)


@dataclass(frozen=True)
class Routing:
    """How well the router names tasks, and the mean mixture it gives each task's test inputs (tasks x experts)."""

    numbers: dict[str, float]
    mixture: list[list[float]]


def train_router(recipe: Recipe, folder: RunFolder, twin: Any, data: Any) -> tuple[Any, Routing]:
    """Train the router on training inputs, keep its best validation epoch, fit the temperature on validation."""
    import lightning
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint

    from twinmerge.router import FeatureDataModule, RouterModule, fit_temperature, knn_router

    options, count = recipe.router, len(recipe.tasks)
    features = {split: task_features(twin.features, data, split, folder) for split in ("train", "validation", "test")}
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    if options.kind == "knn":
        router = knn_router(*features["train"], count)
    else:
        module = RouterModule(
            features["train"][0].shape[1], count, kind=options.kind, learning_rate=options.learning_rate
        )
        module.router.standardise(features["train"][0])
        best = ModelCheckpoint(
            folder.checkpoints / "router", "best", monitor="validation/loss", enable_version_counter=False
        )
        config = TrainerConfig(max_epochs=options.epochs, accelerator="cpu", devices=1)
        trainer = build_trainer(config, folder, "router", callbacks=[best])
        pairs = FeatureDataModule(features["train"], features["validation"], options.batch_size, recipe.seed)
        trainer.fit(module, datamodule=pairs)
        module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
        router = module.router.eval()
    router.top_k = options.top_k
    router.temperature = options.temperature or fit_temperature(router, *features["validation"])
    numbers = {"temperature": router.temperature}
    with torch.no_grad():
        for split in ("validation", "test"):
            x, y = features[split]
            numbers[f"accuracy_{split}"] = float((router(x).argmax(-1) == y).float().mean())
        weights = router.weights(x)
    mixture = [weights[y == task].mean(0).tolist() for task in range(count)]
    numbers["accuracy"] = numbers["accuracy_test"]
    folder.say(
        f"router: names the task of {numbers['accuracy']:.1%} of the test inputs, temperature {router.temperature:.2f}"
    )
    return router, Routing(numbers, mixture)


def task_features(encode: Any, data: Any, split: str, folder: RunFolder) -> tuple[Any, Any]:
    """Features and task ids of a split in the order of its rows, all tasks one after the other."""
    import torch

    parts, order, ids = [], [], []
    batches = list(data.by_length(split))
    with folder.phase(f"features of {split}", len(batches)) as progress, torch.no_grad():
        for positions, batch in batches:
            parts.append(encode(**{k: v for k, v in batch.items() if k not in ("labels", "task")}))
            ids.append(batch["task"])
            order += positions
            progress.advance()
    back = torch.tensor(order).argsort()
    return torch.cat(parts)[back], torch.cat(ids)[back]


def _pooled(model: Any) -> Any:
    from twinmerge.modeling_twin import masked_mean

    return lambda **inputs: masked_mean(model(**inputs)[0], inputs.get("attention_mask"))


def _own_head(twin: Any, inputs: Mapping[str, Any], questions: list[str]) -> Any:
    # A row whose head was routed wrongly answers another question: NaN, which `evaluate` counts as wrong.
    outputs = twin.classify(**inputs)
    wrong = [q != twin.tasks[t] for q, t in zip(questions, outputs.task.tolist(), strict=True)]
    outputs.logits[wrong] = float("nan")
    return outputs.logits


def _encoder(base: Path | str) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(base).eval()


def _all(model: Any, experts: Mapping[str, Any]) -> dict[str, Any]:
    from twinmerge.merging import set_parameters

    return {task: set_parameters(copy.deepcopy(model), state) for task, state in experts.items()}


def _seeded(method: str, seed: int) -> dict[str, int]:
    return {"seed": seed} if method.startswith("dare") else {}
