"""metrics.csv goes on after a kill in the middle of a line, and after a test alone."""

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from recipes.running import execute
from recipes.running.folder import RunFolder
from recipes.running.metrics import CsvMetrics, lost_rows, read_metrics
from recipes.running.trainer import TrainerConfig, build_trainer


def write(path, phase="", steps=3):
    log = CsvMetrics(path, phase)
    for step in range(steps):
        log.log_metrics({"loss": 1.5 + step, "epoch": 0}, step)


@pytest.mark.parametrize("cut", range(1, 8))
def test_half_a_last_line_is_left_out(tmp_path, cut):
    path = tmp_path / "metrics.csv"
    write(path)
    whole = path.read_text()
    path.write_text(whole[:-cut])
    assert [row["step"] for row in read_metrics(path)] == ["0", "1"]
    log = CsvMetrics(path)
    log.log_metrics({"loss": 3.5, "epoch": 0}, 2)
    assert path.read_text() == whole


def test_garbage_at_the_end_is_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    write(path, "student")
    with path.open("ab") as file:
        file.write(b"\0\0\xff,,,,,,,\n")
    assert [row["step"] for row in read_metrics(path)] == ["0", "1", "2"]


def test_a_finished_phase_that_is_tested_again_keeps_its_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    write(path, "teacher")
    CsvMetrics(path, "student").log_metrics({"loss": 9.0, "epoch": 0}, 0)
    tested = CsvMetrics(path, "teacher")
    tested.log_metrics({"test/accuracy": 0.5, "epoch": 0}, 0)  # a new trainer stands at 0
    assert [(row["phase"], row["step"]) for row in read_metrics(path)] == [
        *(("teacher", str(step)) for step in range(3)),
        ("student", "0"),
        ("teacher", "2"),
    ]
    again = CsvMetrics(path, "teacher")
    again.log_metrics({"test/accuracy": 0.5, "epoch": 0}, 0)
    rows = read_metrics(path)
    assert len(rows) == 5
    assert rows[-1] == {"phase": "teacher", "step": "2", "test/accuracy": "0.5", "epoch": "0"}


def test_a_row_of_a_test_stays_before_those_of_the_next_phase(tmp_path):
    path = tmp_path / "metrics.csv"
    write(path, "teacher")
    CsvMetrics(path, "teacher").log_metrics({"test/accuracy": 0.5, "epoch": 1}, 3)
    CsvMetrics(path, "student").log_metrics({"loss": 9.0, "epoch": 0}, 0)
    before = path.read_text()
    CsvMetrics(path, "teacher").log_metrics({"test/accuracy": 0.5, "epoch": 0}, 0)  # resumed: a new trainer stands at 0
    assert path.read_text() == before


class Rarely(BoringModel):
    def training_step(self, batch, batch_idx):
        found = super().training_step(batch, batch_idx)
        self.log("train/loss", found["loss"])
        self.log("train/summed", torch.ones(()), reduce_fx="sum", on_epoch=True)
        if batch_idx == 1:
            self.log("train/rare", found["loss"])
        return found


def test_a_row_holds_what_was_logged_at_its_step_and_no_older_value(tmp_path):
    config = TrainerConfig(accelerator="cpu", devices=1, max_epochs=1, limit_train_batches=4, limit_val_batches=0)
    config.log_every_n_steps, config.enable_progress_bar, config.enable_checkpointing = 1, False, False
    build_trainer(config, RunFolder(tmp_path, "toy", quiet=True), "toy").fit(Rarely())
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [bool(row.get("train/loss")) for row in rows] == [True, True, True, True, False]
    assert [bool(row.get("train/rare")) for row in rows] == [False, True, False, False, False]
    assert float(rows[-1]["train/summed_epoch"]) == 4


@pytest.fixture
def two_phases(tmp_path):
    """A file with the rows of a finished phase and those of one that was killed."""
    first, second = (CsvMetrics(tmp_path / "metrics.csv", phase) for phase in ("mood", "topic"))
    for step in range(4):
        first.log_metrics({"train/loss": 0.5 - step}, step)
    first.finalize("success")
    for step in range(3):
        second.log_metrics({"train/loss": 2.0 * step, "seconds": 1.0}, step)
    return tmp_path / "metrics.csv"


def test_rows_that_are_as_they_were_are_not_missed(two_phases):
    assert lost_rows(two_phases) == []
    again = CsvMetrics(two_phases, "topic")
    again.log_metrics({"train/loss": 2.0, "seconds": 1.5}, 1)
    assert lost_rows(two_phases) == []


@pytest.mark.parametrize(
    ("old", "new"), [("mood,2,-1.5", "mood,2,-1.25"), ("mood,3,-2.5,\n", "")], ids=["changed", "lost"]
)
def test_rows_of_a_finished_phase_that_are_not_as_they_were_are_told(two_phases, capsys, old, new):
    text = two_phases.read_text()
    assert old in text
    two_phases.write_text(text.replace(old, new))
    assert lost_rows(two_phases) == ["mood"]
    execute._tell_lost_rows(two_phases)
    assert f"{two_phases} is not what it was: rows of mood were changed or lost" in capsys.readouterr().err


def test_a_phase_that_is_trained_on_from_an_earlier_step_is_not_missed(two_phases):
    logger = CsvMetrics(two_phases, "topic")
    logger.log_metrics({"train/loss": 6.0, "seconds": 1.0}, 3)
    logger.finalize("failed")  # interrupted
    CsvMetrics(two_phases, "topic").log_metrics({"train/loss": 2.0, "seconds": 1.0}, 1)  # and then killed
    assert lost_rows(two_phases) == []
