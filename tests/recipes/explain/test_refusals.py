"""What the explain recipe refuses: wrong recipes, and rows that cannot be explained."""

import pandas as pd
import pytest
import yaml

from tests.recipes.explain.survey import recipe

ONE_DOMAIN = {
    "mode": "models",
    "data": {"path": "here.csv", "column": "", "source": "", "target": ""},
    "second": {"kind": "predictions", "columns": ["q"]},
    "baseline": [],
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "estimation.n_bins: expected none in mode models, as no source risk is binned, got 4"),
        ({"estimation": {"n_bins": 20, "trim": 0.1}}, "estimation.trim: expected none in mode models, as there is one"),
        ({"estimation": {"n_bins": 20, "outcome": "loss"}}, "estimation.outcome: expected none in mode models"),
        ({"baseline": ["age"]}, "baseline: expected none in mode models, where no domain shifts, got ['age']"),
        ({"data": ONE_DOMAIN["data"] | {"max_target": 9}}, "data.max_target: expected none in mode models"),
        ({"train_share": 0.3}, "train_share: expected none where no model is trained, got 0.3"),
    ],
)
def test_a_key_that_one_domain_does_not_use_is_refused(front, tables, changes, sentence):
    made = recipe(**(ONE_DOMAIN | changes))
    if "estimation" not in changes and sentence.split(":")[0] != "estimation.n_bins":
        made["estimation"].pop("n_bins")
    done = front("r.yaml", "--check", r=yaml.safe_dump(made))
    assert done.code == 2
    assert sentence in done.err


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"mode": "gap-of-gaps", "second": {"kind": "predictions", "columns": ["q"]}}, "mode gap-of-gaps"),
        ({"loss": "squared", "label": "number"}, "a loss that is not of a finite label"),
        ({"label": None, "model": {"kind": "losses", "columns": ["loss_p"]}}, "a loss that is not of a finite label"),
    ],
)
def test_a_shift_of_the_risk_is_refused_where_there_is_no_risk(front, tables, changes, wanted):
    done = front("r.yaml", "--check", r=yaml.safe_dump(recipe(**changes)))
    assert done.code == 2
    assert f"estimation.outcome: expected loss for {wanted}, got 'risk'" in done.err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"groups": {}}, "groups: expected at least one group"),
        ({"groups": {"a": []}}, "groups: expected at least one group"),
        ({"groups": {"a": ["skill"], "b": ["skill"]}}, "groups: column 'skill' is listed twice"),
        ({"baseline": ["skill"]}, "groups: column 'skill' is listed twice"),
        ({"baseline": []}, "baseline: expected at least one column in mode domain"),
        ({"mode": "models"}, "second: expected a second model in mode models"),
        ({"second": {"kind": "logistic"}}, "second: expected no second model in mode domain"),
        (
            {"mode": "models", "second": {"kind": "predictions", "columns": ["q"]}},
            "data: expected one domain: leave out column and target_path in mode models",
        ),
        (
            {"data": {"column": "", "source": "", "target": ""}},
            "data: expected a column or target_path in mode domain",
        ),
        (
            {"loss": "l1"},
            "loss: expected zero_one, brier, log, squared, quantile, f1, recall, auc, calibration, got 'l1'",
        ),
        ({"loss": "squared", "model": {"kind": "logistic", "columns": []}}, "loss: expected a loss for classes"),
        ({"label": None}, "label: expected a column unless losses are columns, got ''"),
        ({"model": {"kind": "losses"}}, "label: expected a column unless losses are columns, got 'label'"),
        (
            {"model": {"kind": "losses", "columns": ["p", "q"]}, "label": None},
            "model.columns: expected one column for kind losses",
        ),
        (
            {"mode": "gap-of-gaps", "second": {"kind": "losses", "columns": ["q"]}},
            "second.kind: expected losses for both models or for none",
        ),
        ({"model": {"kind": "logistic"}}, "model.columns: expected none for kind logistic"),
        ({"model": {"columns": []}}, "model.columns: expected at least one column for kind predictions"),
        ({"model": {"options": {"C": 1}}}, "model.options: expected none for kind predictions"),
        (
            {"model": {"kind": "logistic", "columns": [], "options": {"max_itr": 1}}},
            "model.options.max_itr: LogisticRegression does not take it; did you mean 'max_iter'?",
        ),
        ({"data": {"path": ""}}, "data.path: expected a path exactly for csv, parquet and merge"),
        ({"baseline": ["Age"]}, "both.csv has no column 'Age'; its header has age, skill, city"),
        ({"data": {"column": "when"}}, "both.csv has no column 'when'"),
        ({"groups": {"recalibration": ["skill"]}}, "groups: expected another name than 'recalibration'"),
        ({"groups": {"all": ["skill", "p"]}}, "column 'p' is a label, prediction, loss, cluster or weight"),
        ({"categorical": ["year"]}, "categorical: expected columns of baseline or groups, got 'year'"),
        ({"ordinal": {"year": ["2000", "2001"]}}, "ordinal: expected columns of baseline or groups, got 'year'"),
        ({"data": {"path": "gone.csv"}}, "data.path: no file 'gone.csv'; give a csv file"),
        ({"data": {"target_path": "there.csv"}}, "data.column: expected none beside target_path"),
        ({"data": {"target": ""}}, "data.target: expected a value of column 'year', got ''"),
        ({"data": {"column": ""}}, "data.source: expected nothing without a column, got 2000"),
        ({"data": {"target": ">= soon"}}, "data.target: expected a number after >="),
        ({"data": {"source": "<=50K"}}, "got '<=50K'; a value that itself begins with <= must be renamed in the table"),
        ({"data": {"kind": "acs", "path": ""}}, "data.column: expected state for kind acs, got 'year'"),
        (
            {"data": {"kind": "gss", "path": "", "target_path": "x", "column": "", "source": "", "target": ""}},
            "data.target_path: expected none for kind gss",
        ),
        ({"data": {"max_source": -1}}, "data.max_source: expected a number >= 0"),
        ({"train_share": 0.95}, "train_share: expected a number > 0 and <= 0.9"),
        ({"estimation": {"folds": 1}}, "estimation.folds: expected a whole number >= 2"),
        ({"estimation": {"level": 1.0}}, "estimation.level: expected a finite number > 0 and < 1"),
        ({"estimation": {"n_jobs": 0}}, "estimation.n_jobs: expected a whole number <= -1 or a whole number >= 1"),
        ({"estimation": {"trim": 0.5}}, "estimation.trim: expected a finite number >= 0 and < 0.5"),
    ],
)
def test_a_wrong_recipe_is_refused(front, tables, changes, sentence):
    done = front("r.yaml", "--out", "out", r=yaml.safe_dump(recipe(**changes)))
    assert done.code == 2
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tables / "out").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": {"source": 1999}}, "data.source: no row has year 1999; the column holds 2000, 2001"),
        ({"data": {"path": "bare.csv"}}, "bare.csv has no rows"),
        ({"data": {"max_target": 12}}, "the target has 12 usable rows, but 2 folds need 20"),
        ({"model": {"columns": ["guess"]}}, "they must be probabilities"),
        ({"model": {"kind": "logistic", "columns": [], "options": {"C": -1.0}}}, "the logistic cannot be trained"),
        ({"groups": {"sides": ["skill", "year"]}}, "AUC of each alone: 'sides' 1.000"),
    ],
)
def test_rows_that_cannot_be_explained_end_the_run_with_one_sentence(front, tables, changes, sentence):
    pd.read_csv(tables / "both.csv", nrows=0).to_csv(tables / "bare.csv", index=False)  # a header and no rows
    done = front("r.yaml", "--out", "out", r=yaml.safe_dump(recipe(**changes)))
    assert done.code == 1
    *progress, said = done.err.splitlines()
    assert sentence in said
    assert all(line.startswith("training:") for line in progress)
    assert not (tables / "out/result.json").exists()


def test_labels_are_looked_at_before_a_model_is_trained_on_them(front, tables):
    done = front(
        "r.yaml", "--out", "out", r=yaml.safe_dump(recipe(label="number", model={"kind": "logistic", "columns": []}))
    )
    assert done.code == 1
    assert done.err.splitlines()[0].startswith("column 'number' holds 600 different labels, more than 50 classes")
    assert "training" not in done.err
