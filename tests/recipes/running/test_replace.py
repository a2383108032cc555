"""`--force` removes what a run made; what is the user's, what the new run reads and a live run below stay."""

import os

import pytest

from tests.recipes.running.test_lock import holder

TOY = "recipe: toy\n"


def everything(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("inside", "words", "told"),
    [
        (
            "notes.md",
            (),
            "o/notes.md is nothing that a run makes and would be lost; move it elsewhere, or give another",
        ),
        ("mine/a.txt", (), "o/mine is nothing that a run makes"),
        ("experts/mood/model.safetensors", ("path=o/experts/mood",), "the run reads o/experts/mood, which lies in the"),
        ("experts/data.csv", ("path=o/experts/data.csv",), "the run reads o/experts/data.csv, which lies in the"),
        ("experts/data.csv", ("path=link.csv",), "the run reads link.csv, which lies in the folder that it would"),
        ("policies/a.pt", ("anything={checkpoint_path: o/policies/a.pt}",), "the run reads o/policies/a.pt, which"),
        ("figures/a.png", ("path=o",), "the run reads o, which lies in the folder that it would replace"),
    ],
)
def test_what_a_run_did_not_make_or_the_next_one_reads_is_not_removed(front, tmp_path, inside, words, told):
    assert front("r.yaml", "--out", "o", r=TOY).code == 0
    (tmp_path / "o" / inside).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "o" / inside).write_text("years of work")
    (tmp_path / "link.csv").symlink_to("o/experts/data.csv")
    before = everything(tmp_path / "o")
    refused = front("r.yaml", *words, "--out", "o", "--force")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(f"--out o --force: {told}")
    assert refused.err.count("\n") == 1
    assert everything(tmp_path / "o") == before


def test_a_recipe_file_in_the_folder_is_not_removed(front, tmp_path):
    assert front("r.yaml", "--out", "o", r=TOY).code == 0
    before = everything(tmp_path / "o")
    refused = front("o/recipe.yaml", "--out", "o", "--force")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("--out o --force: the run reads o/recipe.yaml, which lies in the folder")
    assert everything(tmp_path / "o") == before


def test_a_live_run_below_the_folder_is_not_removed(front, tmp_path):
    assert front("r.yaml", "--out", "o", r=TOY).code == 0
    (tmp_path / "o/experts/inner").mkdir(parents=True)
    process = holder(tmp_path / "o/experts/inner")
    try:
        refused = front("r.yaml", "--out", "o", "--force")
        assert (refused.code, refused.out) == (1, "")
        assert refused.err.startswith(f"o/experts/inner: a run is at work in this folder, process {process.pid} on ")
        assert (tmp_path / "o/result.json").exists()
    finally:
        process.kill()
        process.communicate()
    assert front("r.yaml", "--out", "o", "--force").code == 0
    assert not (tmp_path / "o/experts").exists()


def test_a_run_of_the_folders_own_name_is_replaced(front, tmp_path):
    assert front("r.yaml", "name=o", "--out", "o", r=TOY).code == 0
    (tmp_path / "o/figures").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").write_text("mine")
    os.symlink("../elsewhere", tmp_path / "o/experts")
    assert front("r.yaml", "name=o", "--out", "o", "--force").code == 0
    assert not (tmp_path / "o/figures").exists()
    assert not (tmp_path / "o/experts").is_symlink()
    assert (tmp_path / "elsewhere/kept").read_text() == "mine"


def test_what_killed_runs_leave_is_replaced(front, tmp_path):
    assert front("r.yaml", "do=interrupt", "--out", "o", r=TOY).code == 130
    for name in (".merged.123.part", ".merged.old"):
        (tmp_path / "o" / name).mkdir()
    (tmp_path / "o/.metrics.csv.123.part").write_text("")
    (tmp_path / "o/command.txt").unlink()
    assert front("r.yaml", "--out", "o", "--force").code == 0
    (tmp_path / "p").mkdir()
    (tmp_path / "p/inputs.json").write_text("{}")
    assert front("r.yaml", "--out", "p").code == 0
    (tmp_path / "p/.mine.old").mkdir()
    assert front("r.yaml", "--out", "p", "--force").code == 2
    (tmp_path / "q").mkdir()
    (tmp_path / "q/inputs.json").write_text("something of the user's")
    assert front("r.yaml", "--out", "q").code == 2


def test_a_run_that_was_killed_at_its_first_file_leaves_its_folder_free(front, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o/.inputs.json.123.part").write_text("{")
    assert front("r.yaml", "--out", "o", r=TOY).code == 0
    assert not (tmp_path / "o/.inputs.json.123.part").exists()
