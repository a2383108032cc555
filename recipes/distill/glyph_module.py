"""Glyphs in memory for many short trainings: batches are drawn and augmented at once, by seed and update alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import cast

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.data import drawing
from distill.glyphs import Glyphs

__all__ = ["GlyphData"]

TRAIN, VALIDATION, TEST = 1, 2, 3  # seeds of the three independent sets


@cache
def _set(items: int, seed: int) -> tuple[Tensor, Tensor]:
    return Glyphs(items, seed).tensors()


class Updates:
    """Training batches, one an update, which a training that goes on takes up where its checkpoint was written.

    A loader that knows its length: of others Lightning fetches a batch ahead, which the position would count as done.

    Args:
        images: Shape (rows, 1, 16, 16), uint8.
        labels: Shape (rows,).
        batch_size: Rows of a batch, drawn without order from all.
        updates: Batches.
        augment: Turn, scale, shift, change contrast and add noise.
        seed: Of everything drawn.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, updates: int, augment: bool, seed: int) -> None:
        self.images, self.labels, self.batch_size, self.updates = images, labels, batch_size, updates
        self.augment, self.seed = augment, seed
        self._done = self._skip = 0

    def __len__(self) -> int:
        return self.updates

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        draw, skip, self._skip = torch.Generator().manual_seed(self.seed), self._skip, 0
        for update in range(self.updates):
            index = torch.randint(len(self.images), (self.batch_size,), generator=draw)
            images = self.images[index].float() / 255
            images = augmented(images, draw) if self.augment else images
            if update >= skip:  # what was drawn before moves the stream on
                self._done = update + 1
                yield {"images": images, "labels": self.labels[index], "index": index}

    def state_dict(self) -> dict[str, int]:
        """How many updates are done."""
        return {"batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind these; after the last one from the first."""
        self._skip = state["batches"] if state["batches"] < self.updates else 0


def augmented(images: Tensor, draw: torch.Generator) -> Tensor:
    """Images under random affine maps, contrasts and noise; the same draws give the same images.

    Args:
        images: Shape (batch, 1, side, side), in [0, 1].
        draw: Where randomness comes from.
    """
    u = torch.rand(len(images), 4, generator=draw) - 0.5
    angle, scale = 0.5 * u[:, 0], 1 + 0.3 * u[:, 1]
    cosine, sine, shift = angle.cos() * scale, angle.sin() * scale, 0.3 * u[:, 2:]
    theta = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    middle = moved.mean((1, 2, 3), keepdim=True)
    contrast = 1 + 0.3 * torch.randn(len(images), 1, 1, 1, generator=draw)
    noise = 0.04 * torch.randn(images.shape, generator=draw)
    return middle + (moved - middle) * contrast + noise


class GlyphData(lightning.LightningDataModule):
    """The first `rows` training glyphs for a number of updates; fixed validation and test sets.

    Args:
        rows: Training glyphs.
        batch_size: Of an update.
        updates: Of the training.
        augment: Augment them.
        mix: timm's Mixup, or None.
        seed: Of the draws.
        test_rows: Of validation and test each.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        updates: int,
        augment: bool,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
        seed: int,
        test_rows: int,
    ) -> None:
        super().__init__()
        self.rows, self.batch_size, self.updates, self.augment = rows, batch_size, updates, augment
        self.mix, self.draw_seed, self.test_rows = mix, seed, test_rows

    def train_dataloader(self) -> Updates:
        """All updates, as one epoch."""
        images, labels = _set(self.rows, TRAIN)
        return Updates(images, labels, self.batch_size, self.updates, self.augment, self.draw_seed)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Validation glyphs."""
        return self._whole(VALIDATION)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Test glyphs."""
        return self._whole(TEST)

    def _whole(self, seed: int) -> DataLoader[dict[str, Tensor]]:
        images, labels = _set(self.test_rows, seed)
        parts = zip(torch.split(images, 2000), torch.split(labels, 2000), strict=True)
        batches = cast("Dataset[dict[str, Tensor]]", [{"images": x.float() / 255, "labels": y} for x, y in parts])
        return DataLoader(batches, batch_size=None)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Mix training batches."""
        if self.mix is None or self.trainer is None or not self.trainer.training:
            return batch
        with drawing(self.draw_seed, zlib.crc32(batch["index"].cpu().numpy().tobytes())):  # as a resumed run does, too
            images, labels = self.mix(batch["images"].clone(), batch["labels"])
        return {**batch, "images": images, "labels": labels}
