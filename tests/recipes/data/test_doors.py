"""What a reader's own files can be: their forms, missing values, rows of one split in another, contradictions."""

import json

import pandas as pd
import pytest

from recipes.data.sources import check_task, load_task
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError
from tests.recipes.data.test_sources import frame, one, write


def test_test_rows_that_stand_in_train_are_counted_and_refused(tmp_path):
    write(frame(40), tmp_path / "train.csv")
    copied = frame(40, start=4).assign(text=frame(40, start=4)["text"].str.upper())
    write(copied, tmp_path / "test.csv")  # 36 of its rows stand in train
    fields = {"source": "folder", "path": str(tmp_path), "test": "test"}
    message = "36 of 40 test rows stand in train too.*'overlap: drop'"
    with pytest.raises(RunError, match=message):
        load_task(TaskSource("mine", **fields), seed=0)
    with pytest.raises(RecipeError, match=message):
        check_task(TaskSource("mine", **fields))
    task = load_task(TaskSource("mine", **fields, overlap="drop"), seed=0)
    assert len(task.test) == 4
    assert task.notes == ("36 of 40 test rows that stand in train too were left out",)
    assert len(load_task(TaskSource("mine", **fields, overlap="keep"), seed=0).test) == 40


def test_test_rows_that_settings_were_chosen_on_are_refused_too(tmp_path):
    for split, start in (("train", 0), ("validation", 100), ("test", 100)):
        write(frame(20, start), tmp_path / f"{split}.csv")
    source = TaskSource("mine", source="folder", path=str(tmp_path), validation="validation", test="test")
    with pytest.raises(RunError, match="20 of 20 test rows stand in train or validation too"):
        load_task(source, seed=0)


def test_contradictory_labels_are_counted(tmp_path):
    data = pd.concat([frame(), frame(3).assign(label="good")])  # rows 0 and 2 were bad
    task = load_task(TaskSource("mine", source="csv", path=str(write(data, tmp_path / "rows.csv"))), seed=0)
    assert task.notes[0] == "2 texts of train have contradictory labels, the first of each is kept"
    assert task.notes[1] == "3 rows of train whose text occurs before were left out"


def test_forms_of_files(tmp_path):
    data, wanted = frame().assign(text=frame()["text"] + " — naïve"), None
    data.to_csv(tmp_path / "semicolon.csv", index=False, sep=";")
    data.to_csv(tmp_path / "tab.tsv", index=False, sep="\t")
    data.to_csv(tmp_path / "bom.csv", index=False, encoding="utf-8-sig")
    data.to_csv(tmp_path / "old.csv", index=False, encoding="cp1252")
    rows = data.to_dict(orient="records")
    (tmp_path / "array.json").write_text("\n " + json.dumps(rows, indent=1))
    (tmp_path / "bom.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    forms = [
        ("tab.tsv", {}),
        ("semicolon.csv", {"delimiter": ";"}),
        ("bom.csv", {}),
        ("old.csv", {"encoding": "cp1252"}),
        ("array.json", {"source": "jsonl"}),
        ("bom.jsonl", {"source": "jsonl"}),
    ]
    for name, fields in forms:
        source = TaskSource("mine", path=str(tmp_path / name), **{"source": "csv", **fields})
        task = load_task(source, 0)
        wanted = wanted or task
        assert task == wanted
        assert "28 rows to train" in check_task(source)
    for name, fields, message in (
        ("semicolon.csv", {"source": "csv"}, "its header is separated by ';', set 'delimiter:'"),
        ("old.csv", {"source": "csv"}, "set 'encoding:' to that of the file"),
        ("array.json", {"source": "csv"}, "cannot be read as csv"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_task(TaskSource("mine", path=str(tmp_path / name), **fields))
    (tmp_path / "odd.jsonl").write_text('["a", "b"]\n')
    with pytest.raises(RecipeError, match="element 1 is no object"):
        check_task(TaskSource("mine", source="jsonl", path=str(tmp_path / "odd.jsonl")))
    for key, value in (("delimiter", ";;"), ("encoding", "no such")):
        with pytest.raises(FieldError, match="expected"):
            TaskSource("mine", source="csv", path="a.csv", **{key: value})


def test_large_files_are_opened_and_their_first_rows_read(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.data.sources.READ_IN_FULL", 0)
    monkeypatch.setattr("recipes.data.tables.FIRST", 5)
    for form in ("csv", "jsonl", "parquet"):
        path = write(frame(), tmp_path / f"rows.{form}")
        assert check_task(TaskSource("mine", source=form, path=str(path))).endswith("are as they should be")
        bad = write(one(frame(), label=None), tmp_path / f"bad.{form}")
        with pytest.raises(RecipeError, match="row 1: label column 'label'"):
            check_task(TaskSource("mine", source=form, path=str(bad)))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("missing", ["<NA>", "nan", " "])
def test_what_stands_for_a_missing_value_is_no_class(tmp_path, form, missing):
    path = write(one(frame(), label=missing), tmp_path / f"rows.{form}")
    with pytest.raises(RunError, match=r"row 1: label column 'label' is .*'drop_missing: true'"):
        load_task(TaskSource("mine", source=form, path=str(path)), seed=0)
    task = load_task(TaskSource("mine", source=form, path=str(path), drop_missing=True), seed=0)
    assert task.labels == ("bad", "good")
    assert task.notes == ("1 rows without a text or label were left out",)


def test_a_nullable_column_has_no_class_of_its_own(tmp_path):
    data = frame().assign(label=pd.array([pd.NA, *([1, 0] * 19), 1], dtype="Int64"))
    data.to_parquet(tmp_path / "rows.parquet")
    source = TaskSource("mine", source="parquet", path=str(tmp_path / "rows.parquet"), drop_missing=True)
    assert load_task(source, seed=0).notes[0].startswith("1 rows")
