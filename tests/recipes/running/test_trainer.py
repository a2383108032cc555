"""The `trainer:` block is Lightning's own signature, and builds Lightning's own trainer."""

import dataclasses
import inspect

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from recipes.errors import RecipeError
from recipes.running.folder import RunFolder
from recipes.running.metrics import CsvMetrics, read_metrics
from recipes.running.trainer import TrainerConfig, build_trainer, instantiate

EARLY = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "loss", "patience": 2}}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path, "toy", quiet=True)


def test_names_order_and_defaults_are_those_of_lightning():
    theirs = {name: entry.default for name, entry in inspect.signature(Trainer.__init__).parameters.items()}
    del theirs["self"]
    ours = {field.name: field.default for field in dataclasses.fields(TrainerConfig)}
    assert ours.keys() == theirs.keys()
    assert ours == theirs
    assert all(type(ours[name]) is type(theirs[name]) for name in ours)


def test_every_argument_has_help():
    from recipes.front.schema import fields_of

    assert [field.name for field in fields_of(TrainerConfig) if not field.help] == []


def test_values_reach_the_trainer(folder):
    config = TrainerConfig(accelerator="cpu", devices=1, max_epochs=3, gradient_clip_val=0.5, precision="bf16-mixed")
    trainer = build_trainer(config, folder, "sms")
    assert (trainer.max_epochs, trainer.gradient_clip_val, trainer.precision) == (3, 0.5, "bf16-mixed")
    assert [type(logger).__name__ for logger in trainer.loggers] == ["CsvMetrics", "TensorBoardLogger"]
    assert trainer.checkpoint_callback.dirpath == str(folder.checkpoints / "sms")
    assert "PhaseProgress" in [type(callback).__name__ for callback in trainer.callbacks]


def test_switches_turn_things_off(folder):
    config = TrainerConfig(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer = build_trainer(config, folder)
    assert trainer.loggers == []
    names = {type(callback).__name__ for callback in trainer.callbacks}
    assert names.isdisjoint({"NewestCheckpoint", "SaveOnInterrupt", "PhaseProgress"})
    assert build_trainer(TrainerConfig(accelerator="cpu", barebones=True), folder).barebones
    assert build_trainer(TrainerConfig(accelerator="cpu", fast_dev_run=True), folder).fast_dev_run == 1


def test_classes_are_built_and_checked(folder):
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder.path / "csv")}}
    config = TrainerConfig(
        accelerator="cpu",
        callbacks=[EARLY],
        logger=[logger],
        profiler={"class_path": "lightning.pytorch.profilers.SimpleProfiler"},
        strategy={"class_path": "lightning.pytorch.strategies.SingleDeviceStrategy", "init_args": {"device": "cpu"}},
    )
    trainer = build_trainer(config, folder)
    stopper = next(callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping))
    assert (stopper.monitor, stopper.patience) == ("loss", 2)
    assert [type(logger).__name__ for logger in trainer.loggers] == ["CsvMetrics", "TensorBoardLogger", "CSVLogger"]
    assert type(trainer.profiler).__name__ == "SimpleProfiler"
    assert instantiate(TrainerConfig(callbacks=EARLY))["callbacks"].patience == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"callbacks": [{"class_path": "os.system"}]}, "trainer.callbacks: .*os.system"),
        ({"callbacks": {"class_path": "lightning.pytorch.loggers.CSVLogger"}}, "trainer.callbacks: .*subclass"),
        ({"callbacks": [EARLY | {"init_args": {"monitr": "loss"}}]}, "trainer.callbacks: .*monitr"),
        ({"logger": {"class_path": "no.such.Thing"}}, "trainer.logger: .*no.such.Thing"),
        ({"strategy": "dpp"}, "trainer.strategy: .*dpp"),
        ({"accelerator": "gpuu"}, "trainer: .*gpuu"),
        ({"max_steps": -5}, "trainer: .*max_steps"),
        ({"devices": 0, "accelerator": "cpu"}, "trainer: .*devices"),
    ],
)
def test_wrong_values_are_one_sentence(folder, config, words):
    with pytest.raises(RecipeError, match=words) as error:
        build_trainer(TrainerConfig(**config), folder)
    assert "\n" not in str(error.value)


def test_metrics_file_grows_columns_and_continues(tmp_path):
    path = tmp_path / "metrics.csv"
    first = CsvMetrics(path, "a")
    for step in range(4):
        first.log_metrics({"loss": step / 2}, step)
    first.log_metrics({"val": float("nan"), "acc": 1.0}, 3)
    CsvMetrics(path, "b").log_metrics({"loss": 9.0}, 0)
    again = CsvMetrics(path, "a")  # a run that goes on at step 2
    again.log_metrics({"loss": 7.0}, 2)
    again.log_metrics({"loss": 8.0}, 3)
    assert read_metrics(path) == [
        {"phase": "a", "step": "0", "loss": "0.0"},
        {"phase": "a", "step": "1", "loss": "0.5"},
        {"phase": "b", "step": "0", "loss": "9.0"},
        {"phase": "a", "step": "2", "loss": "7.0"},
        {"phase": "a", "step": "3", "loss": "8.0"},
    ]
