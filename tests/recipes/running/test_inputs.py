"""A user's file that changes between check and end, or before a run goes on, is refused by name."""

import os

import numpy as np
import pytest

from recipes.errors import RunError
from recipes.running import seals
from recipes.running.folder import RunFolder
from recipes.running.inputs import changed, note, read_noted
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


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '{"a": ["x", 1, 2, 3]}', "[" * 100_000])
def test_a_damaged_note_counts_as_none(tmp_path, text):
    (tmp_path / "inputs.json").write_text(text)
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
