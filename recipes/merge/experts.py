"""The experts of a merge: where a trained one is cached, and one that is there, checked and read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.data import wheels
from recipes.data.models import HUB_ID, is_here, resolve_model
from recipes.data.tables import split_files
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError
from recipes.running.seals import STAMP, added, damage, digest

if TYPE_CHECKING:
    from torch import nn

    from recipes.merge.schema import Recipe, Training
    from recipes.running.trainer import TrainerConfig
    from twinmerge.checkpoints import Checkpoint
    from twinmerge.folders import Expert

SILENT = ("enable_progress_bar", "logger", "default_root_dir")  # arguments of the Trainer that change no weight
# What came later is not part of a name at its default, so that experts keep their names.
READING = ("delimiter", "encoding", "drop_missing", "overlap", "language")
LATER = (
    *("lora_alpha", "lora_dropout", "lora_targets", "packing", "gradient_checkpointing", "qlora"),
    *("image_size", "augmentation", "statistics", "templates"),
)
WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model")


def cache_folder(base: str, source: TaskSource, training: Training, trainer: TrainerConfig, seed: int) -> Path:
    """Where an expert trained by a recipe lives: a cache entry named by everything that decides its weights.

    A local base or table counts by the content of its files and not by their place; versions of libraries do not count.
    """
    told = {k: v for k, v in asdict(source).items() if k != "templates"}  # of heads that are not trained
    task, where = {k: v for k, v in told.items() if k not in READING or v != getattr(TaskSource, k)}, base
    plain = asdict(type(training)())
    settings = {k: v for k, v in asdict(training).items() if k not in LATER or v != plain[k]}
    contents: list[Path] = []
    if (folder := Path(base).expanduser()).is_dir():
        contents += [f for f in sorted(folder.iterdir()) if f.suffix in WEIGHTS]
        where = ""
    if source.source in ("csv", "jsonl", "parquet", "folder", "idx"):
        files = [file for files in split_files(source).values() for file in files]
        contents += files
        task["path"] = ""
        if source.kind == "images" and source.source == "folder":  # where an image stands says its split and its class
            task["path"] = [file.relative_to(Path(source.path).expanduser()).as_posix() for file in files]
    arguments = {key: value for key, value in asdict(trainer).items() if key not in SILENT}
    decides = [where, seed, task, settings, arguments, *map(digest, contents)]
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return wheels.cache_root() / "experts" / f"{source.name}-{name}"


def base_checkpoint(name: str) -> Checkpoint | None:
    """The headers of a base that is on this machine as a folder; None for one to be fetched, or known to the Hub only.

    Raises:
        CheckpointError: When the folder is damaged.
    """
    from twinmerge.checkpoints import inspect_checkpoint
    from twinmerge.towers import tower_of

    return tower_of(inspect_checkpoint(Path(resolve_model(name)))) if is_here(name) else None


def check_base(name: str, ranks: Mapping[str, int | None]) -> Checkpoint | None:
    """The headers of a base, as `base_checkpoint`, with which the ranks of a recipe are compared.

    Args:
        name: The base.
        ranks: By field of the recipe, as for `check_rank`.

    Raises:
        RecipeError: When the folder is damaged, or a rank is too large for it.
    """
    from twinmerge.errors import CheckpointError

    try:
        base = base_checkpoint(name)
    except CheckpointError as error:
        raise RecipeError(f"base: {error}") from error
    if base is not None:
        for field, rank in ranks.items():
            check_rank(field, rank, [shape for _, shape in base.tensors.values()], RecipeError)
    return base


def check_rank(field: str, rank: int | None, shapes: Iterable[tuple[int, ...]], error: type[Exception]) -> None:
    """Refuse a rank that is larger than any matrix of the base has.

    Args:
        field: Of the recipe.
        rank: Its value; none and 0 ask for no rank.
        shapes: Of the base's tensors.
        error: What is raised.
    """
    flat = ((shape[0], prod(shape[1:])) for shape in shapes if len(shape) in (2, 4, 5))  # matrices and kernels
    widest = max(map(min, flat), default=0)
    if rank and rank > widest:
        raise error(
            f"{field}: expected 1 to {widest}, the smaller side of the base's largest matrix, got {rank}; give a "
            "smaller one"
            + (", or exclusive.density, a share of every matrix's own" if field == "exclusive.rank" else "")
        )


def expert_folder(given: str) -> Path | None:
    """The folder of a given expert; None for a Hub name, which is fetched when the run starts."""
    path = Path(given).expanduser()
    return None if not path.exists() and HUB_ID.fullmatch(given) and not given.startswith(".") else path


def expand(given: str, tasks: list[str]) -> dict[str, str]:
    """The experts of an earlier finetune run by task name: its run folder, or its folder `experts`.

    Raises:
        RecipeError: When it holds no folder for one of the tasks, or none at all where no task is asked for.
    """
    root = Path(given).expanduser()
    root = root / "experts" if (root / "experts").is_dir() else root
    found = {f.name: str(f) for f in sorted(root.glob("*")) if (f / "expert.json").is_file()} if root.is_dir() else {}
    if missing := [task for task in tasks if task not in found] or ([] if found else ["expert"]):
        raise RecipeError(f"experts: {root} holds no expert {missing[0]!r}; it holds {', '.join(found) or 'nothing'}")
    return {task: found[task] for task in tasks or found}


def inspect_expert(where: Path, base: Checkpoint | None, vocabulary: str = "strict") -> str:
    """Check an expert folder by its headers, against its base where that is known.

    Returns:
        One line that says what was compared.

    Raises:
        CheckpointError: For a file that is missing or damaged, or an expert that is none of this base.
    """
    from twinmerge.checkpoints import check_compatible, inspect_checkpoint, read_header
    from twinmerge.errors import CheckpointError

    found = inspect_checkpoint(where)
    line = f"{where}: {len(found.tensors)} tensors, {found.bytes / 1e6:.1f} MB"
    if base is not None:
        line = check_compatible(base, found, vocabulary)
    if (where / STAMP).is_file() and (fault := expert_damage(where)):
        raise CheckpointError(
            f"{where} {fault}; copy the folder again, or make the expert again; if the change is yours, delete {STAMP}."
        )
    if not is_own(where):
        return line
    try:
        card = json.loads((where / "expert.json").read_text(encoding="utf-8"))
        lacking = {"labels", "pooling", "layer_norm"} - card.keys()
        if not isinstance(card.get("labels", []), list):
            raise ValueError(f"labels is {card['labels']!r}, but it must be a list of names")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where / 'expert.json'} cannot be read ({error}); make the expert again.") from error
    head = read_header(where / "head.safetensors")
    if lacking or "out_proj.weight" not in head:
        raise CheckpointError(f"{where} does not describe its head; make the expert with 'recipe: finetune'.")
    outputs = (head["out_proj.weight"][1] or (0,))[0]
    if outputs != (len(card["labels"]) or 1):
        raise CheckpointError(f"{where} has a head of {outputs} outputs and {len(card['labels'])} labels.")
    return line


def stored_format_of(recipe: Recipe, base: Path | str) -> str:
    """The number format of a twin: that of the base's and all whole experts' files, where it is one and a half one."""
    from twinmerge.checkpoints import inspect_checkpoint
    from twinmerge.one_call import stored_format

    given = [expert_folder(one) for one in recipe.given().values()]
    if not isinstance(base, Path) or len(given) < max(1, len(recipe.tasks)) or not all(given):
        return "float32"
    return stored_format(inspect_checkpoint(base), [inspect_checkpoint(one) for one in given if one])


def expert_damage(where: Path) -> str:
    """What a folder of the finetune recipe is not as it was written, after the folder's name; empty when it is whole.

    Args:
        where: The folder, of a run or of the cache.
    """
    return damage(where, remember=where.is_relative_to(wheels.cache_root())) or added(where, WEIGHTS)


def is_own(where: Path) -> bool:
    """True for a folder of the finetune recipe whose head stands beside it, which headers alone describe."""
    return (where / "expert.json").is_file() and (where / "head.safetensors").is_file()


def read_expert(
    where: Path,
    base: Checkpoint | None,
    base_folder: Path | str,
    model: nn.Module,
    vocabulary: str = "strict",
    labels: list[str] | None = None,
) -> Expert:
    """Read an expert's weights and head.

    Args:
        where: Its folder.
        base: Headers of the base, where known.
        base_folder: What the base is loaded from.
        model: The base, for the names of its parameters; left as it is.
        vocabulary: `strict`, `pad` or `union`.
        labels: Names of its outputs as the recipe declares them, where the folder has none.

    Raises:
        CheckpointError: As `inspect_expert` and `read_folder`.
    """
    from twinmerge.folders import read_folder
    from twinmerge.one_call import named

    inspect_expert(where, base, vocabulary)
    return named(read_folder(where, base_folder, model, headers=base, vocabulary=vocabulary), labels)
