"""Merge checkpoints in files out of core: a model of any size in the memory of a laptop, or a twin of such models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError, check_name, check_seed
from recipes.front.schema import did_you_mean
from recipes.front.signature import FedBlock, takes
from recipes.merge.baselines import arguments_of
from twinmerge.methods import WITH_DATA, methods

if TYPE_CHECKING:
    from recipes.running.folder import RunFolder
    from twinmerge.big.plan import Plan

RANKS = ("rank", "density", "energy", "budget")
_OF_TWINS = (*RANKS, "tolerance", "seed", "router", "texts")


@takes(
    "twinmerge.big.twin:twin_files",
    leave_out={"folder": "it is merged/ of the run folder", "overwrite": "a run folder is never overwritten"},
)
@dataclass
class Recipe(FedBlock):
    """Merge checkpoints in files, block by block; with rank, density, energy or budget into a twin.

    Attributes:
        recipe: Always merge_files.
        name: Name of the run.
        base: The experts' common base, a folder or a Hub name.
        experts: Folders or Hub names by name: whole checkpoints in safetensors, or plain LoRA adapters.
        texts: For a router, files of unlabelled texts (one a line) by expert.
        statistics: Of the methods fisher and regmean, a safetensors file by expert.
        options: Of the method, such as scale; numbers for each expert by the experts' names, lists over the layers.
        seed: Of masks and sketches.
        dtype: Number format of the merged weights; a twin has the base's.
    """

    base: str
    experts: dict[str, str]
    recipe: Literal["merge_files"] = "merge_files"
    name: str = "files"
    options: dict[str, object] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    statistics: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    dtype: Literal["stored", "float32", "float16", "bfloat16"] = "stored"

    def __post_init__(self) -> None:
        """Refuse unknown methods and options, and fields that do not belong together."""
        check_name(self.name, "name")
        check_seed(self.seed)
        for name in self.experts:
            check_name(name, "experts")
        method = self.arguments()["method"]
        if method not in (known := [*methods(), *WITH_DATA]):
            raise FieldError("method", f"unknown merge method {method!r}; {did_you_mean(method, known)}")
        filled = [WITH_DATA[method].option] if method in WITH_DATA else []
        for name in self.options:
            if name not in (known := [n for n in arguments_of(method) if n not in filled]):
                raise FieldError(f"options.{name}", f"{method} has no such option; {did_you_mean(name, known)}")
        kept = [name for name in RANKS if getattr(self, name) is not None]
        if len(kept) > 1:
            raise FieldError(kept[1], f"expected one of {', '.join(RANKS)} at most, got {' and '.join(kept)}")
        if (router := self.arguments()["router"]) and not (kept and self.texts):
            raise FieldError("router", f"expected none without one of {', '.join(RANKS)} and texts, got {router!r}")
        if self.texts and not router:
            raise FieldError("texts", "expected none without a router; set router to knn, linear or mlp")
        if kept and self.dtype != "stored":
            raise FieldError("dtype", f"expected stored for a twin, got {self.dtype!r}")

    def drawn(self) -> dict[str, object]:
        """The options of the method; one that draws masks has the recipe's seed."""
        draws = "seed" in arguments_of(self.arguments()["method"])
        return {**({"seed": self.seed} if draws else {}), **self.options}


def check(recipe: Recipe) -> Iterator[str]:
    """Compare all models by their headers and say what the merge takes; write nothing."""
    plan = _plan(recipe)
    yield f"{len(recipe.experts)} experts have the tensors of {recipe.base}"
    yield from plan.lines()
    if said := plan.refusal():
        raise RecipeError(f"memory: {said.rstrip('.')}")
    free = shutil.disk_usage(Path.cwd()).free
    if plan.written > free:
        raise RecipeError(f"disk: {plan.written / 1e9:.1f} GB are written and {free / 1e9:.1f} GB are free; make room")
    yield f"disk: {free / 1e9:.1f} GB free in the working folder"


def _plan(recipe: Recipe) -> Plan:
    from twinmerge.big.devices import check_device
    from twinmerge.big.factors import Ranks
    from twinmerge.big.merge import bound_method, job_of, planned, size_in_bytes
    from twinmerge.big.statistics import check_statistics
    from twinmerge.big.twin import checked_twin, planned_twin

    given = recipe.arguments()
    try:
        check_device(given["device"])
        job = job_of(recipe.base, recipe.experts, recipe.dtype, given["vocabulary"])
        bound_method(job, given["method"], recipe.drawn())
        check_statistics(given["method"], recipe.statistics, list(recipe.experts))
        size_in_bytes(given["shard"])
        if _twin(recipe):
            ranks = Ranks(*(given[name] for name in RANKS))
            checked_twin(job, ranks, given["router"], recipe.texts or None)
            return planned_twin(job, given["method"], given["memory"], ranks)
        return planned(job, given["method"], given["memory"])
    except ValueError as error:  # of which CheckpointError is one
        raise RecipeError(str(error).rstrip(".")) from error


def _twin(recipe: Recipe) -> bool:
    return any(getattr(recipe, name) is not None for name in RANKS)


def inputs(recipe: Recipe) -> list[Path]:
    """The user's own folders that a run reads."""
    return [
        path
        for path in map(
            Path, (recipe.base, *recipe.experts.values(), *recipe.statistics.values(), *recipe.texts.values())
        )
        if path.expanduser().exists()
    ]


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Merge into the run folder; a run that was killed goes on with --resume."""
    from twinmerge.big.merge import merge_files
    from twinmerge.big.twin import twin_files

    given = {**recipe.arguments(), "options": recipe.drawn(), "texts": recipe.texts or None}
    plan, target = _plan(recipe), folder.path / "merged"
    try:
        if not target.exists():
            if _twin(recipe):
                twin_files(folder=target, **given)
            else:
                static = {name: given[name] for name in given if name not in _OF_TWINS}
                merge_files(folder=target, **static, dtype=recipe.dtype)
    except ValueError as error:
        raise RunError(str(error).rstrip(".")) from error
    outcome = {"merged": "merged", "method": given["method"], "experts": list(recipe.experts)}
    if _twin(recipe):
        outcome["left_out"] = json.loads((target / "twin.json").read_text(encoding="utf-8"))["left_out"]
    kind = "A twin folder" if _twin(recipe) else "A model"
    summary = f"{kind} merged by {given['method']} from {len(recipe.experts)} experts, {plan.written / 1e9:.2f} GB."
    folder.finish(outcome, summary=summary)
