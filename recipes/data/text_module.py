"""Lightning data modules over text tasks: tokenised once, padded per batch, one task or several mixed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gapbridge.every_row import EveryRow
from recipes.data.models import resolve_model
from recipes.data.sources import load_task
from recipes.data.task_source import TaskSource
from recipes.errors import RunError
from recipes.running.resume import ResumableLoader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from recipes.data.splits import TextTask

__all__ = ["MixedTextDataModule", "PadCollate", "SourceDataModule", "TextDataModule"]

Row = dict[str, Any]
Batch = dict[str, torch.Tensor]
_SPLITS = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("test",)}


@dataclass(frozen=True)
class PadCollate:
    """Stack rows into a batch, padded to the longest row.

    Args:
        fill: Padding value of every sequence field, e.g. ``{"input_ids": pad_id, "attention_mask": 0}``.
        side: ``right`` or ``left``, as the tokenizer pads.

    Called with rows it returns sequence fields of shape (batch, longest), int64; ``labels`` (batch,), int64 for
    classes and float32 for regression; ``task`` (batch,), int64, where rows carry one.
    """

    fill: dict[str, int]
    side: str = "right"

    def __call__(self, rows: list[Row]) -> Batch:
        """Pad and stack."""
        longest = max(len(row["input_ids"]) for row in rows)
        batch: Batch = {}
        for name in rows[0]:
            if name not in self.fill:
                batch[name] = torch.tensor([row[name] for row in rows])
                continue
            padded = []
            for row in rows:
                padding = [self.fill[name]] * (longest - len(row[name]))
                padded.append(padding + row[name] if self.side == "left" else row[name] + padding)
            batch[name] = torch.tensor(padded)
        return batch


class _Rows(Dataset[Row]):
    """Tokenised rows in memory."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


class MixedTextDataModule(LightningDataModule):
    """All tasks' rows shuffled together; every row carries the index of its task.

    Batches hold ``input_ids``, ``attention_mask``, ``token_type_ids`` where the tokenizer makes them, ``labels`` and
    ``task`` (the index in ``tasks``). Training rows are reshuffled every epoch, rows of similar length side by
    side; validation and test rows are sorted by length, so their order is not that of the task.

    Args:
        tasks: The tasks; the order gives the ``task`` index.
        tokenizer: ``shipped:`` name, folder or Hub id of the tokenizer.
        batch_size: Rows a training batch, at least 1.
        max_length: Longest sequence in tokens, special tokens included; at least 4, at most what the tokenizer allows.
        seed: Fixes the order of the training rows.
        eval_batch_size: Rows a validation or test batch (default: twice ``batch_size``).
    """

    def __init__(
        self,
        tasks: Sequence[TextTask],
        tokenizer: str | Path,
        *,
        batch_size: int = 32,
        max_length: int = 128,
        seed: int = 0,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not tasks:
            raise RunError("a text data module got no task; give at least one")
        if batch_size < 1 or (eval_batch_size is not None and eval_batch_size < 1):
            raise RunError(f"batch_size is {batch_size} and eval_batch_size {eval_batch_size}; give at least 1")
        self.tasks = tuple(tasks)
        self.tokenizer_name = str(tokenizer)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or 2 * batch_size
        self.max_length = max_length
        self.seed = seed
        self._rows: dict[str, list[Row]] = {}
        self._collate: PadCollate | None = None

    def prepare_data(self) -> None:
        """Fetch the tokenizer, on one process only."""
        self._tokenizer_path()

    def _tokenizer_path(self) -> str:
        shipped = self.tokenizer_name.startswith("shipped:")
        return str(resolve_model(self.tokenizer_name)) if shipped else self.tokenizer_name

    def setup(self, stage: str | None = None) -> None:
        """Tokenise the splits of a stage that are not tokenised yet.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; None for every split.
        """
        wanted = _SPLITS[stage] if stage else ("train", "validation", "test")
        missing = [split for split in wanted if split not in self._rows]
        if not missing:
            return
        tokenizer = AutoTokenizer.from_pretrained(self._tokenizer_path(), trust_remote_code=False)
        check_length(self.max_length, tokenizer, self.tokenizer_name)
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        fill = {"input_ids": pad, "attention_mask": 0, "token_type_ids": tokenizer.pad_token_type_id}
        self._collate = PadCollate(fill, tokenizer.padding_side)
        for split in missing:
            self._rows[split] = self._encode(tokenizer, split)

    def _encode(self, tokenizer: PreTrainedTokenizerBase, split: str) -> list[Row]:
        rows: list[Row] = []
        floats = any(task.kind == "regression" for task in self.tasks)  # one dtype for the labels of a mixed batch
        for number, task in enumerate(self.tasks):
            part = getattr(task, split)
            pairs = isinstance(part.texts[0], tuple)
            columns = [list(column) for column in zip(*part.texts, strict=True)] if pairs else [part.texts]
            encoded = tokenizer(
                *columns, truncation=True, max_length=self.max_length, padding=False, return_attention_mask=True
            )
            fields = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]
            for i, label in enumerate(part.labels):
                row: Row = {name: encoded[name][i] for name in fields}
                row["labels"] = float(label) if floats else label
                rows.append(self._mark(row, number))
        return rows

    def _mark(self, row: Row, task: int) -> Row:
        return {**row, "task": task}

    def train_dataloader(self) -> ResumableLoader:
        """Training rows in an order given by seed, epoch and rank, which a checkpoint resumes in the middle."""
        rows = self._rows["train"]
        lengths = [len(row["input_ids"]) for row in rows]
        return ResumableLoader(_Rows(rows), self.batch_size, seed=self.seed, lengths=lengths, collate_fn=self._collate)

    def val_dataloader(self) -> DataLoader[Row]:
        """Validation rows, sorted by length."""
        return self._sorted("validation")

    def test_dataloader(self) -> DataLoader[Row]:
        """Test rows, sorted by length."""
        return self._sorted("test")

    def predict_dataloader(self) -> DataLoader[Row]:
        """The test rows."""
        return self._sorted("test")

    def by_length(self, split: str) -> Iterator[tuple[list[int], Batch]]:
        """Batches of a split with little padding, each with its rows' positions in the split (tasks one by one)."""
        rows, collate = self._rows[split], self._collate
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        for start in range(0, len(order), self.eval_batch_size):
            positions = order[start : start + self.eval_batch_size]
            yield positions, collate([rows[i] for i in positions])  # type: ignore[misc]

    def rows(self, split: str) -> Sequence[Row]:
        """Rows of a split as they are batched, tasks one by one: lists of numbers, a label and a task."""
        return self._rows[split]

    def note(self, split: str, name: str, values: torch.Tensor) -> None:
        """Give every row of a split a further field of its batches, `values` of shape (rows, ...)."""
        for row, value in zip(self._rows[split], values.tolist(), strict=True):
            row[name] = value

    def parts(self, split: str, least: int = 32) -> list[list[Batch]]:
        """Batches of a quarter, a further quarter and the other half of every task's rows of a split.

        Every part has short and long rows of every task. With fewer than `least` rows of a task in the first quarter
        there is one part, the whole split.
        """
        shares: list[list[Row]] = [[], [], []]
        rows = [(int(row.get("task", 0)), row) for row in self._ordered(split)]
        numbers = {task: 0 for task, _ in rows}
        for task, row in rows:
            shares[(0, 2, 1, 2)[numbers[task] % 4]].append(row)
            numbers[task] += 1
        if min(numbers.values()) < 4 * least:
            shares = [[row for _, row in rows]]
        return [list(DataLoader(_Rows(part), self.eval_batch_size, collate_fn=self._collate)) for part in shares]

    def _sorted(self, split: str) -> DataLoader[Row]:
        rows = _Rows(self._ordered(split))
        return DataLoader(rows, self.eval_batch_size, sampler=EveryRow(len(rows)), collate_fn=self._collate)

    def _ordered(self, split: str) -> list[Row]:
        rows = list(self._rows[split])
        random.Random(self.seed).shuffle(rows)  # noqa: S311 - rows of equal length must not stand task by task
        rows.sort(key=lambda row: len(row["input_ids"]))
        return rows


def check_length(length: int, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse rows of fewer tokens than 4, or of more than a tokenizer says that its model takes.

    Raises:
        RunError: With what is accepted.
    """
    if not 4 <= length <= tokenizer.model_max_length:
        raise RunError(f"max_length is {length}; the tokenizer {name} accepts 4 to {tokenizer.model_max_length}")


class TextDataModule(MixedTextDataModule):
    """One task's rows; batches as of `MixedTextDataModule` without ``task``, ready for ``model(**batch)``.

    Args:
        task: The task.
        tokenizer: ``shipped:`` name, folder or Hub id of the tokenizer.
        batch_size: Rows a training batch, at least 1.
        max_length: Longest sequence in tokens.
        seed: Fixes the order of the training rows.
        eval_batch_size: Rows a validation or test batch (default: twice ``batch_size``).
    """

    def __init__(
        self,
        task: TextTask,
        tokenizer: str | Path,
        *,
        batch_size: int = 32,
        max_length: int = 128,
        seed: int = 0,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__(
            [task],
            tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            eval_batch_size=eval_batch_size,
        )

    def _mark(self, row: Row, task: int) -> Row:
        return row


class SourceDataModule(TextDataModule):
    """One task's rows by reference, so that LightningCLI makes it from YAML: a task as recipes name it, read here.

    Args:
        task: Where the rows are, as under ``tasks:`` of a recipe.
        tokenizer: ``shipped:`` name, folder or Hub id of the tokenizer; a twin folder holds one.
        batch_size: Rows a training batch, at least 1.
        max_length: Longest sequence in tokens.
        seed: Of the subsamples and of the order of the training rows.
        eval_batch_size: Rows a validation or test batch (default: twice ``batch_size``).
        labels: The model's label names in the order of its outputs, where that is not the task's own order.
    """

    def __init__(
        self,
        task: TaskSource,
        tokenizer: str,
        *,
        batch_size: int = 32,
        max_length: int = 128,
        seed: int = 0,
        eval_batch_size: int | None = None,
        labels: list[str] | None = None,
    ) -> None:
        read = load_task(task, seed)
        super().__init__(
            read if labels is None else read.in_order(tuple(labels)),
            tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            eval_batch_size=eval_batch_size,
        )
