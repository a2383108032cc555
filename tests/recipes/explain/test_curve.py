"""Many domains from YAML: a column that names them, dates, numbers of rows, files apart; what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from explain import GapCurve
from tests.recipes.explain.survey import people, recipe, run

CURVE = {"data": {"chunk": "value", "target": ""}, "mode": "curve"}


@pytest.fixture
def years(tmp_path):
    """Rows of three years, of which the last has shifted, with a date for each."""
    frames = []
    for seed, shift in enumerate((0.0, 0.0, 2.5)):
        frame = people(160, seed, shift=shift)
        days = pd.date_range(f"{2000 + seed}-01-01", periods=160)
        frames.append(frame.assign(day=days.strftime("%Y-%m-%d"), site=np.array(["x", "y"])[frame.index % 2]))
    pd.concat(frames).to_csv(tmp_path / "both.csv", index=False)
    frames[0].to_csv(tmp_path / "here.csv", index=False)
    pd.concat(frames[1:]).to_csv(tmp_path / "there.csv", index=False)
    return tmp_path


def test_each_year_against_the_first(front, years):
    done = run(front, recipe(**CURVE))
    curve = GapCurve.from_json((years / "out/curve.json").read_text())
    assert curve.to_text() in done.out
    result = json.loads((years / "out/result.json").read_text())
    assert list(result["domains"]) == ["2001", "2002"]
    assert (result["source_rows"], result["target_rows"]) == (160, 320)
    assert {point.domain for point in curve.curve("gap") if point.moved} == {"2002"}
    assert result["domains"]["2002"]["gap"]["value"] == pytest.approx(curve["2002"].totals["gap"], abs=1e-12)
    assert "Shares by variable" in (years / "out/report.html").read_text()
    header = (years / "out/figures/curve.csv").read_text().splitlines()[0]
    assert header == "domain,name,value,se,low,high,low_alone,high_alone,status,moved"


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"column": "day", "source": "< 2001-01-01", "chunk": "year"}, ["2001", "2002"]),
        ({"column": "day", "source": "< 2001-01-01", "target": "< 2002-01-01", "chunk": 80}, None),
        (
            {"path": "here.csv", "target_path": "there.csv", "column": "site", "source": "", "chunk": "value"},
            ["x", "y"],
        ),
    ],
    ids=["dates", "rows", "files"],
)
def test_domains_by_dates_rows_and_files(front, years, data, names):
    losses = {"label": None, "loss": "regret", "model": {"kind": "losses", "columns": ["loss_p"]}}
    estimation = {"estimation": {"outcome": "loss"}, "groups": {"skill": ["skill"]}}
    run(front, recipe(**losses, **estimation, **(CURVE | {"data": CURVE["data"] | data})))
    result = json.loads((years / "out/result.json").read_text())
    assert list(result["domains"]) == (names or ["2001-01-01 to 2001-03-21", "2001-03-22 to 2001-06-09"])
    assert result["loss"] == "regret"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mode": "curve"}, "data.chunk: expected what makes the domains, such as value in mode curve, got ''"),
        ({"data": {"chunk": "value"}}, "data.chunk: expected none in mode domain, got 'value'"),
        (
            {**CURVE, "data": {"chunk": "era"}},
            "data.chunk: expected value, day, week, month, quarter, year or a number",
        ),
        ({**CURVE, "data": {"chunk": 0}}, "data.chunk: expected a number >= 1, got 0"),
        (
            {**CURVE, "data": {"chunk": "value", "column": ""}},
            "data.column: expected the column that tells the domains",
        ),
        ({**CURVE, "data": {"chunk": "value", "source": ""}}, "data.source: expected a value of column 'year', got ''"),
        (
            {**CURVE, "data": {"chunk": "value", "target_path": "there.csv", "target": ""}},
            "data.source: expected nothing beside target_path, got 2000",
        ),
        ({**CURVE, "second": {"kind": "logistic"}}, "second: expected no second model in mode curve"),
        ({**CURVE, "baseline": []}, "baseline: expected at least one column in mode curve"),
    ],
)
def test_a_wrong_recipe_is_refused(front, years, changes, sentence):
    done = front("r.yaml", "--check", r=yaml.safe_dump(recipe(**changes)))
    assert done.code == 2
    assert sentence in done.err


def test_a_column_that_cuts_nothing_ends_the_run(front, years):
    done = front("r.yaml", "--out", "out", r=yaml.safe_dump(recipe(**(CURVE | {"data": {"chunk": "month"}}))))
    assert done.code == 1
    assert "data.chunk: column 'year' holds numbers, but every='month' needs dates" in done.err


def test_metrics_groups_and_the_baseline_term_go_through_a_recipe(front, tables):
    metric = {"label": "label", "loss": "recall", "estimation": {"outcome": "loss"}, "groups": {"skill": ["skill"]}}
    for name in ("here", "there"):
        frame = pd.read_csv(tables / f"{name}.csv").assign(sex=np.array(["f", "m"])[np.arange(300) % 2])
        frame.to_csv(tables / f"{name}.csv", index=False)
    data = {"path": "here.csv", "target_path": "there.csv", "column": "", "source": "", "target": ""}
    run(front, recipe(data=data, by="sex", **metric), "groups")
    result = json.loads((tables / "groups/result.json").read_text())
    assert list(result["domains"]) == ["f", "m"]
    assert result["loss"] == "1 - recall"
    page = (tables / "groups/report.html").read_text()
    assert "from group to group" in page
    assert "Above 0 the group does worse in the target than in the source." in page
    rows = {"loss": "brier", "estimation": {"attribute_baseline": True}, "groups": {"skill": ["skill"]}}
    run(front, recipe(data=data, baseline=["age", "clinic"], **rows), "baseline")
    result = json.loads((tables / "baseline/result.json").read_text())
    parts = [term["value"] for term in result["baseline"].values()]
    assert sum(parts) == pytest.approx(result["aggregate"]["baseline"]["value"], abs=1e-10)
    assert (tables / "baseline/figures/baseline.csv").is_file()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": "auc"}, "estimation.outcome: expected loss for a loss that is not of a finite label, got 'risk'"),
        ({"by": "skill"}, "by: expected a column that is neither in baseline nor in groups, got 'skill'"),
        ({**CURVE, "by": "city", "groups": {"skill": ["skill"]}}, "by: expected none in mode curve, got 'city'"),
        (
            {"mode": "gap-of-gaps", "loss": "f1", "second": {"kind": "predictions", "columns": ["q"]}},
            "loss: expected a loss of rows where two models are compared, which 'f1' is not",
        ),
        ({"loss": "quantile", "model": {"kind": "logistic", "columns": []}}, "loss: expected a loss for classes"),
        (
            {"loss": "auc", "estimation": {"outcome": "loss", "attribute_baseline": True}},
            "estimation: attribute_baseline needs a loss of rows, which the loss 'auc' is not",
        ),
    ],
)
def test_what_a_metric_and_groups_do_not_go_with_is_refused(front, tables, changes, sentence):
    done = front("r.yaml", "--check", r=yaml.safe_dump(recipe(**changes)))
    assert done.code == 2
    assert sentence in done.err
