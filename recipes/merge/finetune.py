"""Fine-tune one expert per task from a common base and save each as a Hugging Face or PEFT folder.

``python -m recipes.run finetune.yaml`` trains every task of the recipe in turn with a `lightning.Trainer` and leaves
``experts/<task>/`` in the run folder: the encoder (or a LoRA adapter) with its tokenizer, the task's head in
``head.safetensors`` and ``expert.json`` with labels and test scores. Such folders are what ``merge.yaml`` takes. A task
whose expert is complete is not trained again by ``--resume``; the interrupted one goes on from its newest checkpoint.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from recipes.data.language_rows import check_language
from recipes.data.models import check_model, resolve_model
from recipes.data.sources import check_task, here, load_task
from recipes.data.tables import own_files
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError
from recipes.fields import check_name, check_seed
from recipes.front.preflight import check_all
from recipes.front.schema import show
from recipes.merge.adapters import adapted, check_quantised
from recipes.merge.causal.train import train_language
from recipes.merge.experts import check_base, expert_damage
from recipes.merge.kinds import check_kind, check_positions, check_tokens
from recipes.merge.routable import check_images_taken
from recipes.merge.schema import Training, check_tasks
from recipes.merge.sharding import check_sharding
from recipes.running.environment import process_rank
from recipes.running.lengths import check_batches, in_parts, told
from recipes.running.quiet import hush_libraries
from recipes.running.seals import stamp
from recipes.running.trainer import TrainerConfig, build_trainer, check_trainer
from twinmerge.towers import load_body

if TYPE_CHECKING:
    from lightning import LightningDataModule
    from peft import PeftModel
    from transformers import PreTrainedModel

    from recipes.data.models import Reader
    from recipes.data.splits import TextTask
    from recipes.running.folder import RunFolder
    from recipes.running.ranks import Board
    from twinmerge.module import FinetuneModule


TURN = 60.0  # seconds that rank 0 waits for another run before it tells the others that it still does


@dataclass
class Recipe:
    """Fine-tune one expert per task.

    Attributes:
        recipe: Always finetune.
        name: Name of the run.
        seed: Seed of the data's subsamples, the heads, the order and the dropout.
        base: Model to start from: shipped:minilm, shipped:smollm2, a folder or a Hub name.
        tasks: The tasks, one expert each.
        training: How each is trained.
        trainer: Arguments of lightning.Trainer.
    """

    tasks: list[TaskSource]
    recipe: Literal["finetune"] = "finetune"
    name: str = "experts"
    seed: int = 0
    base: str = "shipped:minilm"
    training: Training = field(default_factory=Training)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=3, gradient_clip_val=1.0))

    def __post_init__(self) -> None:
        """Refuse an empty or ambiguous list of tasks."""
        check_name(self.name, "name")
        check_seed(self.seed)
        check_tasks(self.tasks, self.training)


def check(recipe: Recipe) -> Iterator[str]:
    """Say where everything comes from; write nothing."""
    yield from check_all(
        [
            partial(check_model, recipe.base),
            *(partial(check_language if task.language else check_task, task) for task in recipe.tasks),
        ]
    )
    if recipe.training.heads == "zeroshot":
        raise RecipeError("training.heads: expected trained or fixed, got 'zeroshot', which only given experts have")
    base = check_base(recipe.base, {"training.lora_rank": recipe.training.lora_rank})
    if base is not None:
        check_kind(recipe.base, recipe.tasks, base.config)
        check_tokens(base.folder, recipe.training, recipe.tasks)
        check_positions(base, recipe.training, recipe.tasks)
    if recipe.tasks[0].kind == "images":
        yield check_images_taken(recipe.base, recipe.training.image_size)
    check_training(recipe.training, recipe.trainer, recipe.tasks)
    yield f"plan: {len(recipe.tasks)} experts, {told(recipe.trainer)} each, saved under experts/<task>"


def check_training(training: Training, config: TrainerConfig, tasks: Sequence[TaskSource]) -> None:
    """Refuse what cannot train experts here: a strategy, a quantised base, a training without an end.

    Raises:
        RecipeError: With the field.
    """
    check_sharding(config, training.model)
    check_quantised(training)
    check_length(config, training, tasks)


def check_length(config: TrainerConfig, training: Training, tasks: Sequence[TaskSource]) -> None:
    """Refuse a trainer that cannot train experts: their rate falls to the end of the training, which must be known.

    Args:
        config: The `trainer:` block.
        training: How each expert is trained.
        tasks: The tasks of the experts to be trained.

    Raises:
        RecipeError: With the field.
    """
    processes = check_trainer(config, scores=("validation", "test"))
    if training.model != "causal" and in_parts(config):
        for task in tasks:
            if rows := here(task):
                sizes = {"train": training.batch_size, "validation": 2 * training.batch_size}
                sizes["test"] = sizes["validation"]
                check_batches(config, {split: -(-rows[split] // (processes * size)) for split, size in sizes.items()})
    if config.max_epochs in (None, -1) and config.max_steps == -1 and not config.fast_dev_run:
        raise RecipeError(
            f"trainer.max_epochs: expected a number of epochs, or trainer.max_steps, since the learning rate falls to "
            f"the end of the training; got {show(config.max_epochs)}"
        )


def inputs(recipe: Recipe) -> list[Path]:
    """The user's own files and folders that a run reads."""
    return [Path(recipe.base), *(file for task in recipe.tasks for file in own_files(task))]


def finished(path: Path) -> list[str]:
    """Names of the trainings of a run folder that are finished, as their checkpoints are named."""
    return sorted(card.parent.name for card in (path / "experts").glob("*/expert.json"))


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Train every task in turn."""
    hush_libraries()
    rows: list[dict[str, Any]] = []
    for task in recipe.tasks:
        target = folder.path / "experts" / task.name
        card = train_expert(recipe.base, task, recipe.training, recipe.trainer, recipe.seed, target, folder)
        own: dict[str, Any] = {key: card[key] for key in ("metric", "validation", "test", "per_token") if key in card}
        rows.append({"task": task.name, "labels": len(card["labels"]), **own})
    if recipe.training.model == "causal":  # no mean of shares and perplexities
        scores = ", ".join(f"{row['task']} {row['metric']} {row['test']:.3f}" for row in rows)
        shown = [{key: value for key, value in row.items() if key not in ("labels", "per_token")} for row in rows]
        folder.finish({"experts": rows}, {"Experts": shown}, summary=f"Test scores: {scores}.")
        return
    mean = sum(row["test"] for row in rows) / len(rows)
    folder.finish({"mean_test_score": mean, "experts": rows}, {"Experts": rows}, summary=f"Mean test score {mean:.3f}.")


@contextmanager
def alone_with(entry: Path, board: Board | None = None) -> Iterator[None]:
    """Of the runs that want one expert in the cache, one trains it and the others wait; one that is there is free.

    Of the processes of one run, rank 0 waits for other runs and the others wait for it: until then they would not all
    see the same, and some would enter a training that the others never join.

    Args:
        entry: Folder of the expert.
        board: Of the run folder: how rank 0 tells the others before they train together for the first time.
    """
    from filelock import FileLock, Timeout
    from torch import distributed

    together = distributed.is_available() and distributed.is_initialized()
    word = f"alone with {entry.name}"
    with ExitStack() as held:
        free = [False]
        while not free[0]:
            if process_rank() == 0 and expert_damage(entry):
                entry.parent.mkdir(parents=True, exist_ok=True)
                with suppress(Timeout):
                    held.enter_context(FileLock(entry.with_name(f".{entry.name}.lock")).acquire(timeout=TURN))
                    free = [True]
            else:
                free = [True]
            if together:  # in turns, since a process that is waited for longer than half an hour counts as lost
                distributed.broadcast_object_list(free)
        if board is not None and not together:
            board.say(word)
            board.wait(word)
        yield


def train_expert(
    base: str,
    source: TaskSource,
    training: Training,
    trainer_config: TrainerConfig,
    seed: int,
    target: Path,
    folder: RunFolder,
) -> dict[str, Any]:
    """Train one expert and save it whole, or read it when it is there already.

    Args:
        base: Model to start from.
        source: The task.
        training: How to train.
        trainer_config: Arguments of the Trainer.
        seed: Of everything random.
        target: Folder of the expert.
        folder: Run folder, for progress, metrics and checkpoints.

    Returns:
        The content of the expert's expert.json: task, labels, head, metric and scores.
    """
    if (target / "expert.json").exists():
        if not (fault := expert_damage(target)):
            card: dict[str, Any] = json.loads((target / "expert.json").read_text(encoding="utf-8"))
            if process_rank() == 0:  # of a run that was killed between the expert and what its training had left
                shutil.rmtree(folder.checkpoints / source.name, ignore_errors=True)
            folder.say(f"expert {source.name}: found, test {card['metric']} {card['test']:.3f}")
            return card
        folder.say(f"expert {source.name}: {target} {fault}; it is made again")
    if training.model == "causal":
        return train_language(base, source, training, trainer_config, seed, target, folder)
    import lightning

    from recipes.data.looks import check_taken, saved_reader
    from twinmerge.artefact import whole_folder

    lightning.seed_everything(seed, workers=True, verbose=False)
    task = load_task(source, seed)
    where = resolve_model(base)
    data = _data(base, task, where, training, seed)
    module = _module(source, task.labels, where, training, seed)
    if (look := getattr(data, "look", None)) is not None:
        check_taken(cast("PreTrainedModel", module.model), look)
    trainer = build_trainer(_for_unread(trainer_config, module), folder, source.name)
    folder.say(f"expert {source.name}: {len(task.train.texts)} training rows, {len(task.labels) or 1} labels")
    trainer.fit(module, datamodule=data, ckpt_path=folder.checkpoint_of(source.name))
    # Asked for, and not read off the last epoch: a training that is resumed when it was complete has no last epoch.
    validation = float(trainer.validate(module, datamodule=data, verbose=False)[0]["validation/score"])
    test = float(trainer.test(module, datamodule=data, verbose=False)[0]["test/score"])
    card = {
        "task": source.name,
        "labels": list(task.labels),
        "kind": training.model,
        "pooling": training.pooling if training.heads == "trained" else "mean",
        "layer_norm": training.heads == "fixed",
        "metric": source.metric,
        "base": base,
        "seed": seed,
        "validation": validation,
        "test": test,
    }
    if trainer.is_global_zero:
        model = cast("PreTrainedModel", module.model)
        reader = saved_reader(where, look, model)
        with whole_folder(target, overwrite=True) as out:
            save_expert(module, reader, card, out)
        shutil.rmtree(folder.checkpoints / source.name, ignore_errors=True)  # only an interrupted training needs them
    trainer.strategy.barrier()  # no process reads the expert before it is there
    folder.say(f"expert {source.name}: test score {test:.3f}")
    return card


def _data(base: str, task: TextTask, where: Path | str, training: Training, seed: int) -> LightningDataModule:
    """The rows of a task as its model reads them."""
    if task.kind == "images":
        from recipes.data.image_module import ImageDataModule
        from recipes.data.looks import look_of

        look = look_of(base, training.image_size)
        return ImageDataModule(
            task, look, batch_size=training.batch_size, augmentation=training.augmentation, seed=seed
        )
    from recipes.data.text_module import TextDataModule

    return TextDataModule(task, where, batch_size=training.batch_size, max_length=training.max_length, seed=seed)


def _for_unread(config: TrainerConfig, module: FinetuneModule) -> TrainerConfig:
    """The trainer of a module whose head may not read its encoder's pooler, for whose gradients DDP must not wait."""
    name = "ddp" if config.strategy == "auto" else config.strategy
    unread = module.head is not None and any("pooler" in n and p.requires_grad for n, p in module.named_parameters())
    if not unread or name not in ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook") or check_trainer(config) < 2:
        return config
    return replace(config, strategy=f"{name}_find_unused_parameters_true")


def _module(
    source: TaskSource, labels: tuple[str, ...], where: Path | str, training: Training, seed: int
) -> FinetuneModule:
    from twinmerge.module import FinetuneModule

    return FinetuneModule(
        _load_model(where, training, labels),
        labels=(len(labels) or 1) if training.model == "encoder" else 0,
        heads="fixed" if training.heads == "fixed" else "trained",
        pooling=training.pooling,
        metric=source.metric,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup=training.warmup,
        statistics=training.statistics,
        frozen=tuple(training.frozen),
        seed=head_seed(source.name, training.heads, seed),
    )


def head_seed(task: str, heads: str, seed: int) -> int:
    """Seed of a task's head; fixed heads differ between tasks, or tasks of as many labels would share their answers."""
    return zlib.crc32(f"{task} {seed}".encode()) if heads == "fixed" else seed


def save_expert(module: FinetuneModule, reader: Reader | None, card: dict[str, Any], out: Path) -> None:
    """Write the model (HF or PEFT folder), its tokenizer or processor, its head, expert.json and their digests."""
    from safetensors.torch import save_file

    cast("PreTrainedModel", module.model).save_pretrained(out)
    if reader is not None:
        reader.save_pretrained(out)
    if module.head is not None:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in module.head.state_dict().items()}, out / "head.safetensors"
        )
    (out / "expert.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    stamp(out)


def _load_model(where: Path | str, training: Training, labels: tuple[str, ...]) -> PreTrainedModel | PeftModel:
    import transformers

    model: PreTrainedModel
    if training.model == "encoder":
        return adapted(load_body(where), training)
    names = {"id2label": dict(enumerate(labels))} if labels else {"num_labels": 1}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(where, trust_remote_code=False, **names)
    # The head is new, so the adapter must carry it: PEFT saves it for this type of task only.
    return adapted(model, training, "SEQ_CLS")
