"""Lightning data modules over image tasks: sized and normalised as the base was, augmented in training."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gapbridge.every_row import EveryRow
from recipes.errors import RunError
from recipes.running.resume import ResumableLoader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from recipes.data.image_tasks import Picture
    from recipes.data.looks import Look
    from recipes.data.splits import TextTask

__all__ = ["Augmentation", "ImageDataModule", "MixedImageDataModule"]

Batch = dict[str, Tensor]
Augmentation = Literal["none", "crop", "flip", "trivial"]
_SPLITS = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("test",)}
Listed = tuple["Picture", int, int, int]  # a picture, its class, the number of its task, and its place in the split


class Row(NamedTuple):
    """One image.

    Attributes:
        pixels: Shape (3, size, size), 8 bits.
        label: Its class.
        task: Number of its task.
        place: In its split.
    """

    pixels: Tensor
    label: int
    task: int
    place: int


class _Rows(Dataset[Row]):
    """Pictures of a split, resized when they are asked for."""

    def __init__(self, rows: Sequence[Listed], look: Look) -> None:
        self.rows, self.look = rows, look

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        picture, label, task, place = self.rows[index]
        return Row(self.look.resized(picture), label, task, place)


class MixedImageDataModule(LightningDataModule):
    """All tasks' images shuffled together; every row carries the index of its task.

    Batches hold ``pixel_values``, ``labels`` and ``task``. Training images are augmented by torchvision, each by a
    function of seed, epoch and its place alone, so that a resumed run sees the same.

    Args:
        tasks: The tasks; the order gives the ``task`` index.
        look: Size and normalisation of the base.
        batch_size: Rows a training batch, at least 1.
        augmentation: Of training images: none; crop (shifted by an eighth at most); flip (crop, and mirrored); trivial
            (one operation of TrivialAugment each).
        seed: Fixes the order of the training rows, and the augmentation.
        eval_batch_size: Rows a validation or test batch (default: twice ``batch_size``).
    """

    def __init__(
        self,
        tasks: Sequence[TextTask],
        look: Look,
        *,
        batch_size: int = 32,
        augmentation: Augmentation = "none",
        seed: int = 0,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not tasks:
            raise RunError("an image data module got no task; give at least one")
        if batch_size < 1 or (eval_batch_size is not None and eval_batch_size < 1):
            raise RunError(f"batch_size is {batch_size} and eval_batch_size {eval_batch_size}; give at least 1")
        self.tasks, self.look, self.seed = tuple(tasks), look, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or 2 * batch_size
        self.augmentation: Augmentation = augmentation
        self._rows: dict[str, list[Listed]] = {}
        self._noted: dict[str, dict[str, Tensor]] = {}

    def setup(self, stage: str | None = None) -> None:
        """List the splits of a stage.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; None for every split.
        """
        for split in _SPLITS[stage] if stage else ("train", "validation", "test"):
            listed = [
                (picture, int(label), number)
                for number, task in enumerate(self.tasks)
                for picture, label in zip(getattr(task, split).texts, getattr(task, split).labels, strict=True)
            ]
            self._rows[split] = [(*row, place) for place, row in enumerate(listed)]

    def _collate(self, rows: list[Row], split: str = "") -> Batch:
        return {
            "pixel_values": self.look.normalised(torch.stack([row.pixels for row in rows])),
            "labels": torch.tensor([row.label for row in rows]),
            **({} if len(self.tasks) == 1 else {"task": torch.tensor([row.task for row in rows])}),
            **self._noted_of(rows, split),
        }

    def _raw(self, rows: list[Row]) -> Batch:
        images = {"pixel_values": torch.stack([row.pixels for row in rows])}
        places = {"index": torch.tensor([row.place for row in rows])}
        return {**self._collate(rows, "train"), **images, **places}

    def _noted_of(self, rows: list[Row], split: str) -> Batch:
        return {name: values[[row.place for row in rows]] for name, values in self._noted.get(split, {}).items()}

    def rows(self, split: str) -> Sequence[dict[str, object]]:
        """What every row of a split is, tasks one by one: the digest of its picture, its label and its task."""
        return [{"picture": row[0].key, "labels": row[1], "task": row[2]} for row in self._rows[split]]

    def note(self, split: str, name: str, values: Tensor) -> None:
        """Give every row of a split a further field of its batches, `values` of shape (rows, ...)."""
        self._noted.setdefault(split, {})[name] = values

    def train_dataloader(self) -> ResumableLoader:
        """Training images in an order given by seed, epoch and rank, which a checkpoint resumes in the middle."""
        rows = _Rows(self._rows["train"], self.look)
        return ResumableLoader(rows, self.batch_size, seed=self.seed, collate_fn=self._raw)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training images, and bring them to the base's scale."""
        if "index" not in batch:
            return batch
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        images = batch["pixel_values"]
        if change := self._change():
            from distill.data import drawing

            made = []
            for image, index in zip(images, batch["index"].tolist(), strict=True):
                with drawing(self.seed, epoch, index):
                    made.append(change(image))
            images = torch.stack(made)
        return {**{k: v for k, v in batch.items() if k != "index"}, "pixel_values": self.look.normalised(images)}

    def _change(self) -> Callable[[Tensor], Tensor] | None:
        from torchvision.transforms import v2

        if self.augmentation == "none":
            return None
        if self.augmentation == "trivial":
            trivial: Callable[[Tensor], Tensor] = v2.TrivialAugmentWide()
            return trivial
        crop = v2.RandomCrop(self.look.size, padding=self.look.size // 8, padding_mode="edge")
        both: Callable[[Tensor], Tensor] = crop
        if self.augmentation == "flip":
            both = v2.Compose([crop, v2.RandomHorizontalFlip()])
        return both

    def val_dataloader(self) -> DataLoader[Row]:
        """Validation images, all tasks shuffled together."""
        return self._evaluated(self._ordered("validation"), "validation")

    def test_dataloader(self) -> DataLoader[Row]:
        """Test images, likewise."""
        return self._evaluated(self._ordered("test"), "test")

    def predict_dataloader(self) -> DataLoader[Row]:
        """The test images."""
        return self.test_dataloader()

    def by_length(self, split: str) -> Iterator[tuple[list[int], Batch]]:
        """Batches of a split, each with its rows' positions in the split (tasks one by one)."""
        rows = _Rows(self._rows[split], self.look)
        for start in range(0, len(rows), self.eval_batch_size):
            positions = list(range(start, min(len(rows), start + self.eval_batch_size)))
            yield positions, self._collate([rows[i] for i in positions], split)

    def parts(self, split: str, least: int = 32) -> list[list[Batch]]:
        """Batches of a quarter, a further quarter and the other half of every task's rows of a split.

        With fewer than `least` rows of a task in the first quarter there is one part, the whole split.
        """
        shares: list[list[Listed]] = [[], [], []]
        numbers = dict.fromkeys(range(len(self.tasks)), 0)
        for row in self._ordered(split):
            shares[(0, 2, 1, 2)[numbers[row[2]] % 4]].append(row)
            numbers[row[2]] += 1
        if min(numbers.values()) < 4 * least:
            shares = [self._ordered(split)]
        return [list(self._evaluated(share, split)) for share in shares]

    def _evaluated(self, rows: Sequence[Listed], split: str) -> DataLoader[Row]:
        collate = partial(self._collate, split=split)
        looks = _Rows(rows, self.look)
        return DataLoader(looks, self.eval_batch_size, sampler=EveryRow(len(looks)), collate_fn=collate)

    def _ordered(self, split: str) -> list[Listed]:
        rows = list(self._rows[split])
        random.Random(self.seed).shuffle(rows)  # noqa: S311 - rows must not stand task by task
        return rows


class ImageDataModule(MixedImageDataModule):
    """One task's images; batches as of `MixedImageDataModule` without ``task``, ready for ``model(**batch)``.

    Args:
        task: The task.
        look: Size and normalisation of the base.
        batch_size: Rows a training batch, at least 1.
        augmentation: Of training images.
        seed: Fixes the order of the training rows, and the augmentation.
        eval_batch_size: Rows a validation or test batch (default: twice ``batch_size``).
    """

    def __init__(
        self,
        task: TextTask,
        look: Look,
        *,
        batch_size: int = 32,
        augmentation: Augmentation = "none",
        seed: int = 0,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__(
            [task],
            look,
            batch_size=batch_size,
            augmentation=augmentation,
            seed=seed,
            eval_batch_size=eval_batch_size,
        )
