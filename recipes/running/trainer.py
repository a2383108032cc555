"""The `trainer:` block: the signature of `lightning.Trainer` as plain values, and the trainer built from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from recipes.errors import RecipeError
from recipes.fields import FieldError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger

    from recipes.running.folder import RunFolder

Plugin = dict[str, Any]  # class_path and init_args of a subclass of Lightning's base
PLUGGABLE = ("logger", "callbacks", "strategy", "accelerator", "plugins", "profiler")


@dataclass
class TrainerConfig:
    """Arguments of lightning.Trainer, with its names and defaults.

    Attributes:
        accelerator: Kind of device: auto, cpu, gpu, cuda, mps, tpu or hpu.
        strategy: How several devices share the work: auto, ddp, fsdp, deepspeed and others.
        devices: Number of devices, their indices, or auto.
        num_nodes: Number of machines.
        precision: Number format of the computation; null is 32-true.
        logger: Loggers besides metrics.csv and TensorBoard, as class_path and init_args; false turns all of them off.
        callbacks: Further callbacks, as class_path and init_args.
        fast_dev_run: Run this many batches of everything, as a trial.
        max_epochs: Stop after this many epochs.
        min_epochs: Do not stop before this many epochs.
        max_steps: Stop after this many optimizer steps; -1 is no limit.
        min_steps: Do not stop before this many optimizer steps.
        max_time: Stop after this time: DD:HH:MM:SS, or a mapping such as {hours: 2}.
        limit_train_batches: Use this number (int) or share (float) of the training batches.
        limit_val_batches: Use this number (int) or share (float) of the validation batches.
        limit_test_batches: Use this number (int) or share (float) of the test batches.
        limit_predict_batches: Use this number (int) or share (float) of the prediction batches.
        overfit_batches: Train on this number (int) or share (float) of the training batches over and over.
        val_check_interval: Validate after this number (int) or share (float) of an epoch's batches, or this time.
        check_val_every_n_epoch: Validate every so many epochs.
        num_sanity_val_steps: Validation batches to try before training.
        log_every_n_steps: Log every so many steps.
        enable_checkpointing: Write checkpoints.
        enable_progress_bar: Show the progress.
        enable_model_summary: Print a summary of the model.
        accumulate_grad_batches: Batches whose gradients are added up for one step.
        gradient_clip_val: Limit of the gradient, by norm or by value.
        gradient_clip_algorithm: What the limit is for: norm or value.
        deterministic: Use deterministic algorithms only; warn to be told where there is none.
        benchmark: Let cuDNN try its algorithms.
        inference_mode: Evaluate under inference_mode instead of no_grad.
        use_distributed_sampler: Give each process its share of the data.
        profiler: Profiler: simple, advanced, pytorch, or class_path and init_args.
        detect_anomaly: Look for the operation that makes a NaN gradient.
        barebones: Run without anything that costs time, for measurements.
        plugins: Plugins, by name or as class_path and init_args.
        sync_batchnorm: Share batch-norm statistics between processes.
        reload_dataloaders_every_n_epochs: Make the loaders anew every so many epochs.
        default_root_dir: Folder for what has no other place; null is the run folder.
        enable_autolog_hparams: Log the hyper-parameters of the module.
        model_registry: Name of a model in a registry to upload checkpoints to.
    """

    accelerator: str | Plugin = "auto"
    strategy: str | Plugin = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: int = 1
    precision: (
        Literal[
            "32-true",
            "16-mixed",
            "bf16-mixed",
            "16-true",
            "bf16-true",
            "64-true",
            "transformer-engine",
            "transformer-engine-float16",
            "64",
            "32",
            "16",
            "bf16",
            64,
            32,
            16,
        ]
        | None
    ) = None
    logger: bool | Plugin | list[Plugin] | None = None
    callbacks: Plugin | list[Plugin] | None = None
    fast_dev_run: int | bool = False
    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: str | dict[str, int] | None = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    limit_predict_batches: int | float | None = None
    overfit_batches: int | float = 0.0
    val_check_interval: int | float | str | dict[str, int] | None = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | None = None
    log_every_n_steps: int | None = None
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    profiler: str | Plugin | None = None
    detect_anomaly: bool = False
    barebones: bool = False
    plugins: str | Plugin | list[str | Plugin] | None = None
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    default_root_dir: str | None = None
    enable_autolog_hparams: bool = True
    model_registry: str | None = None

    def __post_init__(self) -> None:
        for name in PLUGGABLE:
            value = getattr(self, name)
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(item, dict) and (
                    "class_path" not in item or not set(item) <= {"class_path", "init_args"}
                ):
                    where = f"{name}.{index}" if isinstance(value, list) else name
                    raise FieldError(where, f"expected class_path and init_args, got {', '.join(item) or 'nothing'}")


def build_trainer(
    config: TrainerConfig,
    folder: RunFolder,
    name: str = "",
    *,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Trainer:
    """Return the Lightning trainer of one training phase.

    It logs to `metrics.csv` and TensorBoard, keeps the checkpoint of the newest epoch with every random state in it,
    shows its progress through the run folder, and answers Ctrl-C by saving after the current batch.

    Args:
        config: The `trainer:` block.
        folder: The run folder; checkpoints go to `checkpoints/<name>`.
        name: Name of the phase, when a run trains more than once.
        callbacks: Callbacks of the recipe.
        loggers: Loggers of the recipe.

    Returns:
        The trainer.

    Raises:
        RecipeError: When a class of the block is not a subclass of Lightning's base, or Lightning refuses a value.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import TensorBoardLogger

    from recipes.running.callbacks import NewestCheckpoint, PhaseProgress, SaveOnInterrupt
    from recipes.running.metrics import CsvMetrics
    from recipes.running.resume import RandomStates

    arguments = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    arguments |= instantiate(config)
    # Lightning's default prints a table amid the lines of the run, so that a summary is for those who ask.
    arguments["enable_model_summary"] = bool(config.enable_model_summary)
    own: list[object] = [*callbacks, RandomStates()]
    if config.enable_progress_bar is not False and not config.barebones:
        own.append(PhaseProgress(folder, name))
    if config.enable_checkpointing is not False and not config.barebones and not config.fast_dev_run:
        own += [NewestCheckpoint(folder.checkpoints / name), SaveOnInterrupt(folder.checkpoints / name)]
    arguments["callbacks"] = [*own, *_listed(arguments["callbacks"])]
    if config.barebones or config.logger is False:
        arguments["logger"] = False
    else:
        given = _listed(arguments["logger"]) if isinstance(config.logger, dict | list) else []
        board = TensorBoardLogger(folder.path, name="tensorboard", version=name)
        arguments["logger"] = [CsvMetrics(folder.path / "metrics.csv", name), board, *loggers, *given]
    arguments["default_root_dir"] = config.default_root_dir or folder.path
    try:
        return Trainer(**arguments)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise RecipeError(f"trainer: {' '.join(str(error).split())}") from error


def instantiate(config: TrainerConfig) -> dict[str, Any]:
    """Return the objects that the block names by `class_path`, each checked against Lightning's base by jsonargparse.

    Raises:
        RecipeError: When a class does not exist, is no such subclass, or refuses its `init_args`.
    """
    from lightning.pytorch import Callback
    from lightning.pytorch.accelerators import Accelerator
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.profilers import Profiler
    from lightning.pytorch.strategies import Strategy

    bases = {
        "logger": Logger,
        "callbacks": Callback,
        "strategy": Strategy,
        "accelerator": Accelerator,
        "profiler": Profiler,
        "plugins": _plugin_base(),
    }
    built: dict[str, object] = {}
    for name, base in bases.items():
        value = getattr(config, name)
        items = [_instance(base, item, name) if isinstance(item, dict) else item for item in _listed(value)]
        built[name] = items if isinstance(value, list) else (items or [None])[0]
    return built


def _plugin_base() -> Any:
    from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
    from lightning.pytorch.plugins import LayerSync, Precision

    return Precision | ClusterEnvironment | CheckpointIO | LayerSync


def _instance(base: object, value: Plugin, name: str) -> Any:
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    set_parsing_settings(import_path_denylist=[])  # no entry of ours: it makes the engine enforce its own, such as os
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=base)
    try:
        return parser.instantiate(parser.parse_object({"value": value})).value
    except (ArgumentError, ValueError, TypeError) as error:
        raise RecipeError(f"trainer.{name}: {' '.join(str(error).split())}") from error


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
