"""What the pre-flight accepts, the run does not refuse for its configuration: here is what it must refuse."""

import numpy as np
import pytest

from recipes.data.sources import check_task
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError
from recipes.fields import FieldError
from recipes.running.trainer import TrainerConfig, check_trainer

HPO, CSP, DISTILL = "hpo_tiny.yaml", "csp_tiny.yaml", "distill_tiny.yaml"
TEXTS = (
    "data.source=task & data.task={name: spam} & student={model: shipped:minilm} & teacher={model: shipped:minilm}"
    " & data.path= & data.rows=0 & data.test_rows=0"
)
RISK = "estimation.outcome=risk & loss=squared & model={kind: predictions, columns: [hours]}"
REFUSED = [
    (HPO, "seed=-1", "seed: expected a number >= 0 and <= 4294967295, got -1"),
    (CSP, "seed=-1", "seed: expected a number >= 0"),
    (DISTILL, "seed=4294967296", "seed: expected a number >= 0 and <= 4294967295, got 4294967296"),
    ("explain_tiny.yaml", "seed=-1", "seed: expected a number >= 0"),
    ("finetune_tiny.yaml", "seed=-1", "seed: expected a number >= 0"),
    (HPO, "seeds=4294967297", "seeds: expected seed + seeds to stay below"),
    (HPO, "trainer.strategy=dpp", "trainer.strategy: expected one of auto, ddp, "),
    (HPO, "trainer.accelerator=gpuu", "trainer: You selected an invalid accelerator name: `accelerator='gpuu'`"),
    (HPO, "trainer.precision=transformer-engine", "trainer: Requirement 'transformer_engine"),
    (HPO, "trainer.devices=0", "trainer: `Trainer(devices=0)` value is not a valid input"),
    (HPO, "trainer.profiler=none", "trainer: When passing string value for the `profiler`"),
    (HPO, "trainer.max_time=soon", "trainer: `Timer(duration='soon')` is not a valid duration"),
    (HPO, "trainer.callbacks={class_path: os.system}", "trainer.callbacks: "),
    (HPO, "trainer.logger=[{class_path: no.Such}]", "trainer.logger: "),
    (HPO, "trainer.barebones=true", "trainer"),
    (HPO, "trainer.limit_test_batches=0", "trainer.limit_test_batches: expected more than 0, since the test score"),
    (HPO, "trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch: expected a number >= 1, got 0"),
    (HPO, "trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches: expected a number >= 1, got 0"),
    (HPO, "trainer.val_check_interval=0", "trainer.val_check_interval: expected a number > 0, got 0"),
    (HPO, "trainer.val_check_interval=999", "trainer.val_check_interval: expected at most episodes.updates_per_epoch"),
    (HPO, "trainer.limit_train_batches=0.01", "trainer.limit_train_batches: 0.01 of the "),
    (HPO, "trainer.limit_val_batches=0.5", "trainer.limit_val_batches: 0.5 of the 1 validation batches is less than"),
    (HPO, "trainer.limit_test_batches=0.5", "trainer.limit_test_batches: 0.5 of the 1 test batches is less than one"),
    (HPO, "trainer.overfit_batches=0.01", "trainer.overfit_batches: 0.01 of the "),
    (HPO, "trainer.limit_train_batches=0", "trainer.limit_train_batches: 0 would train nothing; give more than 0"),
    (HPO, "trainer.max_steps=0", "trainer.max_steps: 0 would train nothing; give more than 0"),
    (CSP, "trainer.limit_train_batches=0.01", "trainer.limit_train_batches: 0.01 of the 4 train batches is less"),
    (CSP, "trainer.limit_val_batches=0.5", "trainer.limit_val_batches: 0.5 of the 1 validation batches is less than"),
    (DISTILL, "trainer.limit_train_batches=0.001", "trainer.limit_train_batches: 0.001 of the "),
    (DISTILL, "trainer.limit_test_batches=0.0001", "trainer.limit_test_batches: 0.0001 of the "),
    (DISTILL, "trainer.val_check_interval=9999", "trainer.val_check_interval: expected at most "),
    (HPO, "trainer.min_epochs=9", "trainer.min_epochs: expected at most max_epochs, 2, got 9"),
    (HPO, "trainer.max_epochs=null", "trainer.max_epochs: expected a number of epochs, trainer.max_steps or"),
    (HPO, "trainer.devices='7'", "episodes in groups of group_size"),
    (HPO, "trainer.num_nodes=7", "episodes in groups of group_size"),
    (CSP, "trainer.strategy=dpp", "got 'dpp'; did you mean 'ddp'?"),
    (CSP, "trainer.max_epochs=3", "trainer.max_epochs: expected a number that divides adaptation.iterations, 4,"),
    (CSP, "trainer.max_epochs=-1", "trainer.max_epochs: expected a number that divides adaptation.iterations"),
    (CSP, "trainer.gradient_clip_val=1.0", "trainer.gradient_clip_val: expected none"),
    (CSP, "trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches: expected 1"),
    (CSP, "trainer.devices=7", "adaptation.episodes: "),
    (CSP, "adaptation.constraint=gate & adaptation.pool=2", "adaptation (csp): pool is 2"),
    (DISTILL, "trainer.precision=transformer-engine", "trainer: Requirement 'transformer_engine"),
    (DISTILL, "trainer.devices=7", "changes.batch_size: "),
    (DISTILL, "trainer.accumulate_grad_batches=7", "changes.batch_size: "),
    (DISTILL, "trainer.max_epochs=-1", "trainer.max_epochs: expected a number of epochs, or trainer.max_steps, got -1"),
    (DISTILL, "trainer.limit_test_batches=0", "trainer.limit_test_batches: expected more than 0"),
    (DISTILL, "changes.mixup=0.2 & changes.batch_size=33", "mixup pairs the images of a batch, so it must be even"),
    (DISTILL, "data.classes=3", "labels go from 0 to 9, but there are 3 classes"),
    (DISTILL, "data.rows=99999", "fewer than the 99999 asked for"),
    (DISTILL, "changes.batch_size=4096", "training rows on 1 processes do not fill one batch of 4096"),
    (
        DISTILL,
        "methods={crd: {}} & " + TEXTS,
        "methods.crd: crd needs the class of every",
    ),
    (
        DISTILL,
        "methods={review: {}} & " + TEXTS,
        "methods.review: review needs student_channels",
    ),
    ("distill_lm_tiny.yaml", "methods={dist: {}}", "methods.dist: in chunks a language model learns from hard and one"),
    ("distill_grid_tiny.yaml", "compare.tuning_seed=-1", "compare.tuning_seed: expected a number >= 0"),
    ("explain_tiny.yaml", "label=wage", "data: no column is called 'wage'; kind gss has year"),
    (
        "explain_tiny.yaml",
        RISK,
        "estimation.outcome: expected loss for a loss that is not of a finite label, got 'risk'",
    ),
    ("finetune_tiny.yaml", "trainer.strategy=dpp", "got 'dpp'; did you mean 'ddp'?"),
    ("finetune_tiny.yaml", "trainer.max_epochs=null", "trainer.max_epochs: expected a number of epochs, or"),
    ("finetune_tiny.yaml", "trainer.limit_val_batches=0", "trainer.limit_val_batches: expected more than 0"),
    ("merge_tiny.yaml", "trainer.devices=0", "trainer: `Trainer(devices=0)` value is not a valid input"),
]


@pytest.mark.parametrize(("file", "words", "sentence"), REFUSED, ids=[f"{f[:-5]} {w[:50]}" for f, w, _ in REFUSED])
def test_a_configuration_that_no_run_could_take_is_refused_by_the_check(front, tmp_path, file, words, sentence):
    done = front(file, *words.split(" & "), "--check", "--quiet")
    assert done.code == 2, done.err
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("t.csv", "text,class\nhello,a\n", "has no column 'label'; it has text, class"),
        ("t.csv", "text,label\n,a\n", "row 1: text column 'text' is ''"),
        ("t.csv", "text,label\nhello,\n", "row 1: label column 'label' is ''"),
        ("t.csv", "", "is empty; give a header and rows"),
        ("t.jsonl", '{"text": "hello"}\n', "has no column 'label'"),
        ("t.jsonl", "[" * 100_000, "cannot be read as jsonl"),
        ("t.parquet", "no table", "cannot be read as parquet"),
    ],
)
def test_tables_are_read_by_header_and_first_rows(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    source = TaskSource("a", name.rpartition(".")[2], str(tmp_path / name))
    with pytest.raises(RecipeError, match=sentence) as caught:
        check_task(source)
    assert "\n" not in str(caught.value)


def test_an_unknown_strategy_is_refused_without_lightnings_own_words():
    with pytest.raises(
        RecipeError, match=r"^trainer\.strategy: expected one of auto, .*, got 'ddpp'; did you mean 'ddp'\?$"
    ):
        check_trainer(TrainerConfig(strategy="ddpp"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_clipping_that_is_no_number_is_told_what_is_one(value):
    with pytest.raises(FieldError, match=f"gradient_clip_val: expected a finite number >= 0, got {value}"):
        TrainerConfig(gradient_clip_val=value)


def test_building_the_trainer_leaves_no_trace(tmp_path, monkeypatch):
    import os

    import torch

    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}
    config = TrainerConfig(
        accelerator="cpu", devices=2, num_nodes=3, deterministic=True, benchmark=True, logger=[logger]
    )
    assert check_trainer(config) == 6
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert dict(os.environ) == before
    assert not list(tmp_path.iterdir())


def test_recorded_data_of_csp_are_checked_by_its_header(front, tmp_path):
    np.savez(tmp_path / "data.npz", observation=np.zeros((2, 7), np.float32), action=np.zeros(2, int), t=np.arange(2))
    done = front("csp_tiny.yaml", "data.path=data.npz", "baselines=[]", "sweep={}", "--check")
    assert done.code == 2
    assert "data.path: data.npz has no episode; required are" in done.err
