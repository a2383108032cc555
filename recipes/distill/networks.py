"""Networks of a distill recipe: built behind the common call, saved and read again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from recipes.data.models import resolve_model
from recipes.data.smollm2 import smollm2
from recipes.distill.schema import Network, Recipe


@contextmanager
def told(kind: type[Exception], where: str = "") -> Iterator[None]:
    """Turn what the wing refuses into an error of the front."""
    try:
        yield
    except DistillError as error:
        raise kind(f"{where}: {error}" if where else str(error)) from error


def network(recipe: Recipe, config: Network, classes: int, *, student: bool) -> Any:
    """Build a network of the recipe, behind the common call."""
    from distill.module import build

    options = dict(config.options)
    name: Any = config.model
    training = recipe.training
    if recipe.kind == "images" and student:
        drop = {"drop_path_rate": training.drop_path, "drop_rate": training.dropout}
        options = {k: v for k, v in drop.items() if v} | options
    if recipe.kind != "images":
        name = str(smollm2() if name == "shipped:smollm2" else resolve_model(name))
    size = training.image_size if recipe.kind == "images" else 0
    rank = recipe.lora_rank if student else 0
    return build(name, recipe.kind, classes, size, recipe.channels_last, rank, options)


def save_network(made: Any, target: Path) -> None:
    """Write the weights as network.safetensors, and a transformers model as its own folder beside them."""
    from safetensors.torch import save_model

    target.mkdir(parents=True, exist_ok=True)
    if hasattr(made.model, "save_pretrained"):
        made.model.save_pretrained(target / "model")
    save_model(made.model, str(target / "network.safetensors"))


def load_network(made: Any, file: Path) -> None:
    """Read weights that `save_network` wrote."""
    from safetensors.torch import load_model

    load_model(made.model, file)
