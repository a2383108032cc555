"""The `trainer:` block: the signature of `lightning.Trainer` as plain values, and the trainer built from it."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from recipes.errors import RecipeError
from recipes.fields import FieldError, check_positive, check_range
from recipes.running.files import METRICS

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger

    from recipes.running.folder import RunFolder

Plugin = dict[str, Any]  # class_path and init_args of a subclass of Lightning's base
# Least values that Lightning does not check itself, and fails of in the middle of a training.
LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "gradient_clip_val": 0,
}
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
        for name, low in LEAST.items():
            value = getattr(self, name)
            if isinstance(value, int | float):
                check_range(value, name, low=low)
        every = self.val_check_interval
        if isinstance(every, int | float):
            check_positive(every, "val_check_interval")
        if self.min_epochs and self.max_epochs is not None and 0 <= self.max_epochs < self.min_epochs:
            raise FieldError("min_epochs", f"expected at most max_epochs, {self.max_epochs}, got {self.min_epochs}")

    @property
    def endless(self) -> bool:
        """Whether nothing says when a training ends: Lightning would take 1000 epochs, or go on for ever."""
        unlimited = self.max_epochs is None or self.max_epochs == -1
        return unlimited and self.max_steps == -1 and self.max_time is None and not self.fast_dev_run


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
    from lightning.fabric.plugins import TorchCheckpointIO
    from lightning.pytorch.loggers import TensorBoardLogger

    from recipes.running.callbacks import NewestCheckpoint, PhaseProgress, SaveOnInterrupt
    from recipes.running.checkpoints import WholeCheckpoints
    from recipes.running.metrics import CsvMetrics, FreshValues, MetricsSeal
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
        arguments["logger"] = [CsvMetrics(folder.path / METRICS, name), board, *loggers, *given]
        arguments["callbacks"] += [MetricsSeal(folder.path / METRICS, name), FreshValues()]
    arguments["default_root_dir"] = config.default_root_dir or folder.path
    trainer = _trainer(arguments)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # neither the user's own nor a strategy's
        trainer.strategy.checkpoint_io = WholeCheckpoints()
    return trainer


def _trainer(arguments: dict[str, Any]) -> Trainer:
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import StrategyRegistry

    strategy, known = arguments["strategy"], ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(strategy, str) and strategy not in known:
        near = difflib.get_close_matches(strategy, known, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(
            f"trainer.strategy: expected one of {', '.join(known)}, got {strategy!r}; {guess}".rstrip("; ")
        )
    try:
        return Trainer(**arguments)
    except Exception as error:  # Lightning and its plugins refuse values, devices and missing packages in many ways
        said = " ".join(str(error).split()) or type(error).__name__
        if said.startswith("No supported gpu backend"):
            said = "this machine has no gpu that torch can use; check and run where there is one, or set accelerator"
        raise RecipeError(f"trainer: {said}") from error


def check_trainer(config: TrainerConfig, *, scores: Sequence[str] = ()) -> int:
    """Build the trainer of a pre-flight, without loggers and without leaving a trace, and throw it away.

    Args:
        config: The `trainer:` block.
        scores: Splits, of `validation` and `test`, whose scores the recipe reads from the trainer.

    Returns:
        Number of processes that train together.

    Raises:
        RecipeError: As :func:`build_trainer`, when the scores would be missing, and when nothing would be trained.
    """
    import warnings

    import lightning.pytorch  # noqa: F401 (first: it turns its own logging up)
    import torch

    from recipes.running.quiet import hush_libraries

    _refuse_nothing(config)
    needed = {"limit_test_batches": "test", "limit_val_batches": "validation"}
    for name, split in needed.items():
        if split in scores and getattr(config, name) == 0:
            raise RecipeError(f"trainer.{name}: expected more than 0, since the {split} score is reported, got 0")
    if scores and config.barebones:
        raise RecipeError("trainer.barebones: expected false, since scores are reported, got true")
    hush_libraries()
    arguments = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    before, flags = dict(os.environ), _flags(torch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            own = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
            silent = {} if config.barebones else own
            return int(_trainer(arguments | instantiate(config, loggers=False) | silent).world_size)
        finally:
            torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = flags[2:]
            for key in set(os.environ) - set(before):
                del os.environ[key]
            os.environ.update(before)


def _refuse_nothing(config: TrainerConfig) -> None:
    """Refuse a trainer that would train nothing by a setting for something else.

    Raises:
        RecipeError: When no update would be made, and `max_epochs` is not 0, which says so.
    """
    if config.max_epochs == 0 or config.fast_dev_run:
        return
    nothing = [key for key in ("limit_train_batches", "max_steps") if getattr(config, key) == 0]
    if config.overfit_batches:  # stands in for the limit
        nothing = [key for key in nothing if key != "limit_train_batches"]
    if nothing:
        raise RecipeError(
            f"trainer.{nothing[0]}: 0 would train nothing; give more than 0, or say so with trainer.max_epochs: 0"
        )


def _flags(torch: Any) -> tuple[bool, bool, bool, bool]:
    cudnn = torch.backends.cudnn
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warns, cudnn.benchmark, cudnn.deterministic


def instantiate(config: TrainerConfig, *, loggers: bool = True) -> dict[str, Any]:
    """Return the objects that the block names by `class_path`, each checked against Lightning's base by jsonargparse.

    Args:
        config: The block.
        loggers: Make loggers too, which may open files and connections; else they are checked and left as they are.

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
        made = loggers or name != "logger"
        items = [_instance(base, item, name, made) if isinstance(item, dict) else item for item in _listed(value)]
        built[name] = items if isinstance(value, list) else (items or [None])[0]
    return built


def _plugin_base() -> object:
    from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
    from lightning.pytorch.plugins import LayerSync, Precision

    return Precision | ClusterEnvironment | CheckpointIO | LayerSync


def _instance(base: object, value: Plugin, name: str, made: bool) -> object:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(import_path_denylist=[])  # no entry of ours: it makes the engine enforce its own, such as os
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=base)
    try:
        parsed = parser.parse_object({"value": value})
        return parser.instantiate(parsed).value if made else value
    except Exception as error:  # the named class is the user's, and may refuse its arguments in any way
        raise RecipeError(f"trainer.{name}: {' '.join(str(error).split())}") from error


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]
