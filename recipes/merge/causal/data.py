"""Batches of a language task: training rows padded or packed, validation and test rows in order of their length."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gapbridge.every_row import EveryRow
from recipes.data.text_module import PadCollate
from recipes.errors import RunError
from recipes.merge.causal.encode import IGNORED, Encoder, Row, pack
from recipes.running.resume import ResumableLoader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from recipes.data.language_rows import LanguageTask


def padding_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills a batch; no mask sees it, so that any does."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


class LanguageData(LightningDataModule):
    """One language task, ready for `twinmerge.language_module.LanguageModule`.

    A batch holds ``input_ids``, ``labels`` (`IGNORED` where nothing is learned) and ``attention_mask``; packed ones
    hold ``position_ids`` instead of the mask, which start again at every row.

    Args:
        task: The task.
        tokenizer: Folder or Hub name of the tokenizer.
        batch_size: Sequences a training batch, at least 1.
        max_length: Longest sequence in tokens, at least 4.
        seed: Fixes the order of the training rows.
        packing: Put several rows into one training sequence, none of which sees another.
    """

    def __init__(
        self,
        task: LanguageTask,
        tokenizer: str | Path,
        *,
        batch_size: int = 16,
        max_length: int = 128,
        seed: int = 0,
        packing: bool = False,
    ) -> None:
        super().__init__()
        if max_length < 4:
            raise RunError(f"max_length is {max_length}; give at least 4 tokens")
        self.task, self.where = task, str(tokenizer)
        self.batch_size, self.max_length, self.seed, self.packing = batch_size, max_length, seed, packing
        self.rows: dict[str, list[Row]] = {}
        self.cut = 0

    def setup(self, stage: str | None = None) -> None:
        """Tokenise the three splits, once."""
        if self.rows:
            return
        self.tokenizer = AutoTokenizer.from_pretrained(self.where, trust_remote_code=False)
        encoder = Encoder(self.tokenizer, self.max_length)
        self.rows = {split: encoder.rows(self.task, split) for split in ("train", "validation", "test")}
        self.cut = encoder.cut
        pad = padding_of(self.tokenizer)
        self._collate = PadCollate({"input_ids": pad, "attention_mask": 0, "labels": IGNORED, "position_ids": 0})

    def train_dataloader(self) -> ResumableLoader:
        """Training sequences in an order given by seed, epoch and rank, which a checkpoint resumes in the middle."""
        packs = pack(self.rows["train"], self.max_length) if self.packing else None
        made = [packed(rows) for rows in packs] if packs is not None else [plain(row) for row in self.rows["train"]]
        lengths = [len(row["input_ids"]) for row in made]
        return ResumableLoader(made, self.batch_size, seed=self.seed, lengths=lengths, collate_fn=self._collate)

    def val_dataloader(self) -> DataLoader[object]:
        """Validation rows in order of their length."""
        return self._sorted("validation")

    def test_dataloader(self) -> DataLoader[object]:
        """Test rows in order of their length."""
        return self._sorted("test")

    def _sorted(self, split: str) -> DataLoader[object]:
        rows: Any = [plain(row) for row in sorted(self.rows[split], key=lambda r: len(r.tokens))]
        return DataLoader(rows, 2 * self.batch_size, sampler=EveryRow(len(rows)), collate_fn=self._collate)


def plain(row: Row) -> dict[str, list[int]]:
    """A row as one sequence."""
    return {"input_ids": row.tokens, "labels": row.labels, "attention_mask": [1] * len(row.tokens)}


def packed(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Several rows as one sequence; no label is the first of its row, which nothing of its own row predicts."""
    return {
        "input_ids": [token for row in rows for token in row.tokens],
        "labels": [label for row in rows for label in (IGNORED, *row.labels[1:])],
        "position_ids": [position for row in rows for position in range(len(row.tokens))],
    }


def check_packing(model: Any) -> None:
    """Compare two packed rows with the same rows alone, for a model of which it is not known that they stay apart.

    Args:
        model: A causal language model; left as it is.

    Raises:
        RunError: When a row sees the one before it.
    """
    training, device = model.training, next(model.parameters()).device
    tokens = torch.arange(2, 8, device=device) % model.config.vocab_size
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]], device=device)
    model.eval()
    try:
        with torch.no_grad():
            both: Tensor = model(input_ids=tokens[None], position_ids=positions, use_cache=False).logits[0, 3:]
            alone: Tensor = model(input_ids=tokens[None, 3:], use_cache=False).logits[0]
    finally:
        model.train(training)
    rounding = max(1e-4, 8 * torch.finfo(alone.dtype).eps) * (1 + float(alone.abs().max()))
    if float((both - alone).abs().max()) > rounding:
        raise RunError(
            f"a {type(model).__name__} lets packed rows see each other, which is another training; set packing to false"
        )
