"""One training of a distill recipe under a regime, and the figures that its test gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from recipes.running.trainer import TrainerConfig, build_trainer

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, Trainer

    from distill.module import DistillModule
    from distill.regimes import Regime
    from recipes.distill.schema import Recipe
    from recipes.running.folder import RunFolder

__all__ = ["figures", "fit", "limited"]


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


def figures(tested: Mapping[str, float], name: str, students: int) -> dict[str, float]:
    """What a test logged of one of several students, by the figure's own name."""
    stage = f"test/{name}/" if students > 1 else "test/"
    return {key.removeprefix(stage): value for key, value in tested.items() if key.startswith(stage)}
