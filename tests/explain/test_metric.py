"""The metrics collect what the explainers get: from a Trainer, in batches, and from two processes."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from explain import ExplainError, GapExplainer, ModelGap, ModelGapExplainer, PerformanceGap
from explain.report import GapReport
from tests.explain.train_metric import ROWS, domain, main

QUICK = {"learners": "linear", "folds": 2}
ROOT = Path(__file__).parents[2]


def direct():
    """The same reports without any metric."""
    frames, losses = [], None
    for number in (0, 1):
        x, y = (tensor.double().numpy() for tensor in domain(number).tensors)
        preds = torch.from_numpy(x).float().sum(1).sigmoid().double().numpy()
        frames.append(pd.DataFrame({"w": x[:, 0], "z": x[:, 1], "label": y, "prediction": preds}))
        losses = frames[-1].assign(first=(preds - y) ** 2, second=(0.5 - y) ** 2)[["w", "z", "first", "second"]]
    gap = GapExplainer(["w"], loss="brier", n_bins=4, **QUICK).fit(*frames).report_
    return gap, ModelGapExplainer(loss="given", **QUICK).fit(losses).report_


def numbers(report):
    return np.array(
        [[term.value, term.low, term.high] for term in (*report.aggregate, *report.covariate, *report.outcome)]
    )


@pytest.mark.filterwarnings("ignore:.*test_dataloader.*")
def test_a_trainer_collects_what_the_explainers_explain(tmp_path):
    main(tmp_path, 1)
    for name, expected in zip(("gap", "models"), direct(), strict=True):
        report = GapReport.from_json((tmp_path / f"{name}0.json").read_text())
        np.testing.assert_allclose(numbers(report), numbers(expected), atol=1e-5)
        assert report.mode == expected.mode


@pytest.mark.slow
def test_two_processes_share_their_rows(tmp_path):
    command = [sys.executable, "-m", "tests.explain.train_metric", str(tmp_path), "2"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=250)
    for name, expected in zip(("gap", "models"), direct(), strict=True):
        texts = [(tmp_path / f"{name}{rank}.json").read_text() for rank in (0, 1)]
        assert texts[0] == texts[1]
        np.testing.assert_allclose(numbers(GapReport.from_json(texts[0])), numbers(expected), atol=1e-5)


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(80, 2, generator=generator), torch.rand(80, generator=generator)


def collect(metric, rows, sizes=(80,)):
    start = 0
    for size in sizes:
        x, loss = rows[0][start : start + size], rows[1][start : start + size]
        metric.update(x, loss=loss, domain=(torch.arange(start, start + size) % 2))
        start += size
    return metric


def given(**options):
    return PerformanceGap(["w", "z"], baseline=["w"], loss="given", outcome="loss", **QUICK, **options)


def test_batches_do_not_matter_and_reset_forgets(rows):
    whole = collect(given(), rows)
    parts = collect(given(), rows, (30, 1, 49))
    assert parts.compute().to_json() == whole.compute().to_json()
    assert whole.compute() is whole.compute()  # cached
    whole.reset()
    with pytest.raises(ExplainError, match="nothing was collected"), pytest.warns(UserWarning, match="before the"):
        whole.compute()


def test_a_metric_can_be_copied_pickled_and_called(rows):
    metric = collect(given(), rows)
    expected = metric.compute().to_json()
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):  # noqa: S301 (our own bytes)
        assert twin.compute().to_json() == expected
    called = given()
    assert called(rows[0], loss=rows[1], domain=torch.arange(80) % 2) is None
    assert called.compute().to_json() == expected


def test_classes_and_categories():
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([torch.randn(ROWS, generator=generator), torch.arange(ROWS) % 4], 1)
    preds = torch.rand(ROWS, 3, generator=generator).softmax(1)
    target = torch.arange(ROWS) % 3
    metric = PerformanceGap(["w", "kind"], categorical=["kind"], baseline=["w"], loss="log", n_bins=2, **QUICK)
    metric.update(x, preds, target, domain=torch.arange(ROWS) // 4 % 2)
    report = metric.compute()
    expected = -preds.log()[torch.arange(ROWS), target].mean()
    assert sum(report.totals[end] for end in ("source", "target")) / 2 == pytest.approx(float(expected), abs=1e-6)
    assert [term.name for term in report.outcome] == ["recalibration", "kind"]


def test_refusals(rows):
    x, loss = rows
    metric = given()
    with pytest.raises(ExplainError, match=r"features have the shape \(80, 1\)"):
        metric.update(x[:, :1], loss=loss, domain=0)
    with pytest.raises(ExplainError, match="a column has 79 rows and the features 80"):
        metric.update(x, loss=loss[1:], domain=0)
    with pytest.raises(ExplainError, match="takes the loss of every row"):
        metric.update(x, loss, loss, domain=0)
    with pytest.raises(ExplainError, match="takes preds and target, and no loss"):
        PerformanceGap(["w", "z"], baseline=["w"]).update(x, loss=loss, domain=0)
    with pytest.raises(ExplainError, match="categorical names 'y', but the features are w, z"):
        ModelGap(["w", "z"], categorical=["y"])
    with pytest.raises(TypeError, match="foldz"):
        PerformanceGap(["w", "z"], foldz=3)
