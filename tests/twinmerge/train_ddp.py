"""Train a router, then a twin's router and heads, on one process or several; run by test_router.py as a script."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from safetensors.torch import save_file

from tests.twinmerge import tiny
from tests.twinmerge.toy import ToyData
from twinmerge import FeatureDataModule, FinetuneModule, Head, RouterModule, attach


def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    task = torch.arange(44) % 3
    return torch.randn(44, 8, generator=generator) + task[:, None], task


def trainer(devices: int, epochs: int, strategy: str = "ddp", **options: Any) -> lightning.Trainer:
    strategy = strategy if devices > 1 else "auto"
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    settings = {"accelerator": "cpu", "devices": devices, "strategy": strategy, "max_epochs": epochs, **quiet}
    return lightning.Trainer(**settings, **options)


def main(out: Path, devices: int) -> None:
    lightning.seed_everything(0, verbose=False)
    data = features()
    module = RouterModule(8, 3, kind="linear", learning_rate=0.05)
    module.router.standardise(data[0])
    odd = data[0][:43], data[1][:43]  # rows that two processes cannot share equally
    fit = trainer(devices, 3)
    fit.fit(module, datamodule=FeatureDataModule(data, odd, batch_size=8, seed=1))
    result = {f"router.{n}": p.detach().clone() for n, p in module.router.named_parameters()}
    result |= {f"router's {name}": fit.callback_metrics[f"validation/{name}"] for name in ("loss", "accuracy")}

    model = tiny.bert()
    twin = attach(model, tiny.TASKS, tiny.differences(model), tiny.router(32))
    lightning.seed_everything(0, verbose=False)
    twin.heads["spam"] = Head(32, 2)
    tuned = FinetuneModule(twin.train_only("router", "heads", "experts"), question="spam", learning_rate=0.01)
    fit = trainer(devices, 1, "ddp_find_unused_parameters_true", use_distributed_sampler=False)  # the pooler is unused
    fit.fit(tuned, datamodule=ToyData(batch_size=8 // devices))
    result |= {f"twin.{n}": p.detach().clone() for n, p in twin.named_parameters() if p.requires_grad}
    if fit.is_global_zero:
        result["loss"] = fit.callback_metrics["validation/loss"]
        save_file(result, out)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ["PL_DISABLE_FORK"] = "1"
    main(Path(sys.argv[1]), int(sys.argv[2]))
