"""A recipe for the tests of the front: every kind of field, and a run that can fail in every way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError, check_name, check_positive, check_seed, check_unique
from recipes.running.trainer import TrainerConfig


@dataclass
class Task:
    """One task.

    Attributes:
        name: Name of the task.
        max_train: Use at most so many samples.
    """

    name: str
    max_train: int | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if self.max_train is not None:
            check_positive(self.max_train, "max_train")


@dataclass
class Method:
    """How to do it.

    Attributes:
        rank: Rank of the factors.
        scale: Scale of the result.
        kind: Which way.
        low: Lower bound.
        high: Upper bound.
    """

    rank: int = 4
    scale: float = 0.5
    kind: Literal["ties", "dare"] = "ties"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.rank, "rank")
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}; swap them")


@dataclass
class Recipe:
    """A recipe for tests.

    Attributes:
        recipe: Name of the recipe.
        name: Name of the run.
        seed: Seed of everything random.
        do: What the run does.
        method: How to do it.
        tasks: The tasks.
        weights: Weight of each task.
        path: A file.
        note: Any text.
        anything: Whatever you like.
        trainer: Arguments of lightning.Trainer.
    """

    recipe: Literal["toy"] = "toy"
    name: str = "toy"
    seed: int = 0
    do: Literal["nothing", "fail", "crash", "interrupt", "sleep", "train", "unread"] = "nothing"
    method: Method = field(default_factory=lambda: Method(rank=8))
    tasks: list[Task] = field(default_factory=lambda: [Task("a"), Task("b", 3)])
    weights: dict[str, float] = field(default_factory=dict)
    path: Path | None = None
    note: str | None = None
    anything: Any = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        check_seed(self.seed)
        check_unique([task.name for task in self.tasks], "tasks")
        for task in self.weights:
            if task not in {known.name for known in self.tasks}:
                raise FieldError(f"weights.{task}", f"no task has this name; the tasks are {self.tasks}")


def check(recipe: Recipe) -> Iterator[str]:
    """Look at the path only."""
    yield f"{len(recipe.tasks)} tasks"
    if recipe.path is not None and not recipe.path.exists():
        raise RecipeError(f"path: {recipe.path} does not exist; give a file")
    yield "the plan: nothing"


def inputs(recipe: Recipe) -> list[Path]:
    """The path only."""
    return [] if recipe.path is None else [recipe.path]


def run(recipe: Recipe, folder: Any) -> None:
    """Do what the recipe says."""
    folder.say(f"resume={folder.resume}")
    if recipe.do == "fail":
        raise RunError("it cannot be done; try something else")
    if recipe.do == "crash":
        raise KeyError("inner\nworkings")
    if recipe.do == "interrupt":
        raise KeyboardInterrupt
    if recipe.do == "sleep":
        with folder.phase("sleep", 600) as phase:
            for _ in phase.track(range(600)):
                time.sleep(0.1)
    if recipe.do in ("train", "unread"):
        _train(recipe, folder)
    folder.finish(
        {"score": 1.0, "bad": float("nan"), "value": float(recipe.method.rank + recipe.seed)},
        {"scores": [{"task": "<a>", "score": 0.5}]},
        summary="all & well",
    )


def _train(recipe: Recipe, folder: Any) -> None:
    import torch
    from lightning import seed_everything
    from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset

    from recipes.running.resume import ResumableLoader
    from recipes.running.trainer import build_trainer

    class Model(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if recipe.do == "unread":  # one layer only: the other's parameters get no gradient
                return super().training_step(batch, batch_idx)
            loss = self.layer(torch.nn.functional.dropout(batch, 0.2)).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        val_dataloader = None  # type: ignore[assignment]
        validation_step = None  # type: ignore[assignment]

    seed_everything(recipe.seed, verbose=False)
    model = Model()
    if recipe.do == "unread":
        model.other = torch.nn.Linear(2, 2)
    loader = ResumableLoader(RandomDataset(32, 16), 2, seed=recipe.seed)
    trainer = build_trainer(recipe.trainer, folder)
    ckpt = folder.resume if folder.resume != folder.path else None
    trainer.fit(model, loader, ckpt_path=ckpt)
    if trainer.is_global_zero:
        torch.save(model.state_dict(), folder.path / "model.pt")
