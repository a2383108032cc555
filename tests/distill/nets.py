"""Networks and data so small that whole trainings take a second."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from distill.order import ViewLoader, ViewOrder

CLASSES = 4


class Rows(torch.utils.data.Dataset):
    """Pictures whose class is which quarter is bright."""

    def __init__(self, rows: int = 48, classes: int = CLASSES, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(rows) % classes
        self.images = 0.3 * torch.rand(rows, 1, 8, 8, generator=draw)
        for i, label in enumerate(self.labels.tolist()):
            y, x = divmod(label % 4, 2)
            self.images[i, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += 0.5

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, view: int):
        row = view % len(self)
        return {"images": self.images[row], "labels": self.labels[row], "index": row}


class Data(lightning.LightningDataModule):
    """Batches of Rows, as many processes see together what one sees."""

    def __init__(self, batch_size: int = 16, rows: int = 48, classes: int = CLASSES) -> None:
        super().__init__()
        self.rows, self.batch_size = Rows(rows, classes), batch_size

    def train_dataloader(self):
        return ViewLoader(self.rows, ViewOrder(len(self.rows), self.batch_size, seed=3), drop_last=True)

    def val_dataloader(self):
        return DataLoader(self.rows, self.batch_size)

    test_dataloader = val_dataloader


def linear(seed: int, width: int = 12, classes: int = CLASSES) -> nn.Module:
    """A network without batch statistics, so that processes compute what one does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Mlp(width, classes)


class Mlp(nn.Module):
    """Flatten, hidden layer, classes; with timm's three calls."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.head, self.num_features = nn.Linear(64, width), nn.Linear(width, classes), width

    def forward_features(self, images):
        return torch.tanh(self.hidden(images.flatten(1)))

    def forward_head(self, features, pre_logits: bool = False):
        return features if pre_logits else self.head(features)

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


CHANGES = {
    "optimizer": "momentum",
    "learning_rate": 0.1,
    "warmup_epochs": 0,
    "epochs": 3,
    "hard": "ce",
    "schedule_on": "update",
    "image_size": 8,
    "mixup": 0.0,
    "cutmix": 0.0,
    "drop_path": 0.0,
    "repeats": 1,
}


def trainer(folder, **options) -> lightning.Trainer:
    """Three epochs without noise."""
    settings = {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder}
    return lightning.Trainer(**settings | {"num_sanity_val_steps": 0} | options)
