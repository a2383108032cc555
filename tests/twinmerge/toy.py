"""A toy data module that LightningCLI can make: token sequences whose label is decided by one token."""

from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader


class ToyData(lightning.LightningDataModule):
    """Rows of ids whose label is their second token modulo the labels (its own value when labels is 1)."""

    def __init__(self, labels: int = 2, rows: int = 32, batch_size: int = 8, causal: bool = False) -> None:
        super().__init__()
        self.labels, self.rows, self.batch_size, self.causal = labels, rows, batch_size, causal

    def _loader(self, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 60, (self.rows, 7), generator=generator)
        mask = torch.ones_like(ids)
        mask[::2, 5:] = 0
        labels = ids[:, 1] % self.labels if self.labels > 1 else ids[:, 1] / 60
        labels = ids.where(mask.bool(), -100) if self.causal else labels
        rows = [{"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in zip(ids, mask, labels, strict=True)]
        if self.trainer is not None and not self.trainer._accelerator_connector.use_distributed_sampler:
            rows = rows[self.trainer.global_rank :: self.trainer.world_size]  # the global batch stays what it was
        return DataLoader(rows, self.batch_size)

    def train_dataloader(self) -> Any:
        return self._loader(0)

    def val_dataloader(self) -> Any:
        return self._loader(1)

    def test_dataloader(self) -> Any:
        return self._loader(2)
