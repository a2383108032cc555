"""One training of a distill recipe under a regime: its module, its trainer, and the figures that its test gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from recipes.distill.networks import network
from recipes.distill.schema import Recipe, Terms
from recipes.running.trainer import TrainerConfig, build_trainer

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, Trainer
    from torch import nn

    from distill.data import ImageData
    from distill.module import DistillModule
    from distill.regimes import Regime
    from recipes.running.folder import RunFolder

__all__ = ["figures", "fit", "limited", "side_by_side"]


def side_by_side(
    recipe: Recipe,
    teacher: nn.Module | None,
    terms: Mapping[str, Terms],
    data: LightningDataModule,
    labels: list[str] | None,
    **options: object,
) -> DistillModule:
    """A student for every entry of the terms, all from the same initial weights, with the teacher.

    Args:
        recipe: The recipe; its seed draws the weights.
        teacher: The teacher.
        terms: Losses by student.
        data: Of the training.
        labels: Names of the classes of texts.
        options: Arguments of `DistillModule` in place of the recipe's.
    """
    import lightning

    from distill.module import DistillModule

    classes = len(labels) if labels else recipe.data.classes
    students: dict[str, nn.Module | str] = {}
    for name in terms:
        lightning.seed_everything(recipe.seed, workers=True, verbose=False)
        students[name] = network(recipe, recipe.student, classes, student=True)
    negatives = any("crd" in chosen for chosen in terms.values())
    given: dict[str, object] = {
        "task": recipe.kind,
        "classes": classes,
        "teacher_dtype": recipe.teacher.dtype,
        "item_labels": cast("ImageData", data).item_labels() if negatives else None,
        "labels": labels,
    }
    return DistillModule(students, teacher, dict(terms), **(given | recipe.arguments() | options))  # type: ignore[arg-type]


def fit(
    recipe: Recipe, module: DistillModule, data: LightningDataModule, folder: RunFolder, name: str, training: Regime
) -> Trainer:
    """Train under a regime, from the newest checkpoint of this phase where there is one."""
    trainer = build_trainer(limited(recipe.trainer, training), folder, name)
    trainer.fit(module, datamodule=data, ckpt_path=folder.checkpoint_of(name))
    return trainer


def limited(config: TrainerConfig, training: Regime) -> TrainerConfig:
    """The trainer of a recipe, with the epochs of the regime where it says no other end."""
    limit = training.epochs if config.max_epochs is None and config.max_steps <= 0 else config.max_epochs
    return replace(config, max_epochs=limit)


def figures(found: Mapping[str, float], name: str, students: int, split: str = "test") -> dict[str, float]:
    """What a test or validation logged of one of several students, by the figure's own name."""
    stage = f"{split}/{name}/" if students > 1 else f"{split}/"
    return {key.removeprefix(stage): value for key, value in found.items() if key.startswith(stage)}
