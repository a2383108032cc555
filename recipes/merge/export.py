"""Convert a twin folder: one dense checkpoint for a fixed mixture, or to and from a Lightning checkpoint.

``python -m recipes.run export.yaml source=FOLDER weights.trec=1.0`` writes ``dense/`` in the run folder, an ordinary
Hugging Face folder that every server and converter reads: a classifier with the head of the one task, or of the
`question` that a mixture is to answer. ``kind=to_checkpoint`` writes ``twin.ckpt`` with the weights,
to start a `FinetuneModule` from or for a Trainer's ``ckpt_path`` in validate, test and predict; ``from_checkpoint``
turns such a checkpoint, or one that a Trainer wrote in fine-tuning, into a twin folder again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from recipes.data.models import own_code
from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError, check_name, check_seed
from recipes.front.schema import did_you_mean
from recipes.running.quiet import hush_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from recipes.running.folder import RunFolder
    from twinmerge.module import FinetuneModule
    from twinmerge.twin_mixin import TwinMixin


@dataclass
class Recipe:
    """Convert a twin folder.

    Attributes:
        recipe: Always export.
        name: Name of the run.
        seed: Unused by a conversion, kept in every recipe.
        source: The twin folder.
        kind: dense (one model for a fixed mixture), to_checkpoint or from_checkpoint (Lightning).
        weights: For dense, coefficient by task; absent tasks count 0, none at all leaves the shared expert.
        question: For checkpoints, the head that is fine-tuned; for dense, the head that the model answers with. Left
            out, a single task of weight brings its own, and a mixture is written without a head.
        checkpoint: For from_checkpoint, the Lightning checkpoint.
    """

    source: str
    recipe: Literal["export"] = "export"
    name: str = "twin"
    seed: int = 0
    kind: Literal["dense", "to_checkpoint", "from_checkpoint"] = "dense"
    weights: dict[str, float] = field(default_factory=dict)
    question: str = ""
    checkpoint: str = ""

    def __post_init__(self) -> None:
        """Refuse fields that do not belong together."""
        check_name(self.name, "name")
        check_seed(self.seed)
        if (self.kind == "from_checkpoint") != bool(self.checkpoint):
            raise FieldError("checkpoint", f"expected a path exactly for kind from_checkpoint, got {self.checkpoint!r}")
        if self.weights and self.kind != "dense":
            raise FieldError("weights", f"expected none for kind {self.kind}, got {self.weights}")
        if self.kind != "dense" and not self.question:
            raise FieldError("question", f"expected the name of a head for kind {self.kind}, got nothing")


def check(recipe: Recipe) -> Iterator[str]:
    """Read the twin's description and compare names; write nothing."""
    file = _source(recipe) / "twin.json"
    if not file.is_file():
        raise RecipeError(
            f"source: {recipe.source!r} has no twin.json; give a twin folder such as runs/merge-text4/1/merged"
        )
    if fault := own_code(_source(recipe)):
        raise RecipeError(f"source: {recipe.source} {fault}")
    try:
        card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        tasks, heads = list(map(str, card["tasks"])), list(map(str, card["heads"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(f"source: {file} cannot be read ({error}); copy the twin folder again") from error
    yield f"twin folder {recipe.source}: tasks {', '.join(tasks)}"
    problems = [
        f"weights.{name}: no task has this name; {did_you_mean(name, tasks)}"
        for name in sorted(set(recipe.weights) - set(tasks))
    ]
    if recipe.question and recipe.question not in heads:
        problems.append(f"question: no head is called {recipe.question!r}; {did_you_mean(recipe.question, heads)}")
    if recipe.checkpoint and not Path(recipe.checkpoint).expanduser().is_file():
        problems.append(
            f"checkpoint: no file {recipe.checkpoint!r}; give a .ckpt of kind to_checkpoint or of a Trainer"
        )
    if problems:
        raise RecipeError(*problems)
    yield f"plan: {recipe.kind.replace('_', ' ')}, written into the run folder"


def inputs(recipe: Recipe) -> list[Path]:
    """The user's own files and folders that a run reads."""
    return [Path(recipe.source), *([Path(recipe.checkpoint)] if recipe.checkpoint else [])]


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Load, convert, save."""
    from twinmerge.artefact import load
    from twinmerge.errors import CheckpointError

    hush_libraries()
    try:
        twin = load(_source(recipe))
    except CheckpointError as error:
        raise RunError(f"source: {error}") from error
    if recipe.kind == "dense":
        _dense(recipe, twin, folder)
        return
    from twinmerge.module import FinetuneModule

    module = FinetuneModule(twin, question=recipe.question)
    if recipe.kind == "to_checkpoint":
        _to_checkpoint(module, folder)
    else:
        _from_checkpoint(recipe, module, folder)


def _dense(recipe: Recipe, twin: TwinMixin, folder: RunFolder) -> None:
    from twinmerge.artefact import copy_reader, densify, whole_folder

    question = recipe.question or _own_question(recipe, list(twin.heads))
    model = densify(twin, recipe.weights)
    vars(model.config).pop("auto_map", None)  # it points to the twin's own code, which a dense model does not need
    with whole_folder(folder.path / "dense") as out:
        told = _save_answering(model, twin.heads[question], question, out) if question else _save_body(model, out)
        copy_reader(_source(recipe), out)
    mixture = ", ".join(f"{weight:g} {task}" for task, weight in recipe.weights.items()) or "the shared expert alone"
    outcome = {"dense": "dense", "weights": recipe.weights, "question": question or None}
    folder.finish(outcome, summary=f"Dense checkpoint: {mixture}; {told}.")


def _own_question(recipe: Recipe, heads: list[str]) -> str:
    weighty = [task for task, weight in recipe.weights.items() if weight]
    return weighty[0] if len(weighty) == 1 and weighty[0] in heads else ""


def _save_body(model: PreTrainedModel, out: Path) -> str:
    model.save_pretrained(out)
    return f"a {type(model).__name__} without a task's head, which question=TASK adds"


def _save_answering(model: PreTrainedModel, head: Any, question: str, out: Path) -> str:
    """Write a stock classifier, or, where no stock class has such a head, the body with the head beside it."""
    from safetensors.torch import save_file

    from twinmerge.classifiers import stock_classifier
    from twinmerge.errors import CheckpointError

    try:
        made = stock_classifier(model, head)
    except CheckpointError:
        model.save_pretrained(out)
        save_file({k: v.detach().contiguous() for k, v in head.state_dict().items()}, out / "head.safetensors")
        card = {"task": question, **head.spec(), "labels": head.label_names or []}
        (out / "expert.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        return (
            f"no stock class has the head of {question!r}, which stands beside the body in head.safetensors and "
            "expert.json, as merge recipes read it"
        )
    made.save_pretrained(out)
    return f"a {type(made).__name__} with the head and labels of {question!r}"


def _to_checkpoint(module: FinetuneModule, folder: RunFolder) -> None:
    from lightning.pytorch import Trainer

    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", devices=1)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder.path / "twin.ckpt", weights_only=True)
    folder.finish({"checkpoint": "twin.ckpt"}, summary="Lightning checkpoint twin.ckpt.")


def _from_checkpoint(recipe: Recipe, module: FinetuneModule, folder: RunFolder) -> None:
    import torch

    from twinmerge.artefact import save

    where = Path(recipe.checkpoint).expanduser()
    try:
        content = torch.load(where, map_location="cpu", weights_only=True)
        cast(
            "TwinMixin", module.model
        ).train_only()  # experts that were frozen in training are not in it: the twin's own stay
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"])
    except Exception as error:  # whatever a damaged or foreign file provokes
        reason = " ".join(str(error).split())[:160]
        raise RunError(
            f"checkpoint: {where} does not fit the twin in {recipe.source} ({reason}); give one made from it"
        ) from error
    card = json.loads((_source(recipe) / "twin.json").read_text(encoding="utf-8"))
    kept = {key: card[key] for key in ("base", "sources") if key in card}
    labels = {task: head["labels"] for task, head in card["heads"].items()}
    save(module.model, folder.path / "merged", tokenizer=_source(recipe), card=kept, labels=labels)
    folder.finish({"merged": "merged"}, summary="Twin folder merged/ from a Lightning checkpoint.")


def _source(recipe: Recipe) -> Path:
    return Path(recipe.source).expanduser()
