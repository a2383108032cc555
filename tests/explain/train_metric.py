"""Collect a gap from a Trainer.test on one process or several; run by test_metric.py as a script."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from explain import ModelGap, PerformanceGap

ROWS = 320


def domain(number: int) -> TensorDataset:
    """Two features and a label; in domain 1 the second feature counts the other way round."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(ROWS, 2, generator=generator)
    chance = (x[:, 0] + x[:, 1] * (1 - 2 * number)).sigmoid()
    y = (torch.rand(ROWS, generator=generator) < chance).long()
    return TensorDataset(x, y)


class Tested(lightning.LightningModule):
    """Any module: it collects in `test_step`, from one test loader for each domain."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.ones_(self.layer.weight)
        quick = {"learners": "linear", "folds": 2}
        self.gap = PerformanceGap(["w", "z"], baseline=["w"], loss="brier", n_bins=4, **quick)
        self.models = ModelGap(["w", "z"], **quick)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        preds = self.layer(x)[:, 0].sigmoid()
        self.gap.update(x, preds, y, domain=dataloader_idx)
        if dataloader_idx == 1:
            self.models.update(x, (preds - y).square(), (0.5 - y).square())

    def on_test_epoch_end(self) -> None:
        self.reports = self.gap.compute(), self.models.compute()


def main(out: Path, devices: int) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        enable_checkpointing=False,
        **quiet,
    )
    module = Tested()
    trainer.test(module, [DataLoader(domain(number), batch_size=32) for number in (0, 1)], verbose=False)
    for name, report in zip(("gap", "models"), module.reports, strict=True):
        (out / f"{name}{trainer.global_rank}.json").write_text(report.to_json())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ["PL_DISABLE_FORK"] = "1"
    main(Path(sys.argv[1]), int(sys.argv[2]))
