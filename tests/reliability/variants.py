"""The recipes that are broken: every one that trains, made so small that a run takes seconds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.recipes import tiny

CPU: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "log_every_n_steps": 1}
CNN: dict[str, Any] = {"options": {"in_chans": 1}}
DIGITS: dict[str, Any] = {"source": "digits", "classes": 10, "grey": True, "rows": 128, "test_rows": 32}
WEAK: dict[str, Any] = {"epochs": 2, "milestones": [1], "image_size": 8, "padding": 1, "flip": 0.0, "batch_size": 32}
STRONG: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 32,
    "image_size": 8,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "warmup_epochs": 0.5,
    "schedule_on": "update",
    "drop_path": 0.0,
    "mixup": 0.8,
    "cutmix": 0.0,
    "repeats": 1,
    "auto_augment": "",
    "ema": 0.9,
}


@dataclass(frozen=True)
class Variant:
    """One recipe and how it is run.

    Attributes:
        name: Of the variant.
        recipe: The content of its YAML, over the world's base and tables.
        share: Of the broken runs, relative to the others.
        processes: How many train together.
        fetches: The program that is run fetches a wheel, not a recipe.
    """

    name: str
    recipe: dict[str, Any] = field(repr=False)
    share: float = 1.0
    processes: int = 1
    fetches: bool = False


class Ground:
    """A folder with a tiny base, two small tasks and the recipes over them.

    Args:
        folder: Made when it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "ready").exists():
            folder.mkdir(parents=True, exist_ok=True)
            tiny.save_base(folder / "base", hidden=16)
            for task in ("mood", "topic"):
                tiny.write_csv(folder / f"{task}.csv", task)
            (folder / "ready").touch()

    def variants(self) -> list[Variant]:
        """All of them; the dear ones have a small share."""
        return [
            Variant("finetune", self._finetune({"lora_rank": 2}), 3.0),
            Variant("finetune-full", self._finetune({"learning_rate": 1e-3}, accumulate_grad_batches=2), 2.0),
            Variant("finetune-epochs-3", self._finetune({}, tasks=1, max_epochs=3, val_check_interval=0.5), 2.0),
            Variant("merge", self._merge(), 1.5),
            Variant("distill", self._distill("ce", "kd"), 2.0),
            Variant("distill-strong", self._distill("kd", regime="A2", changes=STRONG), 2.0),
            Variant("distill-accumulate", self._distill("kd", trainer={"accumulate_grad_batches": 2}), 1.0),
            Variant("distill-cached", self._distill("kd", teacher={"views": 2}), 2.0),
            Variant("distill-workers", self._distill("kd", data={"workers": 2}), 1.0),
            Variant("hpo", self._hpo({"hpo": {}, "hppo": {"estimator": "score", "reuse": 2}}), 3.0),
            Variant("hpo-seeds", self._hpo({"hpo": {}}, seeds=2), 1.5),
            Variant("csp", self._csp(), 2.0),
            Variant("wheel", {}, 1.5, fetches=True),
            Variant("finetune-two", self._finetune({"lora_rank": 2}, tasks=1, devices=2, strategy="ddp"), 0.0, 2),
            Variant("hpo-two", self._hpo({"hpo": {}}, devices=2), 0.0, 2),
        ]

    def write(self, variant: Variant, folder: Path) -> str:
        """Write the variant's YAML into a folder and return its name."""
        file = folder / f"{variant.name}.yaml"
        file.write_text(yaml.safe_dump(variant.recipe, sort_keys=False), encoding="utf-8")
        return file.name

    def _tasks(self, count: int, rows: int) -> list[dict[str, Any]]:
        few = {"max_train": rows, "max_validation": 8, "max_test": 8}
        return [tiny.task_source(self.folder, task, **few) for task in ("mood", "topic")[:count]]

    def _finetune(self, training: dict[str, Any], *, tasks: int = 2, **trainer: Any) -> dict[str, Any]:
        return {
            "recipe": "finetune",
            "name": "tiny",
            "base": str(self.folder / "base"),
            "tasks": self._tasks(tasks, 32),
            "training": {"batch_size": 8, "max_length": 16, **training},
            "trainer": {**CPU, "gradient_clip_val": 1.0, **trainer},
        }

    def _merge(self) -> dict[str, Any]:
        return {
            **self._finetune({"batch_size": 16}, max_epochs=1),
            "recipe": "merge",
            "exclusive": {"rank": 2},
            "router": {"items": 32, "epochs": 2, "batch_size": 16},
            "baselines": {"scales": [0.5]},
        }

    def _distill(self, *methods: str, regime: str = "previous_cifar", **changes: Any) -> dict[str, Any]:
        return {
            "recipe": "distill",
            "name": "tiny",
            "teacher": {"model": "small_cnn_4", **CNN, "train": True, **changes.get("teacher", {})},
            "student": {"model": "small_cnn_2", **CNN},
            "data": DIGITS | changes.get("data", {}),
            "regime": regime,
            "changes": changes.get("changes", WEAK),
            "methods": {name: {} for name in methods},
            "trainer": {**CPU, **changes.get("trainer", {})},
        }

    def _hpo(self, methods: dict[str, Any], seeds: int = 1, **trainer: Any) -> dict[str, Any]:
        return {
            "recipe": "hpo",
            "name": "tiny",
            "seeds": seeds,
            "simulator": {"class_path": "rl.envs.newsvendor.Newsvendor"},
            "methods": methods,
            "training": {"hidden": [4], "diagnose_every": 2},
            "episodes": {
                "batch_size": 8,
                "updates_per_epoch": 3,
                "group_size": 4,
                "validation_episodes": 8,
                "test_episodes": 8,
            },
            "trainer": {**CPU, **trainer},
        }

    def _csp(self) -> dict[str, Any]:
        return {
            "recipe": "csp",
            "name": "tiny",
            "game": {"name": "vault_maze"},
            "data": {"episodes": 10},
            "adaptation": {"iterations": 4, "episodes": 8, "hidden": [8], "epochs": 1},
            "baselines": ["bc_first"],
            "attack": {"iterations": 1, "episodes": 8, "test_episodes": 8, "baselines": False},
            "trainer": CPU,
        }
