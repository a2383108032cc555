"""Exact resume: a loader whose order depends on seed, epoch and rank only, saved random states, checked checkpoints."""

import math
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler

from recipes.errors import RunError

POOL = 64  # global batches that are sorted by length together


class DataOrder(DistributedSampler[int]):
    """Indices of this rank, in an order that is a function of seed and epoch only.

    With world size W and batch size B, the g-th batches of all ranks together are the g-th batch of a single
    process with batch size W * B. The order never touches the global random generators.

    Args:
        samples: Number of samples.
        batch_size: Samples of one batch on one rank.
        seed: Seed of the order.
        shuffle: Draw a new order each epoch.
        lengths: Length of each sample; given, samples of similar length share a global batch.
        drop_last: Leave out what does not divide evenly over the ranks, instead of repeating samples.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        lengths: Sequence[int] | None = None,
        drop_last: bool = False,
    ) -> None:
        if lengths is not None and len(lengths) != samples:
            raise ValueError(f"expected one length for each of the {samples} samples, got {len(lengths)}")
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.drop_last = drop_last
        self.epoch = 0
        self.skip = 0  # samples of this rank that the current epoch has behind it

    @property
    def world(self) -> tuple[int, int]:
        """World size and rank, read late: a loader may be made before the processes know each other."""
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_world_size(), distributed.get_rank()
        return 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, or stay where the present one is."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.skip = 0

    def __len__(self) -> int:
        size = self.world[0]
        return self.samples // size if self.drop_last else math.ceil(self.samples / size)

    def __iter__(self) -> Iterator[int]:
        size, rank = self.world
        order = self.global_order(size)
        order = np.resize(order, len(self) * size)  # cuts the end off, or repeats from the start
        skip, self.skip = self.skip, 0
        yield from order[rank::size][skip:].tolist()

    def global_order(self, size: int) -> NDArray[np.int64]:
        """Return the order of all samples for a world of this size, as a numpy array of indices."""
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.samples) if self.shuffle else np.arange(self.samples)
        if self.lengths is None:
            return order
        batch = self.batch_size * size
        pools = [order[start : start + POOL * batch] for start in range(0, self.samples, POOL * batch)]
        order = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        full = self.samples // batch
        batches = order[: full * batch].reshape(full, batch)
        if self.shuffle:
            batches = generator.permutation(batches)
        whole: NDArray[np.int64] = np.concatenate([batches.reshape(-1), order[full * batch :]])
        return whole


class ResumableLoader(DataLoader[object]):
    """A DataLoader that goes on at the very batch where a checkpoint was written.

    Lightning stores its `state_dict` in the checkpoint and gives it back on resume. Random draws inside worker
    processes are the one thing that is not restored: draw them in `collate_fn` with `num_workers=0`, or in the model.

    Args:
        dataset: Data set with a length.
        batch_size: Samples of one batch on one rank.
        seed: Seed of the order.
        shuffle: Draw a new order each epoch.
        lengths: Length of each sample; given, samples of similar length share a global batch.
        drop_last: Leave out the last batch when it is not full.
        sampler: Another order, which Lightning passes for `overfit_batches`; it is not resumed.
        options: Further arguments of `torch.utils.data.DataLoader`.

    >>> loader = ResumableLoader(range(6), batch_size=2, seed=0)
    >>> batches = iter(loader)
    >>> first, state = next(batches), loader.state_dict()
    >>> other = ResumableLoader(range(6), batch_size=2, seed=0)
    >>> other.load_state_dict(state)
    >>> [batch.tolist() for batch in other] == [batch.tolist() for batch in batches]
    True
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        *,
        seed: int = 0,
        shuffle: bool = True,
        lengths: Sequence[int] | None = None,
        drop_last: bool = False,
        sampler: Any = None,
        **options: Any,
    ) -> None:
        if sampler is None:
            samples = _length(dataset)
            sampler = DataOrder(samples, batch_size, seed=seed, shuffle=shuffle, lengths=lengths, drop_last=drop_last)
        self._done = 0  # batches of the current epoch that were handed out
        options.setdefault("generator", torch.Generator())  # of its own: the global one must not move
        super().__init__(dataset, batch_size, sampler=sampler, drop_last=drop_last, **options)

    def __iter__(self) -> Iterator[object]:  # type: ignore[override]
        # a generator runs at its first batch, when Lightning has set the epoch
        order = self.sampler
        self._done = 0
        if isinstance(order, DataOrder):
            self._done = order.skip // order.batch_size
            state = np.random.SeedSequence([order.seed, order.epoch, order.world[1]]).generate_state(1)
            self.generator.manual_seed(int(state[0]))  # the workers' seeds come from it
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the position: epoch, batches done, and what must not change for the position to mean the same."""
        order = self.sampler
        if not isinstance(order, DataOrder):
            return {}
        size = order.world[0]
        return {
            "epoch": order.epoch,
            "batches": self._done,
            "seed": order.seed,
            "samples": order.samples,
            "global_batch": order.batch_size * size,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; a finished epoch leads to the start of the next.

        Raises:
            RunError: When the data, the seed, or inside an epoch the global batch, are not those of the state.
        """
        order = self.sampler
        if not state or not isinstance(order, DataOrder):
            return
        now = self.state_dict()
        inside = 0 < state["batches"] < len(self)
        for key, text in (("samples", "samples"), ("seed", "as seed"), ("global_batch", "samples in a global batch")):
            if now[key] != state[key] and (key != "global_batch" or inside):
                raise RunError(
                    f"the checkpoint was written with {state[key]} {text}, now there are {now[key]}: "
                    "the order of the data would differ; use the same data, seed, batch size and devices"
                )
        order.set_epoch(state["epoch"] + (state["batches"] >= len(self)))
        order.skip = state["batches"] * order.batch_size if inside else 0


def _is_stateful(loader: object) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _length(dataset: Sized) -> int:
    return len(dataset)


class RandomStates(Callback):
    """Saves the random states of Python, numpy and torch of every rank, and restores them when training goes on.

    It also puts every `ResumableLoader` in its saved place once more: Lightning forgets to when the module reads
    `trainer.estimated_stepping_batches` in `configure_optimizers`, which makes the loaders before the state is read.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, object] | None = None
        self._places: list[dict[str, int]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all ranks; every rank must call this, as Lightning does."""
        states: list[object] = [random_state()]
        if distributed.is_available() and distributed.is_initialized():
            states = [None] * distributed.get_world_size()
            distributed.all_gather_object(states, random_state())
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts."""
        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
        ranks = state_dict["ranks"]
        self._loaded = ranks[rank] if rank < len(ranks) else None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the loaders' places until training starts."""
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        self._places = loop.get("state_dict", {}).get("combined_loader", [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore them, after everything that draws numbers on the way to the first batch."""
        stateful = [loader for loader in CombinedLoader(trainer.train_dataloader).flattened if _is_stateful(loader)]
        for loader, place in zip(stateful, self._places, strict=False):
            if isinstance(loader, ResumableLoader):
                loader.load_state_dict(place)
        self._places = []
        if self._loaded is not None:
            restore_random_state(self._loaded)
            self._loaded = None


def random_state() -> dict[str, Any]:
    """Return the random states of this process as values that load with `weights_only=True`."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (whatever draws from it must be resumed)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the random states of this process to what `random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])


def verify_checkpoint(path: Path) -> None:
    """Check that a Lightning checkpoint is whole: the sums of its parts, and that it loads without running code.

    Raises:
        RunError: With the reason.
    """
    if path.is_dir():  # a sharded checkpoint of FSDP or DeepSpeed: its own loader checks it
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise RunError(f"checkpoint {path} is damaged: {damaged} does not have the content it was saved with")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError) as error:
        raise RunError(f"checkpoint {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    except Exception as error:  # pickle.UnpicklingError and whatever a hostile file provokes
        raise RunError(f"checkpoint {path} is refused: {type(error).__name__} while loading it") from error
    missing = {"pytorch-lightning_version", "state_dict", "loops"} - set(content if isinstance(content, dict) else {})
    if missing:
        raise RunError(f"checkpoint {path} is no Lightning training checkpoint: it has no {', '.join(sorted(missing))}")


def newest_valid_checkpoint(folder: Path, report: Callable[[str], object] = print) -> Path | None:
    """Return the newest checkpoint under a folder that passes `verify_checkpoint`.

    Args:
        folder: Searched with everything below it.
        report: Called with one sentence for each checkpoint that is damaged, of a finished training too.

    Returns:
        Its path, or None when there is none.
    """
    found = sorted(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    newest: Path | None = None
    for path in found:
        try:
            verify_checkpoint(path)
        except RunError as error:
            report(f"skipped: {error}")
        else:
            newest = newest or path
    return newest
