"""The data module of a distill recipe: images, texts of a task, or blocks of language."""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from distill.regimes import Regime, regime
from recipes.data.image_tasks import shipped_path
from recipes.data.models import resolve_model
from recipes.data.smollm2 import smollm2
from recipes.data.sources import load_task
from recipes.data.task_source import TaskSource
from recipes.distill.schema import Recipe, Values

if TYPE_CHECKING:
    from lightning import Trainer
    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.utilities.types import TRAIN_DATALOADERS

    from recipes.data.image_module import MixedImageDataModule
    from recipes.data.text_module import MixedTextDataModule
    from recipes.distill.prompt_data import PromptData

GLYPHS = (20_000, 4000)  # drawn for training, and for validation and test each, where a recipe does not say

Mixed = TypeVar("Mixed", bound="MixedTextDataModule | MixedImageDataModule | PromptData")


def data_module(recipe: Recipe, changes: Mapping[str, object], cache: Path | None = None) -> LightningDataModule:
    """The data of the recipe under a regime; with the folder of a cache, in the views that the teacher answers once."""
    data, training = recipe.data, regime(recipe.regime, changes)
    if data.task is not None:
        return _texts(recipe, data.task, training)
    if data.source == "files":
        return _files(recipe, training)
    if data.source == "drawn_glyphs":
        return _drawn(recipe, training)
    from distill.cached_data import CachedImageData
    from distill.data import ImageData

    path = shipped_path("mnist") if data.source == "mnist" else data.path
    same = ("classes", "grey", "rows", "test_rows", "workers")
    options = {key: value for key, value in asdict(data).items() if key in same}
    options |= {"regime": recipe.regime, "changes": dict(changes), "seed": recipe.seed}
    source: Any = data.source
    if cache is not None:
        teacher = recipe.teacher
        return CachedImageData(source, path, views=teacher.views, folder=str(cache), form=teacher.keep, **options)
    return ImageData(source, path, **options)


def _drawn(recipe: Recipe, training: Regime) -> LightningDataModule:
    from distill.transforms import mixup
    from recipes.distill.glyph_module import GlyphData

    data = recipe.data
    return GlyphData(
        data.rows or GLYPHS[0],
        training.batch_size,
        recipe.trainer.max_steps,
        bool(training.auto_augment),
        mixup(training, data.classes) if training.mixes else None,
        recipe.seed,
        data.test_rows or GLYPHS[1],
    )


def _texts(recipe: Recipe, task: TaskSource, training: Regime) -> LightningDataModule:
    from recipes.data.text_module import TextDataModule

    places = network_places(recipe)
    same_words(places)
    made, evaluated = load_task(task, recipe.seed), 2 * training.batch_size
    options: Values = {"batch_size": training.batch_size, "eval_batch_size": evaluated}
    return dealt(TextDataModule, training)(made, places[-1], max_length=recipe.data.length, seed=recipe.seed, **options)


def dealt(kind: type[Mixed], training: Regime) -> type[Mixed]:
    """A data module whose batch is that of an update, on all processes and accumulated batches together.

    Args:
        kind: Of texts or images.
        training: Under which it is learned from.
    """
    from distill.gathering import own_batch

    class Dealt(kind):  # type: ignore[valid-type,misc]  # a class that is given is none to the type checker
        """Dealt out to processes and accumulated batches."""

        def train_dataloader(self) -> TRAIN_DATALOADERS:
            self.batch_size = own_batch(training.batch_size, cast("Trainer", self.trainer).accumulate_grad_batches)
            return super().train_dataloader()

    return Dealt


def _files(recipe: Recipe, training: Regime) -> LightningDataModule:
    from distill.tokens import TokenData

    places = network_places(recipe)
    if not recipe.apart:
        same_words(places, special=False)
    data = recipe.data
    return TokenData(
        text_files(recipe),
        places[-1],
        length=data.length,
        batch_size=training.batch_size,
        blocks=data.rows,
        evaluation_blocks=data.test_rows,
        seed=recipe.seed,
    )


def text_files(recipe: Recipe) -> list[Path]:
    """The files of language that the recipe names."""
    python = recipe.data.path == "python"
    root = Path(sysconfig.get_path("stdlib")) if python else Path(recipe.data.path).expanduser()
    return [file for file in sorted(root.glob("*.py" if python else recipe.data.pattern)) if file.is_file()]


def network_places(recipe: Recipe) -> list[str]:
    """Folders or Hub names of the teachers' models and, last, of the student's, fetched where they ship; each once."""
    own = recipe.student.model
    names = [*(name for name in dict.fromkeys(n.model for n in recipe.voices) if name != own), own]
    return [str(smollm2() if name == "shipped:smollm2" else resolve_model(name)) for name in names]


def same_words(places: Sequence[str], *, special: bool = True) -> None:
    """Refuse teachers that read texts as other tokens than the student.

    Args:
        places: Of `network_places`.
        special: Whether texts get special tokens.

    Raises:
        DistillError: With the first difference.
    """
    from transformers import AutoTokenizer

    from distill.tokenizers import check_tokenizers

    *theirs, own = (AutoTokenizer.from_pretrained(place, trust_remote_code=False) for place in places)
    for tokenizer in theirs:
        check_tokenizers(tokenizer, own, special=special)
