"""Mixup and the logs of gradients are functions of where training is, not of what was drawn or logged before."""

import lightning
import numpy as np
import pytest
import torch

from distill import DistillModule
from distill.data import ImageData

CHANGES = {
    "batch_size": 16,
    "epochs": 2,
    "warmup_epochs": 0,
    "mixup": 0.4,
    "cutmix": 1.0,
    "image_size": 8,
    "crop": "none",
    "drop_path": 0.0,
}


class Save(lightning.Callback):
    """Writes a checkpoint in the middle of the second epoch."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 5:
            trainer.save_checkpoint(self.path)


def fit(path, seed, **options):
    """Train two students of digits by plain Lightning; the global generators begin elsewhere with every seed."""
    lightning.seed_everything(seed, verbose=False)
    data = ImageData("digits", regime="A2", changes=CHANGES, classes=10, grey=True, rows=64, test_rows=16, seed=3)
    torch.manual_seed(5)
    common = {"regime": "A2", "changes": CHANGES, "classes": 10, "student_options": {"in_chans": 1}}
    module = DistillModule("small_cnn_4", terms={"hard": {"weight": 1.0}}, log_gradients_every=3, **common)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    logged = []
    module._log_gradients = lambda *_: logged.append(module.global_step + 1)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        log_every_n_steps=1,
        limit_val_batches=0,
        callbacks=[Save(path)],
        **quiet,
    )
    trainer.fit(module, data, **options)
    return torch.cat([p.detach().flatten() for p in module.students.parameters()]), logged


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_distillation_resumed_in_the_middle_of_an_epoch_by_plain_lightning_ends_alike(tmp_path):
    whole, logged = fit(tmp_path / "middle.ckpt", 0)
    again, resumed = fit(tmp_path / "other.ckpt", 1, ckpt_path=tmp_path / "middle.ckpt", weights_only=False)
    assert torch.equal(whole, again)
    assert logged == [1, 4, 7]
    assert resumed == [7]
