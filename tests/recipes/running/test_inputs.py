"""A user's file that changes between check and end, or before a run goes on, is refused by name."""

import os

import numpy as np
import pytest

from recipes.data.tables import own_files
from recipes.data.task_source import TaskSource
from recipes.errors import RunError
from recipes.running import seals
from recipes.running.folder import RunFolder
from recipes.running.inputs import added, changed, note, read_noted
from tests.recipes.csp.test_recipe import TINY, maze_file, run as run_csp


def test_what_is_noted_is_compared_by_content_where_times_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(seals, "SETTLED", 0)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "notes.md").write_text("of no use to a reader")
    noted = note([tmp_path, tmp_path / "absent"])
    assert [name.rpartition("/")[2] for name in noted] == ["model.safetensors"]
    os.utime(tmp_path / "model.safetensors")
    assert changed(noted) == ""
    (tmp_path / "model.safetensors").write_bytes(b"weighty")
    assert changed(noted) == f"{tmp_path / 'model.safetensors'} has changed"
    (tmp_path / "model.safetensors").unlink()
    assert changed(noted) == f"{tmp_path / 'model.safetensors'} is gone"


def test_of_a_tree_names_and_sizes_are_noted(tmp_path):
    photo = tmp_path / "train/cat/1.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"1234")
    tree = tmp_path / "train/**"
    noted = note(path for path in [tree, tmp_path / "val/**"])
    assert list(noted) == [str(tree)]
    assert noted[str(tree)][:2] == [1, 4]
    os.utime(photo)
    assert changed(noted) == added(noted, [tree]) == ""
    photo.rename(photo.with_name("2.jpg"))
    assert changed(noted) == f"{tmp_path / 'train'} has changed"


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '{"a": ["x", 1, 2, 3]}', "[" * 100_000])
def test_a_damaged_note_is_told_from_an_empty_one(tmp_path, text):
    assert read_noted(tmp_path) is None
    (tmp_path / "inputs.json").write_text(text)
    assert read_noted(tmp_path) is None
    (tmp_path / "inputs.json").write_text("{}")
    assert read_noted(tmp_path) == {}


def test_a_run_whose_input_changed_meanwhile_reports_nothing(tmp_path):
    (tmp_path / "data.csv").write_text("a")
    folder = RunFolder(tmp_path / "run", "toy", quiet=True)
    folder.inputs = note([tmp_path / "data.csv"])
    (tmp_path / "data.csv").write_text("b")
    with pytest.raises(RunError, match=r"data.csv has changed while the run read it, so that nothing is reported"):
        folder.finish({"score": 1.0})
    assert not (tmp_path / "run/result.json").exists()


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    file = maze_file(tmp_path)
    recipe = TINY | {"data": {"path": str(file)}, "baselines": [], "sweep": {}}
    code, _, complained = run_csp(tmp_path, recipe)
    assert code == 0, complained
    (tmp_path / "out/result.json").unlink()
    maze_file(tmp_path, action=np.array([1, 0, 1, 1]))
    code, _, complained = run_csp(tmp_path, recipe, "--resume")
    assert code == 2
    assert complained == f"--resume: {file} has changed since the run was started; put it back, or start a new run\n"


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [("data/*.csv", ["a.csv"], "b.csv"), ("data/?.csv", ["b.csv"], "a.csv"), ("data", ["train.jsonl"], "train.csv")],
)
def test_a_file_that_a_pattern_or_a_folder_finds_later_is_told(tmp_path, path, before, after):
    source = TaskSource("mood", source="folder" if path == "data" else "csv", path=str(tmp_path / path))
    (tmp_path / "data").mkdir()
    for name in before:
        (tmp_path / "data" / name).write_text("text,label\n")
    noted = note(own_files(source))
    assert list(noted) == [str(tmp_path / "data" / name) for name in before]
    assert added(noted, own_files(source)) == ""
    (tmp_path / "data" / after).write_text("text,label\n")
    assert added(noted, own_files(source)) == f"{tmp_path / 'data' / after} was added"


RESUME = "--resume: {} since the run was started; put it back, or start a new run\n"


def test_a_run_does_not_go_on_in_a_folder_that_gained_a_file(front, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    assert front("r.yaml", "do=interrupt", "path=base", "--out", "o", r="recipe: toy\n").code == 130
    (tmp_path / "base/notes.md").write_text("of no use to a reader")
    assert front("r.yaml", "do=interrupt", "path=base", "--out", "o", "--resume").code == 130
    (tmp_path / "base/model.safetensors").write_bytes(b"weights")
    refused = front("r.yaml", "do=interrupt", "path=base", "--out", "o", "--resume")
    assert (refused.code, refused.err) == (2, RESUME.format("base/model.safetensors was added"))


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("[")])
def test_a_run_whose_note_is_lost_does_not_take_the_present_files_for_the_first(front, tmp_path, damage):
    (tmp_path / "data.csv").write_text("a")
    assert front("r.yaml", "do=interrupt", "path=data.csv", "--out", "o", r="recipe: toy\n").code == 130
    damage(tmp_path / "o/inputs.json")
    refused = front("r.yaml", "do=interrupt", "path=data.csv", "--out", "o", "--resume")
    assert refused.code == 2
    assert refused.err.startswith("--resume: o/inputs.json, which says what files the run began with, is missing or ")


@pytest.mark.parametrize(
    "changed_file", ["mysim.py", "helper.py", "sims/maze.py", "sims/walls.py", "spaces/deep/two.py"]
)
def test_a_run_does_not_go_on_with_other_code(front, tmp_path, changed_file, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("sims", "spaces/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sims/__init__.py").write_text("")
    (tmp_path / "mysim.py").write_text("import helper, os\nraise ValueError('noting imports nothing')\n")
    for name in ("helper", "sims/maze", "sims/walls", "spaces/deep/two"):
        (tmp_path / f"{name}.py").write_text("A = 1\n")
    (tmp_path / "spaces/deep/one.py").write_text("from .two import A\n")
    (tmp_path / "unrelated.py").write_text("A = 1\n")
    recipe = (
        "recipe: toy\ndo: interrupt\nanything: [{class_path: mysim.Mine}, {class_path: sims.maze.Maze}, "
        "spaces.deep.one.X, lightning.pytorch.Callback, no.such.module, os.path, 0.5]\n"
    )
    assert front("r.yaml", "--out", "o", r=recipe).code == 130
    (tmp_path / "unrelated.py").write_text("A = 2\n")
    assert front("r.yaml", "--out", "o", "--resume").code == 130
    (tmp_path / changed_file).write_text("A = 2\n")
    refused = front("r.yaml", "--out", "o", "--resume")
    assert (refused.code, refused.err) == (2, RESUME.format(f"{tmp_path / changed_file} has changed"))
