"""Mixtures by name, each made into one LoRA adapter: `twin@32,20,12` is the weights in 64ths, one a task.

The weighted sum of T experts of rank r is one adapter of rank T r: the factors A stacked, each scaled by its expert's
weight, the factors B side by side. That is exact; averaging A and B apart is not. All mixtures have the same B, so that
the tokens of several can be multiplied together.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from twinmerge.errors import CheckpointError
from twinmerge.modeling_twin import read_expert

PARTS = 64
_NAME = re.compile(r"twin@((?:0|[1-9]\d?)(?:,(?:0|[1-9]\d?))*)")  # one spelling per mixture
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

    def adapter(self, parts: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A mixture's tensors by PEFT's names, and its adapter_config.json.

        Args:
            parts: 64ths, one a task.
        """
        weights = torch.tensor(parts, dtype=torch.float32) / PARTS
        tensors: dict[str, Tensor] = {}
        for name, (up, down, owners) in self.stacks.items():
            scaled = (weights[owners] * down).to(down.dtype)
            leaves = self._leaves(name, up, scaled)
            tensors |= {f"base_model.model.{name.removesuffix('.weight')}.{leaf}": leaves[leaf] for leaf in leaves}
        ranks = {name.removesuffix(".weight"): len(down) for name, (_, down, _) in self.stacks.items()}
        uneven = {f"^{re.escape(module)}": r for module, r in ranks.items() if r != self.rank}
        config = {
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
        return tensors, config

    @staticmethod
    def _stacked(experts: Sequence[dict[str, tuple[Tensor, Tensor]]]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Each matrix's factors B and A of all experts side by side, and the task of every rank, shape (rank, 1)."""
        stacks = {}
        for name in sorted({name for expert in experts for name in expert}):
            pairs = [(task, *expert[name]) for task, expert in enumerate(experts) if name in expert]
            owners = torch.cat([torch.full((len(down), 1), task) for task, _, down in pairs])
            stacks[name] = (torch.cat([up for _, up, _ in pairs], 1), torch.cat([d for _, _, d in pairs]), owners)
        return stacks

    def _leaves(self, name: str, up: Tensor, down: Tensor) -> dict[str, Tensor]:
        if name.removesuffix(".weight") in self._embeddings:
            return {"lora_embedding_A": up.t().contiguous(), "lora_embedding_B": down.t().contiguous()}
        return {"lora_A.weight": down, "lora_B.weight": up}


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
        tensors, config = self.mixer.adapter(parts)
        draft = Path(tempfile.mkdtemp(prefix=".", dir=self.folder))
        save_file(tensors, draft / "adapter_model.safetensors", metadata={"format": "pt"})
        (draft / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            os.rename(draft, target)
        except OSError:  # another process was first, and a mixture has one content
            shutil.rmtree(draft)
        return target

    @staticmethod
    def forget(folder: Path, name: str) -> None:
        """Remove a mixture's folder, once the server has unloaded its name."""
        shutil.rmtree(folder / name, ignore_errors=True)
