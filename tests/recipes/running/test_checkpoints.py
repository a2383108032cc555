"""Checkpoints and files are written beside their place, whole, under the user's umask, and a full disk is named."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from recipes.errors import RunError, unforeseen
from recipes.running.callbacks import BestWeights
from recipes.running.checkpoints import WholeCheckpoints
from recipes.running.execute import _interrupted
from recipes.running.files import PART, remove_parts, write_text
from recipes.running.folder import RunFolder
from recipes.running.seals import STAMP, damage, stamp
from recipes.running.trainer import TrainerConfig, build_trainer
from tests.reliability.compare import differences


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_modes_are_the_umasks(tmp_path, umask):
    write_text(tmp_path / "new/recipe.yaml", "a: 1\n")
    WholeCheckpoints().save_checkpoint({"a": torch.ones(2)}, tmp_path / "one.ckpt")
    assert stat.S_IMODE((tmp_path / "new/recipe.yaml").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "one.ckpt").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o750


def test_a_recipes_checkpoints_do_not_pass_through_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/proc/nowhere")
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    config = TrainerConfig(accelerator="cpu", devices=1, max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    config.enable_progress_bar = config.logger = False
    trainer = build_trainer(config, RunFolder(tmp_path, "toy", quiet=True))
    trainer.fit(BoringModel())
    [written] = (tmp_path / "checkpoints").iterdir()
    assert torch.load(written, weights_only=True)["global_step"] == 2


def short(folder, epochs):
    config = TrainerConfig(accelerator="cpu", devices=1, max_epochs=epochs, limit_train_batches=2, limit_val_batches=1)
    config.enable_progress_bar = config.logger = config.enable_model_summary = False
    return build_trainer(config, RunFolder(folder, "toy", quiet=True))


def test_weights_alone_do_not_tell_where_the_training_was_broken(tmp_path):
    trainer = short(tmp_path, 2)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(tmp_path / "unbroken.ckpt", weights_only=True)
    [last] = (tmp_path / "checkpoints").iterdir()
    resumed = short(tmp_path, 2)
    resumed.fit(BoringModel(), ckpt_path=last)
    resumed.save_checkpoint(tmp_path / "resumed.ckpt", weights_only=True)
    one, two = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("unbroken", "resumed"))
    assert differences(one, two) == []


def test_the_checkpoint_before_the_newest_goes_when_a_run_was_killed_before_it_could_remove_it(tmp_path):
    short(tmp_path, 1).fit(BoringModel())
    [first] = (tmp_path / "checkpoints").iterdir()
    kept = first.read_bytes()
    trainer = short(tmp_path, 2)
    trainer.fit(BoringModel(), ckpt_path=first)
    [newest] = (tmp_path / "checkpoints").iterdir()
    first.write_bytes(kept)
    os.utime(first, ns=(0, 0))
    short(tmp_path, 2).fit(BoringModel(), ckpt_path=newest)
    assert list((tmp_path / "checkpoints").iterdir()) == [newest]


def test_the_best_weights_survive_a_resumption(tmp_path):
    class Waving(BoringModel):
        def validation_step(self, batch, batch_idx):
            self.log("validation/loss", [0.5, 0.1, 0.4][self.current_epoch])

    def train(folder, epochs, **options):
        torch.manual_seed(0)
        best, trainer = BestWeights("validation/loss"), short(folder, epochs)
        trainer.callbacks.insert(0, best)
        trainer.fit(Waving(), **options)
        return best

    unbroken = train(tmp_path / "one", 3)
    train(tmp_path / "two", 2)
    [second] = (tmp_path / "two" / "checkpoints").iterdir()
    resumed = train(tmp_path / "two", 3, ckpt_path=second)
    assert resumed.lowest == unbroken.lowest == pytest.approx(0.1)
    assert differences(dict(unbroken.weights), dict(resumed.weights)) == []


def test_a_plugin_of_ones_own_is_kept(tmp_path):
    plugin = {"class_path": "lightning.pytorch.plugins.AsyncCheckpointIO"}
    config = TrainerConfig(accelerator="cpu", devices=1, plugins=[plugin], logger=False)
    trainer = build_trainer(config, RunFolder(tmp_path, "toy", quiet=True))
    assert type(trainer.strategy.checkpoint_io).__name__ == "AsyncCheckpointIO"


@pytest.mark.parametrize("content", [b"old", None])
def test_a_full_disk_leaves_the_old_checkpoint_and_names_the_file(tmp_path, monkeypatch, content):
    path = tmp_path / "one.ckpt"
    if content:
        path.write_bytes(content)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        WholeCheckpoints().save_checkpoint({"a": torch.ones(2)}, path)
    assert caught.value.filename == str(path)
    assert unforeseen(caught.value) == f"the disk is full: {path}; free some space and start again"
    assert (path.read_bytes() if content else list(tmp_path.iterdir())) == (content or [])


def test_a_file_that_cannot_grow_is_an_error_of_that_file(tmp_path, nursery):
    lines = [
        "import resource, signal, sys, torch",
        "from recipes.running.checkpoints import WholeCheckpoints",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))",
        "try:",
        "    WholeCheckpoints().save_checkpoint({'a': torch.ones(100_000)}, 'big.ckpt')",
        "except OSError as error:",
        "    print(error.filename)",
    ]
    [done] = nursery.run(("-c", "\n".join(lines)), folder=tmp_path)
    assert done.stdout == "big.ckpt\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_a_living_ones_kept(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    dead, alive = tmp_path / f".a.ckpt.{child.pid}{PART}", tmp_path / f".b.ckpt.{os.getppid()}{PART}"
    for path in (dead, alive, tmp_path / ".hidden"):
        path.touch()
    remove_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, ".hidden"}


def test_an_interruption_that_closing_a_logger_turns_into_another_error_is_one(front, monkeypatch, request):
    from tests.recipes import toy

    # A process that was started in the background is deaf to Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def closing(*_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise OSError("Writer is closed")  # noqa: B904 - as TensorBoard does

    monkeypatch.setattr(toy, "run", closing)
    done = front("r.yaml", "--out", "o", r="recipe: toy\n")
    assert (done.code, done.err) == (130, "interrupted; go on with: python -m recipes.run r.yaml --resume --out o\n")
    assert not _interrupted(OSError("Writer is closed"))
    assert not _interrupted(RunError("no"))


def test_the_trainer_of_plain_lightning_is_left_alone():
    io = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu").strategy.checkpoint_io
    assert not isinstance(io, WholeCheckpoints)
    assert Path("checkpoints").exists() is False


def test_a_stamp_does_not_list_what_a_killed_stamping_left(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    (tmp_path / "a.bin").write_bytes(b"a")
    (tmp_path / f".{STAMP}.{child.pid}{PART}").touch()
    stamp(tmp_path)
    assert list(json.loads((tmp_path / STAMP).read_text())["files"]) == ["a.bin"]
    assert damage(tmp_path) == ""
