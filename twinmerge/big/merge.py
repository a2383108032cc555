"""Merge checkpoints in files with any static method, in memory that the model's size does not change."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from gapbridge.arguments import check_arguments
from twinmerge.big.devices import check_device
from twinmerge.big.experts import Expert, LoraExpert, expert_of, floats_of
from twinmerge.big.growing import Growth, Vocabulary, forget, growth_of
from twinmerge.big.plan import Plan, plan_of
from twinmerge.big.reading import FLOATS, Files, Place, places_of
from twinmerge.big.statistics import check_statistics, read_statistics
from twinmerge.big.streams import FileModel
from twinmerge.big.writing import Entry, Journal, Writer, resumable_folder, shards_of, size_of
from twinmerge.errors import CheckpointError
from twinmerge.headers import Checkpoint, inspect_checkpoint
from twinmerge.methods import find
from twinmerge.trial import tried

Dtype = Literal["stored", "float32", "float16", "bfloat16"]
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BESIDE = re.compile(
    r"(config|generation_config|tokenizer.*|vocab.*|merges|special_tokens_map|added_tokens|spiece|sentencepiece.*|"
    r"chat_template|preprocessor_config|processor_config)\.(json|txt|model|jinja)"
)
_UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass
class Job:
    """A base and its experts, read by their headers.

    Attributes:
        base: The base.
        experts: By name.
        places: Of the base's tensors, in the order in which they lie in its files.
        merged: Names of those that are merged; the others are copied from the base.
        out: What is written: number format and shape by name.
        growth: How the vocabularies become one, where they differ.
    """

    base: Checkpoint
    experts: Mapping[str, Expert]
    places: Mapping[str, Place]
    merged: Sequence[str]
    out: Mapping[str, Entry]
    growth: Growth | None = None

    def grow(self, folder: Path, files: Files, journal: Journal) -> None:
        """Bring all vocabularies to the same rows, in files of the folder that is being made."""
        if self.growth is not None:
            self.places = self.growth.write(folder, self.places, self.experts, files, journal)

    @property
    def lora(self) -> dict[str, int]:
        """Ranks of adapters together, by the tensor that they are added to."""
        return {n: rank for n in self.merged if (rank := sum(e.rank_of(n) or 0 for e in self.experts.values()))}

    @property
    def read(self) -> int:
        """Bytes of all models."""
        return sum(place.bytes for place in self.places.values()) + sum(e.bytes for e in self.experts.values())

    @property
    def written(self) -> int:
        """Bytes of the merged model."""
        return sum(map(size_of, self.out.values()))


def merge_files(
    base: str | Path,
    experts: Mapping[str, str | Path],
    folder: str | Path,
    *,
    method: str = "task_arithmetic",
    options: Mapping[str, object] | None = None,
    statistics: Mapping[str, str | Path] | None = None,
    dtype: Dtype = "stored",
    vocabulary: Vocabulary = "strict",
    device: str = "cpu",
    shard: str = "5GB",
    memory: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Merge checkpoints in files into one, without ever holding a model.

    Base and experts are read block by block and the merged model is written into files whose headers come first, so
    that the memory is at most 2.5 times the largest tensor and 400 MB beside what importing takes; a method that would
    take more of these tensors is refused unless `memory` allows it. No model is built; LoRA adapters are read by their
    factors. A merge that was killed goes on where it was when it is called again, and
    ends in the same bytes.

    Args:
        base: The experts' common base: a folder, or a Hub name.
        experts: By name, folders or Hub names: whole checkpoints in safetensors, or plain LoRA adapters of PEFT.
        folder: The model to make: weights, configuration and tokenizer of an ordinary Hugging Face folder. Written
            beside its place and renamed when whole.
        method: A static merge that `twinmerge.methods.methods` lists.
        options: Of the method. What it takes one of for each expert, such as `weights`, may be by the experts' names; a
            number may be a list over the layers, or differ by parts of the tensors' names
            (`twinmerge.functional.weights`).
        statistics: Of the methods `fisher` and `regmean`, a safetensors file by expert with what
            `twinmerge.gathering.fisher_information` or `input_grams` finds, by the tensors' names.
        dtype: Number format of the merged weights; the work itself is done in float32. `stored` is the base's.
        vocabulary: `strict` takes one vocabulary; `pad` takes embeddings with other rows beside one tokenizer; `union`
            takes in the tokens that experts added, see `twinmerge.vocabulary`. Embeddings and output layers that get
            other rows are written in float32 beside the folder meanwhile.
        device: Where the tensor at hand is merged, such as `cuda`.
        shard: Largest file, such as `5GB`.
        memory: What the merge may take beside what importing takes, such as `8GB`; by default 2.5 times the largest
            tensor and 400 MB.
        overwrite: Replace an existing folder.

    Returns:
        The folder.

    Raises:
        CheckpointError: For an expert that is no fine-tune of the base, weights that are not finite, pickles, and more
            memory than allowed.
        ValueError: For an unknown method or option.
        FileExistsError: When the folder exists and is not to be replaced.
    """
    check_arguments(merge_files, locals())
    check_device(device)
    target = Path(folder).expanduser()
    job = job_of(base, experts, dtype, vocabulary)
    run = bound_method(job, method, options)
    check_statistics(method, statistics, list(experts))
    refuse_above_limit(planned(job, method, memory))
    task = [fingerprint(base, experts), method, options, fingerprint_of(statistics), dtype, vocabulary, shard]
    read = folders_of(base, experts)
    with (
        resumable_folder(target, task, read=read, overwrite=overwrite) as (out, journal),
        Files(release=_fills(job)) as files,
    ):
        known = partial(run, **read_statistics(method, statistics, list(experts), files))
        write_merged(job, out, files, journal, known, shard=shard, device=device)
        copy_beside(job, out, dtype)
        forget(out)
    return target


def write_merged(
    job: Job, out: Path, files: Files, journal: Journal, run: Callable[..., object], *, shard: str, device: str
) -> Writer:
    """Write the merged weights of a job; what the journal has is passed over."""
    job.grow(out, files, journal)
    writer = Writer(out, shards_of(job.out, size_in_bytes(shard)))
    model = FileModel(job.places, job.merged, job.experts, files, writer, journal, device)
    run(model, model.states)
    writer.close()
    return writer


def plan_files(
    base: str | Path,
    experts: Mapping[str, str | Path],
    *,
    method: str = "task_arithmetic",
    options: Mapping[str, object] | None = None,
    statistics: Mapping[str, str | Path] | None = None,
    dtype: Dtype = "stored",
    vocabulary: Vocabulary = "strict",
    shard: str = "5GB",
    memory: str | None = None,
) -> Plan:
    """What `merge_files` would take, from the headers alone; it refuses what that would refuse, but for the memory.

    Args:
        base: As for `merge_files`.
        experts: As for `merge_files`.
        method: As for `merge_files`.
        options: As for `merge_files`.
        statistics: As for `merge_files`.
        dtype: As for `merge_files`.
        vocabulary: As for `merge_files`.
        shard: As for `merge_files`.
        memory: As for `merge_files`; `refusal()` of the plan says whether it is enough.

    Returns:
        Bytes, memory and time.

    Raises:
        CheckpointError: For an expert that is no fine-tune of the base, and pickles.
        ValueError: For an unknown method or option.
    """
    check_arguments(plan_files, locals())
    job = job_of(base, experts, dtype, vocabulary)
    bound_method(job, method, options)
    check_statistics(method, statistics, list(experts))
    size_in_bytes(shard)
    return planned(job, method, memory)


def planned(job: Job, method: str, memory: str | None = None, *, rank: int = 0, spectra: bool = False) -> Plan:
    """The plan of a job, see `plan_of`.

    Raises:
        ValueError: When the memory is no size.
    """
    return plan_of(
        job.out,
        method,
        len(job.experts),
        job.read,
        job.written,
        rank=rank,
        spectra=spectra,
        lora=job.lora,
        all_lora=all(isinstance(expert, LoraExpert) for expert in job.experts.values()),
        memory=None if memory is None else size_in_bytes(memory),
    )


def refuse_above_limit(plan: Plan) -> None:
    """Refuse a merge that would take more memory than it may.

    Raises:
        CheckpointError: In one sentence.
    """
    if said := plan.refusal():
        raise CheckpointError(said)


def job_of(
    base: str | Path, experts: Mapping[str, str | Path], dtype: str = "stored", vocabulary: Vocabulary = "strict"
) -> Job:
    """Read the headers of a base and its experts, and compare them.

    Raises:
        CheckpointError: For an expert that is no fine-tune of the base, or no expert at all.
    """
    from twinmerge.local import local_folder

    if not experts:
        raise CheckpointError("there is no expert to merge; give at least one folder.")
    found = inspect_checkpoint(local_folder(base))
    if found.kind == "lora":
        raise CheckpointError(f"{found.folder} is an adapter; give the whole model that it was trained on as the base.")
    places = dict(sorted(places_of(found).items(), key=lambda item: (item[1].file.name, item[1].offset)))
    folders = {task: local_folder(where) for task, where in experts.items()}
    read = {task: expert_of(inspect_checkpoint(where), found, vocabulary) for task, where in folders.items()}
    merged = floats_of(found)
    out = {n: (STORED.get(dtype, p.dtype) if p.dtype in FLOATS else p.dtype, p.shape) for n, p in places.items()}
    growth = growth_of(found, places, read, folders, vocabulary)
    if growth is not None:
        found = replace(found, config={**found.config, "vocab_size": growth.rows})
        out = growth.entries(out)
    return Job(found, read, places, merged, out, growth)


def bound_method(job: Job, method: str, options: Mapping[str, object] | None) -> Callable[..., object]:
    """A method with its options, tried on small tensors.

    Raises:
        ValueError: For an unknown method, and for options or a number of experts that it refuses.
    """
    shapes = {name: job.places[name].shape for name in job.merged}
    return partial(find(method), **tried(method, options or {}, list(job.experts), shapes))


def size_in_bytes(text: str) -> int:
    """Bytes of a size such as `5GB`.

    Raises:
        ValueError: For anything else.

    >>> size_in_bytes("1.5MB")
    1500000
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?B)", text.strip().upper())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"the size is {text!r}; give a number above 0 with B, KB, MB or GB, such as 5GB.")
    return int(float(found[1]) * _UNITS[found[2]])


def folders_of(base: str | Path, experts: Mapping[str, str | Path]) -> list[Path]:
    """The folders that a merge reads: the base's, and the experts' in order."""
    from twinmerge.local import local_folder

    return [local_folder(where) for where in (base, *experts.values())]


def fingerprint(base: str | Path, experts: Mapping[str, str | Path]) -> object:
    """Which files are merged: names, sizes and times of all that the folders hold."""
    return [
        [task, sorted([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in folder.glob("*.*") if f.is_file())]
        for task, folder in zip(("", *experts), folders_of(base, experts), strict=True)
    ]


def fingerprint_of(statistics: Mapping[str, str | Path] | None) -> object:
    """Which files of statistics are read: sizes and times."""
    found = [(task, Path(file).expanduser()) for task, file in (statistics or {}).items()]
    return [[task, str(file), file.stat().st_size, file.stat().st_mtime_ns] for task, file in found]


def copy_beside(job: Job, out: Path, dtype: str) -> None:
    """Copy configuration and tokenizer of the base; what is other of the merged model is written into them."""
    for file in sorted(job.base.folder.iterdir()):
        if _BESIDE.fullmatch(file.name) and file.is_file():  # a link of a cache may lead nowhere
            shutil.copyfile(file, out / file.name)
    changed: dict[str, object] = {} if dtype == "stored" else {"dtype": dtype}
    if job.growth is not None:
        changed["vocab_size"] = job.growth.rows
        if job.growth.tokenizer is not None:
            job.growth.tokenizer.save_pretrained(out)
    if changed:
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        if "dtype" in changed:
            config.pop("torch_dtype", None)
        (out / "config.json").write_text(json.dumps({**config, **changed}, indent=2) + "\n", encoding="utf-8")


def _fills(job: Job) -> bool:
    """Whether the checkpoints would take the larger part of the memory that is free for the page cache."""
    info = Path("/proc/meminfo")
    free = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.exists() else None
    return free is not None and job.read > 512 * int(free[1])
