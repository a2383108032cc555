"""LoRA factors of the differences between checkpoints in files, each with its certificate, one matrix at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypedDict

import torch
from torch import Tensor

from gapbridge.arguments import Count, PositiveShare, Seed, check_arguments
from twinmerge.big.devices import check_device
from twinmerge.big.experts import Expert
from twinmerge.big.merge import STORED, Job, fingerprint, folders_of, job_of
from twinmerge.big.reading import Files, Place
from twinmerge.big.streams import FileTensors
from twinmerge.big.writing import Entry, Journal, Writer, resumable_folder, shards_of
from twinmerge.errors import CheckpointError
from twinmerge.functional.factorize import spectrum, truncated_svd
from twinmerge.functional.ranks import choose_ranks

Stored = Literal["float32", "float16", "bfloat16"]
_EMBEDDING = re.compile(r"(.*\.)?(\w*embed\w*|wte|wpe|shared)$")  # modules that look rows up
_CONV1D = re.compile(r".*\.(c_attn|c_proj|c_fc|q_attn)\.weight")  # GPT-2 stores these weights as (in, out)
_UNLIMITED = 2**62


@dataclass(frozen=True)
class Ranks:
    """How much of every difference is kept; exactly one of the four.

    Attributes:
        rank: Singular directions of every matrix.
        density: Share of min(rows, columns).
        energy: Share of every difference's squared norm.
        budget: Bytes of all factors together, spent where they keep most.
    """

    rank: int | None = None
    density: float | None = None
    energy: float | None = None
    budget: int | None = None


class Certificate(TypedDict):
    """What factors keep of the differences.

    Attributes:
        ranks: Of every matrix; 0 for one that is left out.
        residuals: Relative Frobenius residual of every matrix.
        residual: The same of all matrices together.
        left_out: Share of the squared difference that is in no matrix.
    """

    ranks: dict[str, int]
    residuals: dict[str, float]
    residual: float
    left_out: float


def extract_lora(
    base: str | Path,
    tuned: str | Path,
    folder: str | Path,
    *,
    rank: Count | None = None,
    density: PositiveShare | None = None,
    energy: PositiveShare | None = None,
    budget: Count | None = None,
    tolerance: float = 0.01,
    seed: Seed = 0,
    dtype: Stored = "float32",
    device: str = "cpu",
    overwrite: bool = False,
) -> Certificate:
    """Write a full fine-tune as a LoRA adapter of PEFT, with the certificate of every matrix.

    The difference of one matrix is held at a time, and factorised by `truncated_svd`. What has no LoRA form, such as
    norms and biases, is left out, and its share of the squared difference is told.

    Args:
        base: The model that was fine-tuned: a folder or a Hub name.
        tuned: The fine-tune, likewise.
        folder: The adapter to make.
        rank: Singular directions of every matrix.
        density: Share of min(rows, columns) of every matrix.
        energy: Share of every difference's squared norm; needs another pass.
        budget: Bytes of all factors together, spent where they keep most; needs another pass.
        tolerance: Accepted excess of a residual over the best one of its rank, see `truncated_svd`.
        seed: Of its sketches.
        dtype: Number format of the factors.
        device: Where a matrix is factorised, such as `cuda`.
        overwrite: Replace an existing folder.

    Returns:
        The content of `certificate.json`: rank and relative residual by matrix; `residual`, of all matrices together;
        `left_out`, the share of the squared difference that is in no matrix.

    Raises:
        ValueError: When not exactly one of rank, density, energy and budget is given.
        CheckpointError: For a folder that is no fine-tune of the base, or differs from it nowhere.
        FileExistsError: When the folder exists and is not to be replaced.
    """
    check_arguments(extract_lora, locals())
    check_device(device)
    policy = Ranks(rank, density, energy, budget)
    job = job_of(base, {"tuned": tuned})
    check_ranks(job, policy)
    task = [fingerprint(base, {"tuned": tuned}), asdict(policy), tolerance, seed, dtype]
    target, read = Path(folder).expanduser(), folders_of(base, {"tuned": tuned})
    with resumable_folder(target, task, read=read, overwrite=overwrite) as (out, journal), Files() as files:
        source = Differences(job.base.config, job.places, job.merged, job.experts["tuned"], files, device)
        told = source.write(
            out, journal, policy, tolerance=tolerance, seed=seed, dtype=dtype, base=str(job.base.folder)
        )
        (out / "certificate.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return told


def check_ranks(job: Job, ranks: Ranks) -> None:
    """Refuse a rank that no matrix has, before anything is read.

    Raises:
        ValueError: When it is none, or not exactly one of rank, density, energy and budget is given.
    """
    shapes = {n: (shape[0], shape[1]) for n, (_, shape) in job.out.items() if n in job.merged and len(shape) == 2}
    spectra = {name: torch.ones(1) for name in shapes}  # what energy and budget come to is not known yet
    choose_ranks(shapes, **asdict(ranks), spectra=spectra, bytes_per_value=1)


class Differences:
    """An expert's differences to a model in files.

    Args:
        config: Of the model.
        places: Of its tensors.
        merged: Names of its floating point tensors.
        expert: The expert.
        files: What reads.
        device: Where a matrix is worked on.
    """

    def __init__(
        self,
        config: Mapping[str, object],
        places: Mapping[str, Place],
        merged: Sequence[str],
        expert: Expert,
        files: Files,
        device: str = "cpu",
    ) -> None:
        self.config, self.places, self.expert, self.files, self.device = config, places, expert, files, device
        self.names = [name for name in places if name in set(merged)]

    def write(
        self, out: Path, journal: Journal, ranks: Ranks, *, tolerance: float, seed: int, dtype: str, base: str
    ) -> Certificate:
        """Write the adapter into a folder; what the journal has is passed over.

        Raises:
            CheckpointError: When nothing differs.
        """
        label = out.name
        squares = self._squares(journal, label)
        matrices = [name for name, square in squares.items() if square and self._is_matrix(name)]
        if not matrices:
            raise CheckpointError("the fine-tune differs from the base in no matrix; is it another folder?")
        chosen = self._ranks(matrices, ranks, STORED[dtype])
        writer = Writer(out, shards_of(self._entries(chosen, STORED[dtype]), _UNLIMITED, "adapter_model"))
        residuals: dict[str, float] = {}
        for name, rank in chosen.items():
            note = next((line for line in journal.done if line.startswith(f"factors {label} {name} ")), None)
            if note is None:
                low = truncated_svd(self._matrix(name), rank, tolerance=tolerance, seed=seed)
                for key, factor in self._named(name, low.up, low.down):
                    writer.write(key, 0, factor)
                note = f"factors {label} {name} {low.residual!r}"
                journal.note(note)
            residuals[name] = float(note.rpartition(" ")[2])
        writer.close()
        (out / "adapter_config.json").write_text(json.dumps(self._settings(chosen, base), indent=2) + "\n", "utf-8")
        total, kept = sum(squares.values()), sum(squares[name] for name in matrices)
        rest = sum(residuals.get(name, 1.0) ** 2 * squares[name] for name in matrices)
        return {
            "ranks": {name: chosen.get(name, 0) for name in matrices},
            "residuals": {name: residuals.get(name, 1.0) for name in matrices},
            "residual": math.sqrt(rest / kept),
            "left_out": 1 - kept / total,
        }

    def _squares(self, journal: Journal, label: str) -> dict[str, float]:
        """Squared norm of every difference."""
        start = f"square {label} "
        found = {line.split(" ")[2]: float(line.split(" ")[3]) for line in journal.done if line.startswith(start)}
        for name in self.names:
            if name not in found:
                found[name] = math.fsum(
                    float((block.experts[0] - block.base).double().square().sum()) for block in self._tensors(name)
                )
                journal.note(f"{start}{name} {found[name]!r}")
        return {name: found[name] for name in self.names}

    def _tensors(self, name: str) -> FileTensors:
        return FileTensors(name, self.places[name], 0.0, {"": self.expert}, self.files, self.device)

    def _matrix(self, name: str) -> Tensor:
        """The difference as the layer multiplies it, out x in; an embedding as it is stored."""
        tensors = self._tensors(name)
        whole = torch.empty(self.places[name].shape[0], tensors.columns, dtype=tensors.dtype, device=self.device)
        for block in tensors:
            first = block.start // tensors.columns
            rows = whole[first : first + block.base.shape[0]]
            torch.sub(block.experts[0].reshape(rows.shape), block.base.reshape(rows.shape), out=rows)
        return whole.t() if self._turned(name) else whole

    def _turned(self, name: str) -> bool:
        return self.config.get("model_type") == "gpt2" and _CONV1D.fullmatch(name) is not None

    def _is_matrix(self, name: str) -> bool:
        return len(self.places[name].shape) == 2 and name.endswith(".weight")

    def _shape(self, name: str) -> tuple[int, int]:
        rows, columns = self.places[name].shape
        return (columns, rows) if self._turned(name) else (rows, columns)

    def _ranks(self, names: Sequence[str], ranks: Ranks, kind: str) -> dict[str, int]:
        shapes = {name: self._shape(name) for name in names}
        asked = ranks.energy is not None or ranks.budget is not None
        spectra = {name: spectrum(self._matrix(name)) for name in names} if asked else None
        found = choose_ranks(shapes, **asdict(ranks), spectra=spectra, bytes_per_value=4 if kind == "F32" else 2)
        return {name: rank for name, rank in found.items() if rank}

    def _modules(self, name: str) -> Iterator[tuple[str, bool]]:
        """Modules whose weight it is, and whether they look rows up: an embedding that the output is tied to is two."""
        module = name.removesuffix(".weight")
        looks_up = _EMBEDDING.fullmatch(module) is not None
        yield module, looks_up
        tied = bool(self.config.get("tie_word_embeddings")) and "lm_head.weight" not in self.places
        if looks_up and tied and self.places[name].shape[0] == self.config.get("vocab_size"):
            yield "lm_head", False

    def _named(self, name: str, up: Tensor, down: Tensor) -> Iterator[tuple[str, Tensor]]:
        for module, looks_up in self._modules(name):
            start = f"base_model.model.{module}.lora_"
            if looks_up:
                yield from ((f"{start}embedding_A", up.t()), (f"{start}embedding_B", down.t()))
            else:
                yield from ((f"{start}A.weight", down), (f"{start}B.weight", up))

    def _entries(self, ranks: Mapping[str, int], kind: str) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for name, rank in ranks.items():
            m, n = self._shape(name)
            for key, factor in self._named(
                name, torch.empty(m, rank, device="meta"), torch.empty(rank, n, device="meta")
            ):
                found[key] = (kind, tuple(factor.shape))
        return found

    def _settings(self, ranks: Mapping[str, int], base: str) -> dict[str, object]:
        of_module = {module: rank for name, rank in ranks.items() for module, _ in self._modules(name)}
        most = max(of_module.values())
        pattern = {f"^{re.escape(module)}": rank for module, rank in of_module.items() if rank != most}
        return {
            "peft_type": "LORA",
            "base_model_name_or_path": base,
            "task_type": None,
            "inference_mode": True,
            "r": most,
            "lora_alpha": most,
            "lora_dropout": 0.0,
            "bias": "none",
            "lora_bias": False,
            "fan_in_fan_out": any(self._turned(name) for name in ranks),
            "target_modules": sorted(of_module),
            "modules_to_save": None,
            "rank_pattern": pattern,
            "alpha_pattern": pattern,
        }

    def modules(self, ranks: Mapping[str, int]) -> dict[str, int]:
        """Rank by module, as a twin's card has it."""
        return {module: rank for name, rank in ranks.items() for module, _ in self._modules(name)}


def differences_of(job: Job, task: str, places: Mapping[str, Place], files: Files, device: str) -> Differences:
    """One expert of a merge against the merged model."""
    return Differences(job.base.config, places, job.merged, job.experts[task], files, device)
