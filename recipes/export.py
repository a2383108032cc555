"""Convert a twin folder: one dense checkpoint for a fixed mixture, or to and from a Lightning checkpoint.

``python -m recipes.run export.yaml source=FOLDER weights.trec=1.0`` writes ``dense/`` in the run folder, an ordinary Hugging
Face folder that every server and converter reads. ``kind=to_checkpoint`` writes ``twin.ckpt`` for
``Trainer.fit(..., ckpt_path=...)``; ``kind=from_checkpoint`` turns such a checkpoint, after fine-tuning, into a twin folder
again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recipes.front.errors import RecipeError
from recipes.front.types import FieldError, check_name
from recipes.quiet import hush_libraries

if TYPE_CHECKING:
    from recipes.runfolder import RunFolder


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
        question: For checkpoints, the head that is fine-tuned.
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
        if (self.kind == "from_checkpoint") != bool(self.checkpoint):
            raise FieldError("checkpoint", f"expected a path exactly for kind from_checkpoint, got {self.checkpoint!r}")
        if self.weights and self.kind != "dense":
            raise FieldError("weights", f"expected none for kind {self.kind}, got {self.weights}")
        if self.kind != "dense" and not self.question:
            raise FieldError("question", f"expected the name of a head for kind {self.kind}, got nothing")


def check(recipe: Recipe) -> Iterator[str]:
    """Read the twin's description and compare names; write nothing."""
    file = Path(recipe.source) / "twin.json"
    if not file.is_file():
        raise RecipeError(f"source {recipe.source!r} has no twin.json; give a twin folder such as runs/merge-text4/1/merged")
    try:
        card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        tasks, heads = list(card["tasks"]), list(card["heads"])
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{file} cannot be read ({error}); copy the twin folder again") from error
    yield f"twin folder {recipe.source}: tasks {', '.join(tasks)}"
    if unknown := sorted(set(recipe.weights) - set(tasks)):
        raise RecipeError(f"weights.{unknown[0]}: no such task; accepted: {', '.join(tasks)}")
    if recipe.question and recipe.question not in heads:
        raise RecipeError(f"question: no head is called {recipe.question!r}; accepted: {', '.join(heads) or 'none'}")
    if recipe.checkpoint and not Path(recipe.checkpoint).is_file():
        raise RecipeError(f"checkpoint: no file {recipe.checkpoint!r}; give a .ckpt written by kind to_checkpoint or a Trainer")
    yield f"plan: {recipe.kind.replace('_', ' ')}, written into the run folder"


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Load, convert, save."""
    from twinmerge.artefact import densify, load, save, whole_folder

    hush_libraries()
    twin = load(recipe.source)
    if recipe.kind == "dense":
        target = folder.path / "dense"
        with whole_folder(target) as out:
            densify(twin, recipe.weights).save_pretrained(out)
            _copy_tokenizer(Path(recipe.source), out)
        folder.finish({"dense": "dense", "weights": recipe.weights}, summary=f"Dense checkpoint with {recipe.weights}.")
        return
    import torch
    from lightning.pytorch import Trainer

    from twinmerge.module import FinetuneModule

    module = FinetuneModule(twin, question=recipe.question)
    if recipe.kind == "to_checkpoint":
        trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", devices=1)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(folder.path / "twin.ckpt", weights_only=True)
        folder.finish({"checkpoint": "twin.ckpt"}, summary="Lightning checkpoint twin.ckpt.")
        return
    state = torch.load(recipe.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)
    card = json.loads((Path(recipe.source) / "twin.json").read_text(encoding="utf-8"))
    kept = {k: card[k] for k in ("base", "sources") if k in card}
    labels = {task: head["labels"] for task, head in card["heads"].items()}
    save(module.model, folder.path / "merged", tokenizer=recipe.source, card=kept, labels=labels)
    folder.finish({"merged": "merged"}, summary="Twin folder merged/ from a Lightning checkpoint.")


def _copy_tokenizer(source: Path, out: Path) -> None:
    from transformers import AutoTokenizer

    if (source / "tokenizer_config.json").exists():
        AutoTokenizer.from_pretrained(source).save_pretrained(out)
