"""Train a hybrid policy on one process or several; run by test_module.py as a script."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
from safetensors.torch import save_file

from rl.hpo.data import SeedDataModule
from rl.hpo.module import HPOModule

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
    "accelerator": "cpu",
}
SMALL: dict[str, Any] = {"hidden": (8,), "diagnose_every": 2, "entropy_end": 0.01}


def module(**options: Any) -> HPOModule:
    return HPOModule("rl.envs.switched_lqr.switched_lqr", {"dimension": 2, "modes": 2}, **{**SMALL, **options})


def data(**options: Any) -> SeedDataModule:
    sizes = {"updates_per_epoch": 3, "batch_size": 16, "group_size": 4, "validation_episodes": 8, "test_episodes": 8}
    return SeedDataModule(**{**sizes, **options})


def main(out: Path, devices: int) -> None:
    result = {}
    for name, options in {
        "mixed": {"cross": "auto"},
        "branched": {"branch": True, "window": 5},
        "score": {"estimator": "score"},
        "automatic": {"reuse": 0, "stochastic": True},
    }.items():
        trained = module(**options)
        strategy = "ddp" if devices > 1 else "auto"
        fit = lightning.Trainer(max_epochs=2, devices=devices, strategy=strategy, precision="64-true", **QUIET)
        fit.fit(trained, datamodule=data())
        result |= {f"{name}.{key}": value for key, value in trained.state_dict().items()}
        result[f"{name}.cost"] = fit.callback_metrics["validation/cost"]
    if fit.is_global_zero:
        save_file({key: value.clone() for key, value in result.items()}, out)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ["PL_DISABLE_FORK"] = "1"
    main(Path(sys.argv[1]), int(sys.argv[2]))
