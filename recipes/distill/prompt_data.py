"""Texts of all tasks of a merge of causal models, shuffled together: prompts, and the completions that are learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from gapbridge.every_row import EveryRow
from recipes.data.text_module import PadCollate
from recipes.merge.causal.data import padding_of, plain
from recipes.merge.causal.encode import IGNORED, Encoder
from recipes.running.resume import ResumableLoader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.utils.data import Dataset
    from transformers import PreTrainedTokenizerBase

    from recipes.data.language_rows import LanguageTask

__all__ = ["PromptData"]


class PromptData(LightningDataModule):
    """Batches of several language tasks.

    A batch holds ``input_ids``, ``attention_mask`` and ``labels`` (`IGNORED` in prompts), padded on the right, and for
    every row ``prompt``, how many first tokens are its prompt, and ``task``, the index of its task.

    Args:
        tasks: The tasks; the order gives the ``task`` index.
        tokenizer: Of the merge's twin.
        batch_size: Rows a training batch.
        max_length: Longest row in tokens.
        seed: Fixes the order of the training rows.
    """

    def __init__(
        self,
        tasks: Sequence[LanguageTask],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.tasks, self.tokenizer = tuple(tasks), tokenizer
        self.batch_size, self.max_length, self.seed = batch_size, max_length, seed
        self._rows: dict[str, list[dict[str, list[int] | int]]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Tokenise the three splits, once."""
        if self._rows:
            return
        encoder = Encoder(self.tokenizer, self.max_length)
        for split in ("train", "validation", "test"):
            rows = [(i, row) for i, task in enumerate(self.tasks) for row in encoder.rows(task, split)]
            self._rows[split] = [{**plain(row), "prompt": row.prompt, "task": i} for i, row in rows]
        fill = {"input_ids": padding_of(self.tokenizer), "attention_mask": 0, "labels": IGNORED}
        self._collate = PadCollate(fill)

    def train_dataloader(self) -> ResumableLoader:
        """Training rows in an order given by seed, epoch and rank, which a checkpoint resumes in the middle."""
        lengths = [_length(row) for row in self._rows["train"]]
        rows = cast("Dataset[object]", self._rows["train"])
        return ResumableLoader(rows, self.batch_size, seed=self.seed, lengths=lengths, collate_fn=self._collate)

    def val_dataloader(self) -> DataLoader[object]:
        """Validation rows in order of their length."""
        return self._sorted("validation")

    def test_dataloader(self) -> DataLoader[object]:
        """Test rows in order of their length."""
        return self._sorted("test")

    def _sorted(self, split: str) -> DataLoader[object]:
        rows = cast("Dataset[object]", sorted(self._rows[split], key=_length))
        every = EveryRow(len(self._rows[split]))
        return DataLoader(rows, 2 * self.batch_size, sampler=every, collate_fn=self._collate)


def _length(row: Mapping[str, list[int] | int]) -> int:
    return len(cast("list[int]", row["input_ids"]))
