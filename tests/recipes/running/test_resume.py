"""Exact resume: an interrupted run ends with the very numbers of an unbroken one."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from lightning.pytorch import Callback, LightningModule
from torch import nn

from recipes.errors import RunError
from recipes.running.folder import RunFolder
from recipes.running.metrics import read_metrics
from recipes.running.resume import (
    DataOrder,
    RandomStates,
    ResumableLoader,
    newest_valid_checkpoint,
    random_state,
    restore_random_state,
    verify_checkpoint,
)
from recipes.running.trainer import TrainerConfig, build_trainer

SAMPLES, BATCH, EPOCHS = 22, 4, 3
STEPS = 6  # batches of an epoch


class Rows(torch.utils.data.Dataset):
    """Fixed samples; each access draws from the global generators, as an augmentation does."""

    def __init__(self, noisy: bool) -> None:
        self.noisy = noisy
        self.x = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = torch.rand(1) + random.random() + np.random.rand() if self.noisy else 0.0  # noqa: NPY002
        return self.x[index] + noise


class Tiny(LightningModule):
    """Two layers with dropout, trained by Adam."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.4), nn.ReLU(), nn.Linear(16, 1))
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.detach().clone())
        loss = self.net(batch).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.net(batch).square().mean() + torch.rand(()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class SaveEverywhere(Callback):
    """Writes a checkpoint after every batch, every validation and every epoch.

    After the last batch Lightning takes the epoch for finished and leaves its validation out: nothing is saved there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step % STEPS:
            trainer.save_checkpoint(self.folder / f"batch{trainer.global_step:02d}.ckpt")

    def on_validation_end(self, trainer, *_):
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"val{trainer.global_step:02d}.ckpt")

    def on_train_epoch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"epoch{trainer.global_step:02d}.ckpt")


def fit(path: Path, *, ckpt: Path | None = None, callbacks=(), workers=0, lengths=None, noisy=True, **config) -> Tiny:
    torch.manual_seed(5 if ckpt is None else 99)  # a resumed run must not depend on how it starts
    random.seed(5 if ckpt is None else 99)
    np.random.seed(5 if ckpt is None else 99)  # noqa: NPY002
    folder = RunFolder(path, "test", quiet=True)
    settings = {"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, "enable_model_summary": False} | config
    trainer = build_trainer(TrainerConfig(**settings, log_every_n_steps=1), folder, callbacks=callbacks)
    model = Tiny()
    loader = ResumableLoader(Rows(noisy), BATCH, seed=3, lengths=lengths, num_workers=workers)
    plain = torch.utils.data.DataLoader(Rows(False), BATCH)  # draws a seed from the global generator at each pass
    trainer.fit(model, loader, plain, ckpt_path=ckpt, weights_only=None if ckpt is None else True)
    return model


def difference(one: Tiny, two: Tiny) -> float:
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("lengths", [None, [index % 7 for index in range(SAMPLES)]], ids=["plain", "lengths"])
def test_resume_from_every_point_is_bit_equal(tmp_path, lengths):
    whole = fit(tmp_path / "whole", callbacks=[SaveEverywhere(tmp_path / "all")], lengths=lengths)
    checkpoints = sorted((tmp_path / "all").glob("*.ckpt"))
    assert len(checkpoints) == EPOCHS * (STEPS + 1)
    for checkpoint in checkpoints:
        again = fit(tmp_path / checkpoint.stem, ckpt=checkpoint, lengths=lengths)
        assert difference(whole, again) == 0, checkpoint.name
        assert all(torch.equal(a, b) for a, b in zip(reversed(whole.seen), reversed(again.seen), strict=False))


def test_resume_with_workers_is_bit_equal(tmp_path):
    whole = fit(tmp_path / "whole", callbacks=[SaveEverywhere(tmp_path / "all")], workers=1, noisy=False, max_epochs=2)
    for name in ("batch03", "batch08", "epoch06"):
        again = fit(tmp_path / name, ckpt=tmp_path / "all" / f"{name}.ckpt", workers=1, noisy=False, max_epochs=2)
        assert difference(whole, again) == 0, name


class Stop(Callback):
    """Stops a run the way a user does."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("step", "number"), [(8, signal.SIGINT), (8, signal.SIGTERM), (5, signal.SIGINT), (17, signal.SIGINT)]
)
def test_interrupted_run_is_saved_and_goes_on_bit_equal(tmp_path, step, number):
    whole = fit(tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", callbacks=[Stop(step, number)])
    checkpoint = newest_valid_checkpoint(tmp_path / "cut" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == {8: "interrupted.ckpt", 5: "epoch=0-step=6.ckpt", 17: "epoch=2-step=18.ckpt"}[step]
    again = fit(tmp_path / "cut", ckpt=checkpoint)
    assert difference(whole, again) == 0
    assert not (checkpoint.parent / "interrupted.ckpt").exists()
    assert read_metrics(tmp_path / "cut" / "metrics.csv") == read_metrics(tmp_path / "whole" / "metrics.csv")


@pytest.mark.parametrize("change", ["row", "removed", "none"])
def test_changed_metrics_are_told_and_the_run_goes_on(tmp_path, capsys, change):
    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", callbacks=[Stop(8, signal.SIGINT)])
    file = tmp_path / "cut" / "metrics.csv"
    if change == "removed":
        file.unlink()
    elif change == "row":
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join([*lines[:2], lines[2].replace(",", ",9", 1), *lines[3:]]))
    capsys.readouterr()
    fit(tmp_path / "cut", ckpt=newest_valid_checkpoint(tmp_path / "cut" / "checkpoints"))
    told = capsys.readouterr().err
    assert ("metrics.csv is not what it was when the checkpoint was written" in told) == (change != "none")
    assert read_metrics(file)[-1]["step"] == "17"


def test_loader_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    state = random.getstate()
    assert sum(len(batch) for batch in ResumableLoader(range(10), 3, seed=1)) == 10
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == state


@given(
    samples=st.integers(1, 60),
    batch=st.integers(1, 5),
    world=st.integers(1, 4),
    epoch=st.integers(0, 3),
    bucketed=st.booleans(),
    drop=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_global_batch_is_the_union_of_the_ranks(*, samples, batch, world, epoch, bucketed, drop):
    lengths = [(7 * index) % 11 for index in range(samples)] if bucketed else None

    def order(size: int, rank: int, batch_size: int) -> list[int]:
        made = _Ranked(samples, batch_size, seed=2, lengths=lengths, drop_last=drop)
        made.place = (size, rank)
        made.set_epoch(epoch)
        return list(made)

    ranks = [order(world, rank, batch) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    single = order(1, 0, batch * world)
    for start in range(0, samples // (batch * world) * batch, batch):
        together = sorted(index for rank in ranks for index in rank[start : start + batch])
        assert together == sorted(single[start * world : (start + batch) * world])
    seen = sorted({index for rank in ranks for index in rank})
    assert drop or seen == list(range(samples))
    assert sorted(single) == list(range(samples))


class _Ranked(DataOrder):
    """An order that believes it is on some rank."""

    place = (1, 0)

    @property
    def world(self) -> tuple[int, int]:
        return self.place


def test_lengths_make_batches_of_similar_length():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 200, 400).tolist()
    spread = []
    for given_lengths in (None, lengths):
        order = list(DataOrder(400, 8, lengths=given_lengths))
        spread.append(np.mean([np.ptp([lengths[index] for index in order[at : at + 8]]) for at in range(0, 400, 8)]))
    assert spread[1] < spread[0] / 10


def test_epochs_and_seeds_differ_and_repeat():
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            order = DataOrder(50, 5, seed=seed)
            order.set_epoch(epoch)
            orders[seed, epoch] = tuple(order)
            assert tuple(order) == orders[seed, epoch]
    assert len(set(orders.values())) == 4


@pytest.mark.parametrize(
    ("change", "word"), [({"samples": 9}, "samples"), ({"seed": 1}, "seed"), ({"global_batch": 8}, "global batch")]
)
def test_position_in_other_data_is_refused(change, word):
    loader = ResumableLoader(range(10), 2, seed=0)
    next(iter(loader))
    with pytest.raises(RunError, match=word):
        loader.load_state_dict(loader.state_dict() | change)


def test_other_batch_size_is_accepted_between_epochs():
    loader = ResumableLoader(range(10), 2, seed=0)
    assert len(list(loader)) == 5
    other = ResumableLoader(range(10), 5, seed=0)
    other.load_state_dict(loader.state_dict() | {"batches": 0, "epoch": 1})
    assert other.state_dict()["epoch"] == 1


def test_overfit_batches_still_works(tmp_path):
    with pytest.warns(UserWarning, match="overfit"):
        model = fit(tmp_path, overfit_batches=2, max_epochs=2)
    assert len(model.seen) == 4


def test_random_states_round_trip(tmp_path):
    torch.save({"state": random_state()}, tmp_path / "state.pt")
    first = (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist())  # noqa: NPY002
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True)["state"])
    assert (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()) == first  # noqa: NPY002
    assert RandomStates().state_dict().keys() == {"ranks"}


@pytest.fixture
def checkpoint(tmp_path):
    fit(tmp_path, max_epochs=1)
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    return path


def test_damaged_checkpoints_are_skipped_and_reported(checkpoint):
    whole = checkpoint.read_bytes()
    folder = checkpoint.parent
    at = next(offset for offset in range(len(whole) // 2, len(whole)) if _is_tensor_byte(whole, offset))
    flipped = bytearray(whole)
    flipped[at] ^= 64
    broken = {
        "flipped.ckpt": bytes(flipped),
        "cut.ckpt": whole[: len(whole) // 2],
        "empty.ckpt": b"",
        "text.ckpt": b"not a checkpoint",
    }
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    torch.save({"weights": torch.ones(2)}, folder / "weights.ckpt")
    torch.save({"hostile": Hostile()}, folder / "hostile.ckpt")
    for offset, name in enumerate([*broken, "weights.ckpt", "hostile.ckpt"], start=1):
        os.utime(folder / name, (2e9 + offset, 2e9 + offset))
        with pytest.raises(RunError, match=name):
            verify_checkpoint(folder / name)
    reports: list[str] = []
    assert newest_valid_checkpoint(folder, reports.append) == checkpoint
    assert len(reports) == 6
    assert not Hostile.ran
    checkpoint.unlink()
    assert newest_valid_checkpoint(folder, reports.append) is None


def _is_tensor_byte(data: bytes, offset: int) -> bool:
    """Say whether a byte lies in the content of a file inside the archive, not in its tables."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            if "/data/" in entry.filename and entry.file_size > 64:
                start = entry.header_offset + 30 + len(entry.filename)
                if data.index(b"PK\x07\x08", start) > offset > data.index(b"PK\x07\x08", start) - entry.file_size:
                    return True
    return False


class Hostile:
    """Would run code when unpickled."""

    ran = False

    def __reduce__(self):
        return (setattr, (Hostile, "ran", True))


def test_a_damaged_checkpoint_of_a_finished_training_is_told_too(tmp_path):
    fit(tmp_path / "run")
    [newest] = (tmp_path / "run" / "checkpoints").glob("*.ckpt")
    older = tmp_path / "run" / "checkpoints" / "first" / "old.ckpt"
    older.parent.mkdir()
    older.write_bytes(newest.read_bytes()[:-100])
    os.utime(older, ns=(0, 0))
    told = []
    assert newest_valid_checkpoint(tmp_path / "run" / "checkpoints", told.append) == newest
    assert len(told) == 1
    assert told[0].startswith(f"skipped: checkpoint {older}")
