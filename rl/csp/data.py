"""The stream of iterations: which chance an iteration meets is a function of seed, split, number and rank alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import EVAL_DATALOADERS, TRAIN_DATALOADERS
from torch.utils.data import IterableDataset

from gapbridge.arguments import Count, Seed, check_arguments
from rl.progress import batches_done

SPLITS = {"train": 0, "validation": 1, "test": 2}


class Iteration(NamedTuple):
    """What a training step is made of.

    Attributes:
        number: Of the iteration, from 0.
        seed: Of everything random in it, on this process.
        episodes: To play with each side's update, on this process.
    """

    number: int
    seed: int
    episodes: int

    def generator(self) -> torch.Generator:
        """A new generator with this seed."""
        return torch.Generator().manual_seed(self.seed)


class RolloutStream(IterableDataset[Iteration]):
    """Iterations one after the other; a saved position is one number.

    In training the position is the trainer's own count of batches, which every checkpoint brings back, see
    :meth:`follow`; alone, the stream counts for itself.

    Args:
        seed: Of the run.
        split: train, validation or test: streams that never meet.
        iterations: Length of an epoch.
        episodes: Of each update, of all processes together.
        world: Number of processes.
        rank: This one.

    Example:
        >>> first, second = RolloutStream(0, "train", 2, 64)
        >>> (first.number, second.number, first.seed != second.seed)
        (0, 1, True)
    """

    def __init__(self, seed: int, split: str, iterations: int, episodes: int, *, world: int = 1, rank: int = 0) -> None:
        super().__init__()
        if episodes % world:
            raise ValueError(f"{episodes} episodes cannot be dealt out to {world} processes; give a multiple.")
        self.seed, self.split, self.iterations = seed, split, iterations
        self.episodes, self.rank = episodes // world, rank
        self.done = 0
        self._trainer: lightning.Trainer | None = None

    def __len__(self) -> int:
        return self.iterations

    def follow(self, trainer: lightning.Trainer | None) -> None:
        """Start every epoch at the batch at which a trainer stands; only the stream of the training does.

        Args:
            trainer: A `lightning.Trainer`.
        """
        self._trainer = trainer if self.split == "train" else None

    def __iter__(self) -> Iterator[Iteration]:
        # a generator runs at its first batch, when Lightning has put its counts right
        if self.split != "train":  # every evaluation meets the same chance
            self.done = 0
        before = self.done % self.iterations
        if self._trainer is not None:
            self.done, before = batches_done(self._trainer)
        for _ in range(self.iterations - before):
            self.done += 1
            number = self.done - 1
            state = np.random.SeedSequence([self.seed, SPLITS[self.split], number, self.rank]).generate_state(
                1, np.uint64
            )
            yield Iteration(number, int(state[0] >> np.uint64(1)), self.episodes)

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position."""
        self.done = state["done"]


class RolloutDataModule(lightning.LightningDataModule):
    """Streams of iterations for `CSPModule`, which plays the episodes itself, on its own device.

    Args:
        iterations_per_epoch: Training steps between two validations.
        episodes: Played for each side's update, of all processes together.
        validation_episodes: Against each opponent, the same each time.
        test_episodes: Likewise.
        seed: Of the streams.

    Raises:
        ValueError: If a number is below 1, or the seed is none.
    """

    def __init__(
        self,
        iterations_per_epoch: Count = 50,
        episodes: Count = 256,
        *,
        validation_episodes: Count = 1024,
        test_episodes: Count = 4096,
        seed: Seed = 0,
    ) -> None:
        check_arguments(RolloutDataModule.__init__, locals())
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> TRAIN_DATALOADERS:
        """New episodes at every iteration."""
        return self._stream("train", self.hparams["iterations_per_epoch"], self.hparams["episodes"])

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """The same chance each time: policies are compared under common random numbers."""
        return self._stream("validation", 1, self.hparams["validation_episodes"])

    def test_dataloader(self) -> EVAL_DATALOADERS:
        """Episodes of their own."""
        return self._stream("test", 1, self.hparams["test_episodes"])

    def _stream(self, split: str, iterations: int, episodes: int) -> RolloutStream:
        trainer = self.trainer
        world, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        stream = RolloutStream(self.hparams["seed"], split, iterations, episodes, world=world, rank=rank)
        stream.follow(trainer)
        return stream
