"""Plain text for language models: files in, blocks of tokens out, as a DataModule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.arguments import check_given
from distill.errors import DistillError
from distill.gathering import own_batch
from distill.order import ViewLoader, ViewOrder, view_of
from gapbridge.arguments import Count, Seed, Whole
from gapbridge.every_row import EveryRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Fields = dict[str, Any]  # of an item: tensors, mappings of tensors, or numbers
Answers = Callable[[int, Tensor], Fields]  # from the number of a block and its tokens


class Blocks(Dataset[Fields]):
    """Blocks of tokens, each predicted from its own start.

    Args:
        tokens: Shape (blocks, length).
        answers: What else every item has, such as a teacher's answers.
    """

    def __init__(self, tokens: Tensor, answers: Sequence[Answers] = ()) -> None:
        self.tokens, self.answers = tokens, list(answers)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, view: int) -> Fields:
        row = view_of(view, len(self))[0]
        tokens = self.tokens[row]
        made: Fields = {"input_ids": tokens, "labels": tokens, "index": row}
        for answer in self.answers:
            made |= answer(row, tokens)
        return made


class TokenData(lightning.LightningDataModule):
    """Blocks of tokens from text files, whole files in train, validation or test.

    Args:
        files: Text files.
        tokenizer: Folder or Hub name of the tokenizer of teacher and student.
        length: Tokens of a block, at least 2.
        batch_size: Blocks of one update, on all processes and in all batches that the Trainer accumulates together.
        blocks: Training blocks to keep; 0 keeps all.
        evaluation_blocks: Of validation and test each; 0 keeps all.
        seed: Of the training order.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        tokenizer: str,
        *,
        length: int = 128,
        batch_size: Count = 4,
        blocks: Whole = 0,
        evaluation_blocks: Whole = 0,
        seed: Seed = 0,
    ) -> None:
        check_given(TokenData.__init__, locals())
        super().__init__()
        if len(files) < 3:
            raise DistillError(
                f"{len(files)} text files cannot be split into train, validation and test; give 3 or more"
            )
        if length < 2:
            raise DistillError(f"length is {length}, but a block needs 2 tokens to have one to predict")
        self.files, self.tokenizer, self.length = sorted(map(str, files)), tokenizer, length
        self.global_batch, self.seed = batch_size, seed
        self.limits = {"train": blocks, "validation": evaluation_blocks, "test": evaluation_blocks}
        self.splits: dict[str, Blocks] = {}
        self.answers: list[Answers] = []  # of training blocks, see `distill.answered`

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenise as many files as are needed, once."""
        if self.splits:
            return
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer, trust_remote_code=False)
        order = np.random.default_rng(0).permutation(len(self.files))
        tenth = max(1, len(self.files) // 10)
        parts = {"validation": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
        for split, files in parts.items():
            self.splits[split] = Blocks(self._blocks(tokenizer, [self.files[i] for i in files], self.limits[split]))
            if not len(self.splits[split]):
                raise DistillError(f"the {split} files hold fewer than {self.length} tokens; give more text")

    def _blocks(self, tokenizer: PreTrainedTokenizerBase, files: list[str], limit: int) -> torch.Tensor:
        rows: list[torch.Tensor] = []
        rest: list[int] = []
        for file in files:
            text = Path(file).read_text(encoding="utf-8", errors="replace")
            rest += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            count = len(rest) // self.length
            rows += torch.tensor(rest[: count * self.length]).view(count, self.length)
            rest = rest[count * self.length :]
            if limit and len(rows) >= limit:
                break
        return torch.stack(rows[: limit or None]) if rows else torch.empty(0, self.length)

    @property
    def batch_size(self) -> int:
        """Blocks of one batch on one process, so that those of an update on all processes make the global batch."""
        return own_batch(self.global_batch, self.trainer.accumulate_grad_batches if self.trainer else 1)

    def train_dataloader(self) -> ViewLoader:
        """Blocks in an order of seed, epoch and rank."""
        blocks = Blocks(self.splits["train"].tokens, self.answers)
        if len(order := ViewOrder(len(blocks), self.batch_size, seed=self.seed)) < self.batch_size:
            raise DistillError(
                f"{len(order)} training blocks a process do not fill one batch of {self.batch_size}; give more text or "
                "a smaller batch_size"
            )
        return ViewLoader(blocks, order, drop_last=True)

    def val_dataloader(self) -> DataLoader[Fields]:
        """Validation blocks."""
        return self._evaluation("validation")

    def test_dataloader(self) -> DataLoader[Fields]:
        """Test blocks."""
        return self._evaluation("test")

    def _evaluation(self, split: str) -> DataLoader[Fields]:
        blocks = self.splits[split]
        return DataLoader(blocks, self.batch_size, sampler=EveryRow(len(blocks)))
