"""Whether the twin of a merge can teach one student with many heads, found out before a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from distill.errors import DistillError
from recipes.data.models import check_model, is_here, resolve_model
from recipes.distill.merge_run import MergeRun, merge_run
from recipes.distill.networks import is_twin, unloadable
from recipes.distill.schema import Network
from recipes.distill.shorter import KEYS, kept_layers
from recipes.errors import RecipeError

if TYPE_CHECKING:
    from distill.losses import DistillLoss
    from recipes.distill.schema import Recipe, Values

__all__ = ["check_masked", "check_student", "check_teacher"]


def check_teacher(recipe: Recipe, network: Network) -> str:
    """One sentence about the teacher: the twin of the merge, or another of the same tasks.

    Args:
        recipe: With a merge as data.
        network: The teacher.

    Raises:
        RecipeError: When it is no twin folder, or lacks the head of a task.
    """
    where = Path(network.model).expanduser()
    if not is_twin(network.model):
        raise RecipeError(
            f"teacher.model: {network.model!r} is no twin folder; leave it out for the merge's own, or give the "
            "merged/ of another merge of these tasks"
        )
    run = merge_run(recipe.data.path)
    lacking = [task.name for task in run.recipe.tasks if task.name not in _heads(where)]
    if lacking and recipe.kind != "language":
        raise RecipeError(f"teacher.model: the twin {where} has no head for task {lacking[0]!r}; give one that has")
    return f"teacher: routed twin folder {where}, each input answered by the head of its task"


def check_student(recipe: Recipe, network: Network) -> str:
    """One sentence about the student, and which layers it keeps where that is known here.

    Args:
        recipe: With a merge as data.
        network: The student.

    Raises:
        RecipeError: When there is no such model, or it has not the layers that are to be kept.
    """
    if network.model and is_twin(network.model):
        raise RecipeError(
            f"student.model: {network.model} is a twin folder; leave it out, which takes the merge's shared expert, or "
            "give a smaller model"
        )
    line = check_model(network.model) if network.model else "the shared expert of the twin"
    place: Path | str = Path(recipe.voices[0].model).expanduser()
    if network.model:
        place = resolve_model(network.model) if is_here(network.model) else ""
    if not place or not (Path(place) / "config.json").is_file():
        return f"student: {line}"
    try:
        total = json.loads((Path(place) / "config.json").read_text(encoding="utf-8")).get("num_hidden_layers")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise RecipeError(f"student.model: {place}/config.json cannot be read ({error}); copy it again") from error
    try:
        kept = kept_layers(total, network.options)
    except DistillError as error:
        raise RecipeError(f"student.{error}") from error
    if options := {key: value for key, value in network.options.items() if key not in KEYS}:
        _check_options(Path(place), options, language=recipe.kind == "language")
    layers = "all its layers" if kept is None else f"its layers {', '.join(map(str, kept))} of {total}"
    return f"student: {line}, {layers}, a head for every task"


def _check_options(place: Path, options: Values, *, language: bool) -> None:
    """Build a student without its weights, as its constructor takes its options, and compare shapes.

    Raises:
        RecipeError: When it does not take one of them, or weights of the folder would have other shapes.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    from twinmerge.towers import tower_class

    def shapes(**given: object) -> dict[str, tuple[int, ...]]:
        kind = AutoModelForCausalLM if language else tower_class(place)
        reader = getattr(kind, "config_class", None) or AutoConfig
        known = {"trust_remote_code": False, "return_unused_kwargs": True}
        config, others = reader.from_pretrained(place, **known, **given)
        with torch.device("meta"):
            made = cast("torch.nn.Module", getattr(kind, "from_config", kind)(config, **others))
        return {name: tuple(part.shape) for name, part in made.state_dict().items()}

    try:
        before, after = shapes(), shapes(**options)
        for name in (name for name in before if after.get(name, before[name]) != before[name]):
            raise ValueError(f"{name} would be of shape {after[name]}, and its weights are of {before[name]}")
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError, StrictDataclassError) as error:
        raise RecipeError(f"student.options: {unloadable(Network(str(place), options), place, error)}") from error


def check_masked(recipe: Recipe, where: str, loss: DistillLoss) -> None:
    """Try a method's losses on made-up rows of all tasks, whose heads have other numbers of classes.

    Args:
        recipe: With a merge as data.
        where: Its place in the recipe.
        loss: Its losses.

    Raises:
        RecipeError: When they cannot compare rows in which the classes of other tasks are masked.
    """
    import torch

    from distill.terms import Outputs

    if recipe.kind == "language":  # a token is the same in every task
        if recipe.apart:
            raise RecipeError(f"{where}: uld is for other tokens, but student and twin read the same; take kd")
        return
    if not loss.needs <= {"logits"}:
        if recipe.kind == "images":
            raise RecipeError(
                f"{where}: its losses compare {', '.join(sorted(loss.needs - {'logits'}))}, but students of a "
                "merge of images are taught by logits; give losses of these, such as kd"
            )
        return
    widths = _widths(merge_run(recipe.data.path), Path(recipe.voices[0].model).expanduser())
    draw = torch.Generator().manual_seed(0)
    masked = torch.tensor([[k >= width for k in range(max(widths))] for width in widths for _ in range(4)])
    student, teacher = (torch.randn(masked.shape, generator=draw).masked_fill(masked, float("-inf")) for _ in range(2))
    try:
        loss(Outputs(student), Outputs(teacher), torch.zeros(len(masked), dtype=torch.long))
    except (DistillError, ValueError) as error:
        raise RecipeError(
            f"{where}: its losses cannot compare tasks of {', '.join(map(str, widths))} classes in one batch: {error}"
        ) from error


def _widths(run: MergeRun, twin: Path) -> list[int]:
    heads = _heads(twin)
    return [max(2, len(heads[task.name].get("labels") or ())) for task in run.recipe.tasks]


def _heads(twin: Path) -> dict[str, dict[str, list[str]]]:
    try:
        found = dict(json.loads((twin / "twin.json").read_text(encoding="utf-8"))["heads"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise RecipeError(f"teacher.model: {twin / 'twin.json'} cannot be read ({error}); copy it again") from error
    return cast("dict[str, dict[str, list[str]]]", found)
