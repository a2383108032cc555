"""The table of a merge run: expert, twin and students on every test input, examples, and the user's own columns."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import twinmerge
from recipes.data.own_columns import own_columns
from recipes.data.sources import load_task
from recipes.data.task_source import TaskSource
from recipes.distill.many_heads import save_student, student, teacher
from recipes.distill.schema import Network
from recipes.errors import RunError
from recipes.explain.merged import read_merged
from tests.recipes import tiny

LABELS = {"mood": ("glad", "sad"), "topic": ("food", "sport", "trade")}


@pytest.fixture(scope="module")
def students(merged):
    """An untrained student: the shared expert with the twin's heads."""
    twin = merged.folder / "merge/merged"
    made = student(Network(), teacher(twin, LABELS), twin)
    return {"small": save_student(made, merged.folder / "given/kd/model", twin, {}).parent}


@pytest.fixture(scope="module")
def table(merged, students):
    said = []
    with merged.inside():
        found = read_merged(merged.folder / "merge", said.append, students, examples=True, columns=["number", "who"])
    assert "2 experts, the twin and 1 students" in said[0]
    return found


def test_every_model_has_its_losses_and_the_means_are_the_runs(merged, table):
    rows = json.loads((merged.folder / "merge/result.json").read_text())["rows"]
    losses = [f"{model}_{loss}" for model in ("expert", "twin", "small") for loss in ("zero_one", "brier", "log")]
    assert set(losses) < set(table.columns)
    for task, part in table.groupby("task"):
        assert 1 - part["expert_zero_one"].mean() == pytest.approx(rows["experts"]["tasks"][task], abs=1e-6)
        assert 1 - part["twin_zero_one"].mean() == pytest.approx(rows["routed"]["tasks"][task], abs=1e-6)
    assert (table["source"] == "csv").all()
    assert table["router_confidence"].between(0.5, 1.0).all()  # of two tasks


def test_a_row_is_what_the_folders_say_of_its_text(merged, students, table):
    twin, small = twinmerge.load(merged.folder / "merge/merged"), twinmerge.load(students["small"] / "model")
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(merged.base)
    for at in (0, len(table) - 1):
        row = table.iloc[at]
        names = LABELS[row["task"]]
        assert row["words"] == len(row["text"].split())
        inputs = dict(words([row["text"]], return_tensors="pt"))
        with torch.no_grad():
            for name, model in (("twin", twin), ("small", small)):
                chance = model.classify(**inputs, head=row["task"]).logits[0, : len(names)].softmax(-1)
                assert row[f"{name}_answer"] == f"{row['task']}: {names[int(chance.argmax())]}"
                truth = names.index(row["label"].partition(": ")[2])
                assert row[f"{name}_log"] == pytest.approx(float(-chance[truth].log()), abs=1e-5)
                one = np.eye(len(names))[truth]
                assert row[f"{name}_brier"] == pytest.approx(((chance.numpy() - one) ** 2).sum() / 2, abs=1e-5)
            assert row["router_confidence"] == pytest.approx(float(twin.route(**inputs).max()), abs=1e-5)


def test_ones_own_columns_stand_beside_their_rows(table):
    told = tiny.sentences("mood", 150)
    mood = table[table["task"] == "mood"]
    assert table["number"].dtype.kind == "f"
    for _, row in mood.iterrows():
        assert told[int(row["number"])][0] == row["text"]
        assert row["who"] == row["text"].split()[1]
    assert table[table["task"] == "topic"][["number", "who"]].isna().all().all()  # its file has none


def test_columns_that_cannot_be_told_apart_or_are_nowhere_are_refused(tmp_path):
    lines = [f"text {i},{'ab'[i % 2]},{i}" for i in range(20)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label,n", *lines]))
    (tmp_path / "test.csv").write_text("\n".join(["text,label,n", "one,a,1", "two,b,2", "One,a,5"]))
    source = TaskSource("t", source="folder", path=str(tmp_path), test="test")
    task = load_task(source, 0)
    assert own_columns([source], [task], ["n"])["n"].tolist() == [1, 2, 5]  # by the very text, not by its key
    with pytest.raises(RunError, match="no file of t has a column 'm'"):
        own_columns([source], [task], ["m"])
    (tmp_path / "test.csv").write_text("\n".join(["text,label,n", "one,a,1", "two,b,2", "one,a,5"]))
    with pytest.raises(RunError, match="hold 'one' 2 times with several values of 'n'"):
        own_columns([source], [load_task(source, 0)], ["n"])
    cut = TaskSource("c", source="csv", path=str(tmp_path / "whole.csv"))
    copies = [f"TEXT {i},a,x" for i in range(0, 20, 2)]
    (tmp_path / "whole.csv").write_text("\n".join(["text,label,n", *lines, *copies]))
    found = load_task(cut, 0)
    wanted = [float(text.split()[1]) for text in found.test.texts]  # of copies, the first is kept
    assert own_columns([cut], [found], ["n"])["n"].tolist() == wanted


def test_the_recipe_explains_a_student(merged, students):
    made = {
        "recipe": "explain",
        "mode": "models",
        "data": {"kind": "merge", "path": "merge", "students": {"small": "given/kd"}, "columns": ["who"]},
        "loss": "log",
        "model": {"kind": "losses", "columns": ["twin_log"]},
        "second": {"kind": "losses", "columns": ["small_log"]},
        "groups": {"task": ["task"], "length": ["words"], "router": ["router_confidence"]},
        "estimation": {"learners": "linear", "folds": 2},
    }
    done = merged.run(made, "explained")
    assert done.code == 0, done.err
    result = json.loads((merged.folder / "explained/result.json").read_text())
    with merged.inside():
        frame = read_merged(merged.folder / "merge", lambda _: None, students)
    assert result["totals"]["first"] == pytest.approx(frame["twin_log"].mean())
    assert result["totals"]["second"] == pytest.approx(frame["small_log"].mean())
    for data, said in (
        ({"students": {"twin": "given/kd"}}, "data.students: expected another name than 'twin'"),
        ({"students": {"small": "base"}}, "data.students.small: base holds no student"),
        ({"columns": ["month"]}, "data.columns: no file of mood, topic has a column 'month'"),
        ({"columns": ["words"]}, "data.columns: expected further columns; 'words' is one of the table's own"),
    ):
        refused = merged.run(made | {"data": made["data"] | data}, "z", "--check")
        assert refused.code == 2
        assert said in refused.err


def test_a_plain_frame_has_the_columns_that_it_always_had(table):
    assert isinstance(table, pd.DataFrame)
    always = ["task", "label", "words", "confidence", "entropy"]
    assert always == [name for name in table.columns if name in always]
