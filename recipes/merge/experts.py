"""The experts of a merge: where a trained one is cached, and one that is there, checked and read."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.data import wheels
from recipes.data.models import SHIPPED, resolve_model
from recipes.data.tables import split_files

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipes.data.task_source import TaskSource
    from recipes.merge.schema import Training
    from recipes.running.trainer import TrainerConfig
    from twinmerge.checkpoints import Checkpoint
    from twinmerge.modeling_twin import Head

SILENT = ("enable_progress_bar", "logger", "default_root_dir")  # arguments of the Trainer that change no weight
WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model")


@dataclass(frozen=True)
class Expert:
    """One expert, read and checked.

    Attributes:
        state: Parameter name of the base -> the expert's value.
        terms: For a LoRA adapter, parameter name -> (scale, B, A); empty for full weights.
        head: The task's head.
        labels: What the head's outputs stand for; empty for regression.
        digest: sha256 of the files with its weights.
        bytes: Size of what it adds: the whole model, or the adapter alone.
    """

    state: Mapping[str, Tensor]
    terms: Mapping[str, tuple[float, Tensor, Tensor]]
    head: Head
    labels: list[str]
    digest: str
    bytes: int


def cache_folder(base: str, source: TaskSource, training: Training, trainer: TrainerConfig, seed: int) -> Path:
    """Where an expert trained by a recipe lives: a cache entry named by everything that decides its weights.

    A local base or table counts by the content of its files and not by their place; versions of libraries do not count.
    """
    task, where = asdict(source), base
    contents = []
    if (folder := Path(base).expanduser()).is_dir():
        contents += [f for f in sorted(folder.iterdir()) if f.suffix in WEIGHTS]
        where = ""
    if source.source in ("csv", "jsonl", "parquet", "folder"):
        contents += [file for files in split_files(source).values() for file in files]
        task["path"] = ""
    arguments = {key: value for key, value in asdict(trainer).items() if key not in SILENT}
    decides = [where, seed, task, asdict(training), arguments, *map(_digest, contents)]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return wheels.cache_root() / "experts" / f"{source.name}-{digest}"


def base_checkpoint(name: str) -> Checkpoint | None:
    """The headers of a base that is on this machine as a folder; None for one to be fetched, or known to the Hub only.

    Raises:
        CheckpointError: When the folder is damaged.
    """
    from twinmerge.checkpoints import inspect_checkpoint

    if name.startswith("shipped:") and not wheels.cached(SHIPPED[name.removeprefix("shipped:")]):
        return None
    where = resolve_model(name)
    return inspect_checkpoint(where) if isinstance(where, Path) else None


def inspect_expert(where: Path, base: Checkpoint | None) -> tuple[Checkpoint, dict[str, Any], str]:
    """Check an expert folder by its headers, against its base where that is known.

    Returns:
        Its headers, the content of its expert.json, and one line that says what was compared.

    Raises:
        CheckpointError: For a file that is missing or damaged, or an expert that is none of this base.
    """
    from twinmerge.checkpoints import check_compatible, inspect_checkpoint, read_header
    from twinmerge.errors import CheckpointError

    found = inspect_checkpoint(where)
    line = f"{where}: {len(found.tensors)} tensors, {found.bytes / 1e6:.1f} MB"
    if base is not None:
        line = check_compatible(base, found)
    for name in ("expert.json", "head.safetensors"):
        if not (where / name).is_file():
            raise CheckpointError(f"{where} has no {name}; make the expert with 'recipe: finetune', model encoder.")
    try:
        card = json.loads((where / "expert.json").read_text(encoding="utf-8"))
        lacking = {"labels", "pooling", "layer_norm"} - card.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where / 'expert.json'} cannot be read ({error}); make the expert again.") from error
    head = read_header(where / "head.safetensors")
    if lacking or "out_proj.weight" not in head:
        raise CheckpointError(f"{where} does not describe its head; make the expert with 'recipe: finetune'.")
    outputs = head["out_proj.weight"][1][0]
    if outputs != (len(card["labels"]) or 1):
        raise CheckpointError(f"{where} has a head of {outputs} outputs and {len(card['labels'])} labels.")
    return found, card, line


def read_expert(where: Path, base: Checkpoint | None, model: nn.Module) -> Expert:
    """Read an expert's weights and head.

    Args:
        where: Its folder.
        base: Headers of the base, where known.
        model: The base, for the names of its parameters; left as it is.

    Raises:
        CheckpointError: As `inspect_expert`, and for NaN or infinite weights.
    """
    from safetensors.torch import load_file

    from twinmerge.checkpoints import read_lora, read_state
    from twinmerge.errors import CheckpointError
    from twinmerge.modeling_twin import Head

    found, card, _ = inspect_expert(where, base)
    pretrained = {name: value.detach() for name, value in model.named_parameters()}
    terms = read_lora(found, pretrained) if found.kind == "lora" else {}
    state = _unloaded(model, where) if terms else read_state(found, pretrained)[0]
    if odd := [name for name, value in state.items() if value.shape != pretrained[name].shape]:
        shapes = f"{list(state[odd[0]].shape)} and the base {list(pretrained[odd[0]].shape)}"
        raise CheckpointError(f"{where} has '{odd[0]}' of shape {shapes}; experts must be fine-tunes of the base.")
    tensors = load_file(where / "head.safetensors")
    if not all(value.isfinite().all() for value in tensors.values()):
        raise CheckpointError(f"{where / 'head.safetensors'} holds NaN or infinite values; train the expert again.")
    outputs, width = tensors["out_proj.weight"].shape
    head = Head(width, outputs, card["pooling"], card["layer_norm"], "dense.weight" in tensors)
    head.load_state_dict(tensors)
    digest = hashlib.sha256()
    for file in sorted(set(found.files.values())):
        digest.update(file.read_bytes())
    return Expert(state, terms, head.eval(), card["labels"], digest.hexdigest(), found.bytes)


def _unloaded(model: nn.Module, where: Path) -> dict[str, Tensor]:
    """The base's parameters with an adapter multiplied in, by PEFT, which knows every layer kind."""
    import copy

    from peft import PeftModel

    from twinmerge.errors import CheckpointError

    try:
        merged: Any = PeftModel.from_pretrained(copy.deepcopy(model), str(where))
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{where} is no adapter of this base ({reason}); train it again.") from error
    return {name: value.detach() for name, value in merged.merge_and_unload().named_parameters()}


def _digest(file: Path) -> str:
    status = file.stat()
    return _digest_once(file.absolute(), status.st_size, status.st_mtime_ns)


@functools.cache
def _digest_once(file: Path, size: int, changed: int) -> str:
    # A base counts for every task, so a file that has not changed is read once.
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
