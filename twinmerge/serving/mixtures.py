"""Mixtures by name, each made into one LoRA adapter: `twin@32,20,12` is the weights in 64ths, one a task.

The weighted sum of T experts of rank r is one adapter of rank T r: the factors A stacked, each scaled by its expert's
weight, the factors B side by side. That is exact; averaging A and B apart is not. All mixtures have the same B, so that
the tokens of several can be multiplied together.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from twinmerge.errors import CheckpointError
from twinmerge.modeling_twin import read_expert

PARTS = 64
_NAME = re.compile(r"twin@((?:0|[1-9]\d?)(?:,(?:0|[1-9]\d?))*)")  # one spelling per mixture
_PIECE = 2**20  # bytes that are written at once: Linux takes four times as long for tens of megabytes in one piece
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for --max-lora-rank


def in_parts(weights: Sequence[float]) -> tuple[int, ...]:
    """The nearest mixture in whole 64ths, by largest remainders, so that they sum to 64.

    >>> in_parts([0.5, 0.3, 0.2])
    (32, 19, 13)
    >>> in_parts([1, 1, 1])
    (22, 21, 21)
    """
    total = sum(weights)
    exact = [weight * PARTS / total for weight in weights]
    whole = [int(share) for share in exact]
    order = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for i in order[: PARTS - sum(whole)]:
        whole[i] += 1
    return tuple(whole)


def name_of(parts: Sequence[int]) -> str:
    """A mixture's name.

    >>> name_of((32, 19, 13))
    'twin@32,19,13'
    """
    return "twin@" + ",".join(map(str, parts))


def parts_of(name: str, tasks: int) -> tuple[int, ...] | None:
    """The 64ths that a name stands for; None where it is no mixture of this many tasks.

    >>> parts_of("twin@32,19,13", 3), parts_of("twin@32,19", 2), parts_of("twin@064,0", 2)
    ((32, 19, 13), None, None)
    """
    found = _NAME.fullmatch(name)
    parts = tuple(int(part) for part in found[1].split(",")) if found else ()
    return parts if len(parts) == tasks and sum(parts) == PARTS else None


def tasks_of(folder: Path) -> list[str]:
    """The tasks of a twin folder, in order.

    Raises:
        CheckpointError: when it is no twin folder, or one without exclusive experts.
    """
    try:
        card = json.loads((folder / "twin.json").read_text(encoding="utf-8"))
        tasks, routed = [str(task) for task in card["tasks"]], bool(card["ranks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is not a twin folder ({error}); give one that twinmerge.save wrote."
        ) from error
    if not routed:
        raise CheckpointError(f"{folder} has no exclusive experts to mix; serve it as the plain model that it is.")
    return tasks


class Mixer:
    """Makes adapters of a twin folder's mixtures; the experts are read once.

    Args:
        folder: a twin folder whose experts hold matrices only, the default of causal models.

    Raises:
        CheckpointError: for another folder, or an expert that vLLM cannot serve as an adapter.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tasks = tasks_of(self.folder)
        experts: list[dict[str, tuple[Tensor, Tensor]]] = []
        self._embeddings: set[str] = set()
        for task in self.tasks:
            place = self.folder / "experts" / task
            config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
            whole = config.get("modules_to_save") or (
                ["biases"] if config.get("lora_bias") or config.get("bias") == "all" else []
            )
            if whole:
                raise CheckpointError(
                    f"expert '{task}' of {self.folder} changes {', '.join(whole)} beside its matrices, which no "
                    'adapter of vLLM can; merge again with dense="none", the default of causal models, or serve it '
                    "with --engine transformers."
                )
            experts.append(cast("dict[str, tuple[Tensor, Tensor]]", read_expert(place, {})))  # no module is whole
            with safe_open(place / "adapter_model.safetensors", "pt") as file:
                found = [
                    key.removeprefix("base_model.model.").partition(".lora_embedding_A") for key in iter(file.keys())
                ]
            self._embeddings |= {module for module, embedding, _ in found if embedding}
        self.stacks = self._stacked(experts)  # what all mixtures share

    @property
    def rank(self) -> int:
        """The largest rank of a mixture."""
        return max((len(down) for _, down, _ in self.stacks.values()), default=1)

    @property
    def nbytes(self) -> int:
        """Bytes of a mixture's tensors."""
        return sum(up.nbytes + down.nbytes for up, down, _ in self.stacks.values())

    @property
    def server_rank(self) -> int:
        """The smallest `--max-lora-rank` of vLLM that serves every mixture.

        Raises:
            CheckpointError: when vLLM has none.
        """
        for rank in _RANKS:
            if rank >= self.rank:
                return rank
        raise CheckpointError(
            f"a mixture of {self.folder} has rank {self.rank} and vLLM serves up to {_RANKS[-1]}; "
            "merge again at a lower rank."
        )

    def adapter(self, parts: Sequence[int]) -> dict[str, Tensor]:
        """A mixture's tensors by PEFT's names.

        Args:
            parts: 64ths, one a task.
        """
        tensors: dict[str, Tensor] = {}
        for name, (up, down, _) in self.stacks.items():
            kind, b_of, a_of = self._kind(name)
            tensors |= {a_of: torch.empty(kind(down).shape, dtype=down.dtype), b_of: kind(up).contiguous()}
        self.scale(parts, tensors)
        return tensors

    def scale(self, parts: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        """Write a mixture's factors A, which are all that it differs in from another, in their places in an adapter.

        Args:
            parts: 64ths, one a task.
            tensors: by PEFT's names, of which those of A are written.
        """
        weights = torch.tensor(parts, dtype=torch.float32) / PARTS
        for name, (_, down, owners) in self.stacks.items():
            kind, _, a_of = self._kind(name)
            torch.mul(weights[owners], down, out=kind(tensors[a_of]))

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The adapter_config.json of every mixture."""
        ranks = {name.removesuffix(".weight"): len(down) for name, (_, down, _) in self.stacks.items()}
        uneven = {f"^{re.escape(module)}": r for module, r in ranks.items() if r != self.rank}
        return {
            "peft_type": "LORA",
            "base_model_name_or_path": str(self.folder),
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": self.rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted(ranks),
            "modules_to_save": None,
            "rank_pattern": uneven,
            "alpha_pattern": uneven,
        }

    @staticmethod
    def _stacked(experts: Sequence[dict[str, tuple[Tensor, Tensor]]]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Each matrix's factors B and A of all experts side by side, and the task of every rank, shape (rank, 1)."""
        stacks = {}
        for name in sorted({name for expert in experts for name in expert}):
            pairs = [(task, *expert[name]) for task, expert in enumerate(experts) if name in expert]
            owners = torch.cat([torch.full((len(down), 1), task) for task, _, down in pairs])
            stacks[name] = (torch.cat([up for _, up, _ in pairs], 1), torch.cat([d for _, _, d in pairs]), owners)
        return stacks

    def _kind(self, name: str) -> tuple[Callable[[Tensor], Tensor], str, str]:
        """How PEFT lays a matrix's factors, embeddings' transposed, and its names of B and of A."""
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if name.removesuffix(".weight") in self._embeddings:  # PEFT writes (rank, words) there as A
            return Tensor.t, f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
        return (lambda factor: factor), f"{module}.lora_B.weight", f"{module}.lora_A.weight"


class MixtureCache:
    """Mixtures as adapter folders under their names, written whole or not at all.

    A server reads a folder again whenever it has evicted the adapter, so none is deleted while the server knows its
    name: whoever unloads a name removes its folder then (`forget`), and a full cache takes no further mixture.

    Args:
        twin: a twin folder.
        folder: of the cache, made on first use.
        limit: mixtures held at most.
    """

    def __init__(self, twin: str | Path, folder: str | Path, limit: int = 256) -> None:
        self.mixer, self.folder, self.limit = Mixer(twin), Path(folder), limit
        self._file: bytearray | None = None  # of the mixture that was written last
        self._places: dict[str, Tensor] = {}  # its tensors in there
        self._lock = threading.Lock()

    def path(self, name: str) -> Path | None:
        """The folder of a mixture; None for a name that is no mixture of this twin.

        Raises:
            CheckpointError: when the cache is full.
        """
        parts = parts_of(name, len(self.mixer.tasks))
        if parts is None:
            return None
        target = self.folder / name
        if target.is_dir():
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        held = sum(1 for entry in self.folder.iterdir() if entry.name.startswith("twin@"))
        if held >= self.limit:
            raise CheckpointError(
                f"{self.folder} holds {held} mixtures, its limit; unload names that are no longer needed, or raise it."
            )
        draft = Path(tempfile.mkdtemp(prefix=".", dir=self.folder))
        self._write(parts, draft / "adapter_model.safetensors")
        (draft / "adapter_config.json").write_text(json.dumps(self.mixer.config), encoding="utf-8")
        try:
            os.rename(draft, target)
        except OSError:  # another process was first, and a mixture has one content
            shutil.rmtree(draft)
        return target

    def _write(self, parts: Sequence[int], file: Path) -> None:
        """Write a mixture's tensors: the whole file once, and for the next mixtures its factors A in their places."""
        with self._lock:
            if self._file is None:
                tensors = self.mixer.adapter(parts)
                self._file = bytearray(save(tensors, metadata={"format": "pt"}))
                self._places = self._laid(self._file, tensors)
            else:
                self.mixer.scale(parts, self._places)
            with file.open("wb") as out:
                for first in range(0, len(self._file), _PIECE):
                    out.write(memoryview(self._file)[first : first + _PIECE])

    @staticmethod
    def _laid(file: bytearray, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they lie in a safetensors file: the length of its header, the header, and the tensors."""
        start = 8 + int.from_bytes(file[:8], "little")
        header = json.loads(file[8:start])
        firsts = {name: start + header[name]["data_offsets"][0] for name in tensors}
        return {
            name: torch.frombuffer(file, dtype=like.dtype, count=like.numel(), offset=firsts[name]).view(like.shape)
            for name, like in tensors.items()
        }

    @staticmethod
    def forget(folder: Path, name: str) -> None:
        """Remove a mixture's folder, once the server has unloaded its name."""
        shutil.rmtree(folder / name, ignore_errors=True)
