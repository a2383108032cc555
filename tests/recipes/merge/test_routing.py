"""A router that is trained further from the middle of an epoch ends as one that was never interrupted."""

import shutil

import pytest
import torch
from lightning.pytorch import Callback

from recipes.merge import routing
from recipes.merge.routing import RouterTraining, train_router
from recipes.running.folder import RunFolder
from recipes.running.trainer import build_trainer
from tests.reliability.compare import differences

STEPS = 4  # of an epoch


class Keep(Callback):
    """Keeps a checkpoint of every batch."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.path / f"{trainer.global_step}.ckpt")


def features(seed):
    generator = torch.Generator().manual_seed(seed)
    tasks = torch.arange(32) % 2
    return torch.randn(32, 5, generator=generator) + tasks[:, None], tasks


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
@pytest.mark.parametrize("step", [3, STEPS, STEPS + 1])
def test_a_router_goes_on_as_if_it_had_not_been_interrupted(tmp_path, monkeypatch, step):
    parts = {split: features(seed) for seed, split in enumerate(("train", "validation", "test"))}
    options = RouterTraining(kind="mlp", epochs=3, batch_size=8)

    def keeping(config, folder, name, callbacks):
        return build_trainer(config, folder, name, callbacks=[*callbacks, Keep(tmp_path / "kept")])

    monkeypatch.setattr(routing, "build_trainer", keeping)
    unbroken = train_router(options, parts, 2, 0, RunFolder(tmp_path / "one", "toy", quiet=True))
    monkeypatch.undo()
    place = tmp_path / "two/checkpoints/router/interrupted.ckpt"
    place.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "kept" / f"{step}.ckpt", place)
    resumed = train_router(options, parts, 2, 0, RunFolder(tmp_path / "two", "toy", quiet=True, resume=place))
    assert differences(dict(unbroken.router.state_dict()), dict(resumed.router.state_dict())) == []
    assert unbroken.numbers == resumed.numbers
