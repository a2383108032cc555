"""What a twin says about the inputs of its merge, asked once: they are the same in every epoch, and so is it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.running.environment import process_rank
from recipes.running.files import whole_file
from recipes.running.seals import seal, sealed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from distill.networks import Frozen
    from recipes.data.image_module import MixedImageDataModule
    from recipes.data.text_module import MixedTextDataModule
    from recipes.running.folder import RunFolder

__all__ = ["FIELD", "answer_once"]

FIELD = "teacher_logits"  # what `DistillModule` reads in the teacher's place


def answer_once(
    teacher: Frozen,
    twin: Path,
    data: MixedTextDataModule | MixedImageDataModule,
    splits: Sequence[str],
    folder: RunFolder,
    device: torch.device,
) -> None:
    """Give every row of some splits the teacher's logits, in float32.

    They are kept in `cache/answers.safetensors` of the run folder under a digest of the twin and of all rows, so that a
    resumed run learns from the same numbers; where either has changed, or the file is damaged, the teacher is asked
    again.

    Args:
        teacher: The twin.
        twin: Its folder.
        data: Set up; its rows get the field `teacher_logits`.
        splits: Of train, validation and test.
        folder: Of the run.
        device: Where the teacher answers.
    """
    from safetensors import safe_open

    file = folder.path / "cache" / "answers.safetensors"
    name = _digest(twin, data, splits)
    found: dict[str, Tensor] = {}
    if file.is_file() and not sealed(file):
        folder.say(f"{file} is not as it was written: the teacher answers again")
    elif file.is_file():
        with safe_open(file, "pt") as kept:
            if (kept.metadata() or {}).get("of") == name:
                found = {split: kept.get_tensor(split) for split in splits}
    if not found:
        found = {split: _answers(teacher, data, split, folder, device) for split in splits}
        if process_rank() == 0:
            _write(file, found, name)
    for split, logits in found.items():
        data.note(split, FIELD, logits)


def _digest(twin: Path, data: MixedTextDataModule | MixedImageDataModule, splits: Sequence[str]) -> str:
    """Names a twin, by the digests that its folder has of its files, and the rows that it is asked about."""
    told = hashlib.sha256((twin / "MANIFEST.json").read_bytes())
    for split in splits:
        rows = ({k: v for k, v in row.items() if k not in ("labels", FIELD)} for row in data.rows(split))
        for row in rows:
            told.update(json.dumps(row, sort_keys=True).encode())
        told.update(split.encode())
    return told.hexdigest()


def _answers(
    teacher: Frozen,
    data: MixedTextDataModule | MixedImageDataModule,
    split: str,
    folder: RunFolder,
    device: torch.device,
) -> Tensor:
    import torch

    total = -(-len(data.rows(split)) // data.eval_batch_size)
    logits: list[Tensor] = []
    places: list[int] = []
    with folder.phase(f"teacher on {split}", total) as progress:
        for positions, batch in data.by_length(split):
            there = {key: value.to(device) for key, value in batch.items()}
            logits.append(teacher(there).logits.float().cpu())
            places += positions
            progress.advance()
    return torch.cat(logits)[torch.tensor(places).argsort()]


def _write(file: Path, found: dict[str, Tensor], name: str) -> None:
    from safetensors.torch import save

    with whole_file(file) as stream:
        stream.write(save(found, metadata={"of": name}))
    seal(file)
