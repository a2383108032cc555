"""Train the router: classification of the task id from features of the shared expert, as a LightningModule."""

from __future__ import annotations

from typing import Literal

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import EVAL_DATALOADERS, TRAIN_DATALOADERS
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from gapbridge.arguments import Count, NotNegative, Positive, Seed, Whole, check_arguments
from gapbridge.every_row import EveryRow
from twinmerge.modeling_twin import Router


class RouterModule(lightning.LightningModule):
    """Cross-entropy on task ids; the paper trains its router the same way (Lu et al. 2024, section 4).

    On several processes (strategy ddp) the global batch is that of one process, and a `linear` router ends with the
    same weights. The paper's `mlp` does not: on the CPU every process has its own batch statistics and dropout (on
    GPUs `sync_batchnorm=True` shares the statistics).

    Logged: `train/loss`, `validation/loss`, `validation/accuracy` (of naming the task), and the same for test.

    Args:
        width: features of the shared expert.
        tasks: experts to choose among.
        kind: `mlp` (the paper's) or `linear`; a `knn` router needs no training, see `knn_router`.
        learning_rate: of AdamW, above 0; the paper uses 5e-4.
        weight_decay: of AdamW.
        temperature: of the softmax when routing, see `fit_temperature`.
        top_k: weights kept when routing; 0 keeps all.
    """

    def __init__(
        self,
        width: Count = 384,
        tasks: Count = 2,
        *,
        kind: Literal["mlp", "linear", "knn"] = "mlp",
        learning_rate: Positive = 5e-4,
        weight_decay: NotNegative = 0.01,
        temperature: Positive = 1.0,
        top_k: Whole = 0,
    ) -> None:
        check_arguments(RouterModule.__init__, locals())
        super().__init__()
        self.save_hyperparameters()
        if kind == "knn":
            raise ValueError("a knn router is not trained; make it with knn_router.")
        self.router = Router(width, tasks, kind, temperature, top_k)
        self.accuracy = MulticlassAccuracy(tasks, average="micro")

    def forward(self, features: Tensor) -> Tensor:
        """Mixture weights of shape (batch, tasks) from features of shape (batch, width)."""
        return self.router.weights(features)

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Cross-entropy of one batch."""
        features, task = batch
        loss = F.cross_entropy(self.router(features), task)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
        """Log cross-entropy and accuracy on validation features."""
        self._evaluate("validation", batch)

    def test_step(self, batch: list[Tensor], batch_index: int) -> None:
        """Log cross-entropy and accuracy on test features."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: list[Tensor]) -> None:
        features, task = batch
        logits = self.router(features)
        self.log(f"{stage}/loss", F.cross_entropy(logits, task), prog_bar=True, sync_dist=True)
        self.accuracy(logits, task)
        self.log(f"{stage}/accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW at a constant rate."""
        return torch.optim.AdamW(
            self.router.parameters(), lr=self.hparams["learning_rate"], weight_decay=self.hparams["weight_decay"]
        )


class FeatureDataModule(lightning.LightningDataModule):
    """Features and task ids in memory; a step's global batch is the same on one process and on many.

    Where the number of items is no multiple of the processes, the last batch repeats an item to be dealt out evenly.

    Args:
        train: features (items, width) and task ids (items,).
        validation: likewise.
        batch_size: of all processes together, at least 1.
        seed: with the epoch it decides the order.
    """

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor],
        batch_size: Count = 256,
        seed: Seed = 0,
    ) -> None:
        check_arguments(FeatureDataModule.__init__, locals())
        for name, given in (("train", train), ("validation", validation)):
            check_features(*given, name)
        super().__init__()
        self.sets = {"train": TensorDataset(*train), "validation": TensorDataset(*validation)}
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> TRAIN_DATALOADERS:
        """Shuffled batches; rank r of W takes every W-th item of the common order."""
        trainer = self.trainer
        world, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        if self.batch_size % world:
            raise ValueError(f"batch_size {self.batch_size} cannot be dealt out to {world} processes; give a multiple.")
        sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(
            self.sets["train"], world, rank, shuffle=True, seed=self.seed
        )
        return DataLoader(self.sets["train"], self.batch_size // world, sampler=sampler)

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """All validation features in order."""
        features = self.sets["validation"]
        return DataLoader(features, self.batch_size, sampler=EveryRow(len(features)))


def check_features(features: Tensor, task: Tensor, name: str, tasks: int | None = None) -> None:
    """Refuse what no router can be made from.

    Args:
        features: shape (items, width).
        task: shape (items,).
        name: what they are called in messages.
        tasks: how many there are, where it is known.

    Raises:
        ValueError: for other shapes, features that are not finite, or task ids out of range.
    """
    if features.dim() != 2 or task.shape != features.shape[:1] or not len(task):
        raise ValueError(
            f"{name} has features {tuple(features.shape)} and task ids {tuple(task.shape)}; give features (items, "
            "width) and one task id an item, at least one."
        )
    if not features.is_floating_point() or not bool(features.isfinite().all()):
        raise ValueError(f"{name} has features of {features.dtype} that are not all finite numbers; mend them.")
    if task.is_floating_point() or int(task.min()) < 0 or (tasks is not None and int(task.max()) >= tasks):
        raise ValueError(
            f"{name} has task ids of {task.dtype} from {float(task.min()):g} to {float(task.max()):g}; give whole "
            f"numbers from 0 to {'tasks' if tasks is None else tasks} - 1."
        )


def fit_temperature(router: Router, features: Tensor, task: Tensor) -> float:
    """Set and return the temperature of the lowest held-out cross-entropy (Guo et al. 2017, arXiv 1706.04599).

    Args:
        router: trained; its temperature is replaced.
        features: shape (items, width), of the validation split.
        task: shape (items,).
    """
    grid = torch.logspace(-1.0, 1.0, 41)
    with torch.no_grad():
        logits = router.eval()(features)
        losses = torch.stack([F.cross_entropy(logits / t, task) for t in grid])
    router.temperature = float(grid[losses.argmin()])
    return router.temperature


def knn_router(features: Tensor, task: Tensor, tasks: Count, neighbours: Count = 10) -> Router:
    """A training-free router: votes of the nearest training features by cosine (a deviation from the paper).

    Args:
        features: stored bank, shape (items, width).
        task: shape (items,), values below `tasks`.
        tasks: experts.
        neighbours: votes counted; all items where there are fewer.

    Raises:
        ValueError: for features or task ids that are none, or numbers below 1.
    """
    check_arguments(knn_router, locals())
    check_features(features, task, "the bank", tasks)
    router = Router(features.shape[1], tasks, "knn", neighbours=neighbours, bank=features.shape[0])
    router.standardise(features)
    router.bank.copy_((features - router.mean) / router.std)
    router.bank_task.copy_(task)
    return router.eval()
