"""The stream of seeds: the noise of an update is a function of seed, split, update and index, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import EVAL_DATALOADERS, TRAIN_DATALOADERS
from torch import Tensor
from torch.utils.data import IterableDataset

from gapbridge.arguments import Count, Seed, check_arguments
from rl.progress import batches_done

SPLITS = {"train": 0, "validation": 1, "test": 2}


class Seeds(NamedTuple):
    """What a batch is made of.

    Attributes:
        seeds: One for each group of episodes, int64 (groups,).
        episodes: Episodes of a group.
    """

    seeds: Tensor
    episodes: int


def group_seeds(seed: int, split: str, update: int, groups: range) -> Tensor:
    """Seeds of groups of episodes, int64 (groups,).

    Args:
        seed: Of the run.
        split: train, validation or test: streams that never meet.
        update: Number of the update.
        groups: Which of the update's groups.

    Returns:
        Seeds, (len(groups),).

    Example:
        >>> bool((group_seeds(0, "train", 5, range(4))[2:] == group_seeds(0, "train", 5, range(2, 4))).all())
        True
    """
    states = [
        np.random.SeedSequence([seed, SPLITS[split], update, group]).generate_state(1, np.uint64)[0] for group in groups
    ]
    return torch.from_numpy(np.array(states, np.uint64) >> np.uint64(1)).long()


class SeedStream(IterableDataset[Seeds]):
    """Seeds of this process's groups, update after update; a saved position is one number.

    In training the position is the trainer's own count of batches, which every checkpoint brings back, see
    :meth:`follow`; alone, the stream counts for itself.

    Args:
        seed: Of the run.
        split: train, validation or test.
        updates: Length of an epoch.
        groups: Groups of an update, of all processes together.
        episodes: Episodes of a group.
        world: Number of processes.
        rank: This one; it takes its own contiguous share.
        endless: Go on with new seeds in the next epoch; else every epoch is the same.
    """

    def __init__(
        self,
        seed: int,
        split: str,
        updates: int,
        groups: int,
        episodes: int,
        *,
        world: int = 1,
        rank: int = 0,
        endless: bool = False,
    ) -> None:
        super().__init__()
        if groups % world:
            raise ValueError(f"{groups} groups of episodes cannot be dealt out to {world} processes; give a multiple.")
        self.seed, self.split, self.updates, self.endless = seed, split, updates, endless
        self.episodes = episodes
        share = groups // world
        self.groups = range(rank * share, (rank + 1) * share)
        self.done = 0
        self._trainer: lightning.Trainer | None = None

    def __len__(self) -> int:
        return self.updates

    def follow(self, trainer: lightning.Trainer | None) -> None:
        """Start every epoch at the batch at which a trainer stands; only an endless stream does.

        Args:
            trainer: A `lightning.Trainer`.
        """
        self._trainer = trainer if self.endless else None

    def __iter__(self) -> Iterator[Seeds]:
        # a generator runs at its first batch, when Lightning has put its counts right
        if not self.endless:
            self.done = 0
        before = self.done % self.updates
        if self._trainer is not None:
            self.done, before = batches_done(self._trainer)
        for _ in range(self.updates - before):
            self.done += 1
            yield Seeds(group_seeds(self.seed, self.split, self.done - 1, self.groups), self.episodes)

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position."""
        self.done = state["done"]


class SeedDataModule(lightning.LightningDataModule):
    """Streams of seeds for `HPOModule`, which simulates the episodes itself, on its own device.

    Args:
        updates_per_epoch: Updates between two validations.
        batch_size: Episodes of an update, of all processes together; a multiple of ``group_size``.
        group_size: Episodes that share a seed; the smallest share of work that a process can get.
        validation_episodes: Episodes of validation, the same each time.
        test_episodes: Episodes of the test.
        seed: Of the streams.

    Raises:
        ValueError: If a number is below 1 or no multiple of ``group_size``, or the seed is none.
    """

    def __init__(
        self,
        updates_per_epoch: Count = 50,
        batch_size: Count = 128,
        *,
        group_size: Count = 64,
        validation_episodes: Count = 1024,
        test_episodes: Count = 4096,
        seed: Seed = 0,
    ) -> None:
        check_arguments(SeedDataModule.__init__, locals())
        super().__init__()
        self.save_hyperparameters()
        for name, value in (
            ("batch_size", batch_size),
            ("validation_episodes", validation_episodes),
            ("test_episodes", test_episodes),
        ):
            if value % group_size:
                raise ValueError(f"{name} is {value}, but it must be a multiple of group_size, {group_size}.")

    def train_dataloader(self) -> TRAIN_DATALOADERS:
        """New episodes at every update."""
        return self._stream("train", self.hparams["updates_per_epoch"], self.hparams["batch_size"], endless=True)

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """The same episodes each time: policies are compared under common random numbers."""
        return self._stream("validation", 1, self.hparams["validation_episodes"])

    def test_dataloader(self) -> EVAL_DATALOADERS:
        """Episodes of their own."""
        return self._stream("test", 1, self.hparams["test_episodes"])

    def _stream(self, split: str, updates: int, episodes: int, *, endless: bool = False) -> SeedStream:
        trainer = self.trainer
        world, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        size = self.hparams["group_size"]
        stream = SeedStream(
            self.hparams["seed"], split, updates, episodes // size, size, world=world, rank=rank, endless=endless
        )
        stream.follow(trainer)
        return stream
