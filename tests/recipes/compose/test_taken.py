"""A folder that is taken as a stage: what another recipe wrote is refused by --check, in one sentence."""

import json
from pathlib import Path

import pytest
import yaml

from recipes.run import main
from tests.recipes.compose.test_plan import own_task

TEXTS = [{"name": name, "source": "csv", "path": f"{name}.csv"} for name in ("own", "two")]
SPOKEN = [task | {"language": {"metric": "exact_match"}} for task in TEXTS]
NUMBER = {"name": "two", "source": "csv", "path": "two.csv", "kind": "regression", "metric": "pearson_spearman"}
IMAGES = [{"name": name, "source": "folder", "path": name, "kind": "images"} for name in ("own", "two")]
MERGE = {"recipe": "merge", "base": "base", "experts": {"own": "e/own", "two": "e/two"}, "tasks": TEXTS}
GRID = {
    "recipe": "distill",
    "teacher": {"model": "t"},
    "student": {"model": "s"},
    "data": {"source": "digits"},
    "methods": {"kd": {"kd": {}}},
}
STUDENT = {"recipe": "distill", "methods": {"dense": {"kd": {}}}, "data": {"source": "merge"}}


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("GAPBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for task in TEXTS:
        own_task(tmp_path, task["name"])


def wrote(name: str, recipe: dict, *, twin: bool = False, student: str = "", **result: object) -> Path:
    """What a finished run leaves that a composition looks for."""
    folder = Path(name)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "result.json").write_text(json.dumps(result))
    if twin:
        (folder / "merged").mkdir()
        heads = {task["name"]: {} for task in recipe["tasks"]}
        (folder / "merged/twin.json").write_text(json.dumps({"heads": heads}))
    if student:
        (folder / "students" / student).mkdir(parents=True)
    return folder


def refused(capsys, **taken: str) -> str:
    Path("c.yaml").write_text(yaml.safe_dump({"recipe": "compose", "taken": taken}))
    assert main(["c.yaml", "--check"]) == 2
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    return told


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"recipe": "csp"}, "x is a run of recipe csp; expected one of merge"),
        (GRID, "x is a run of recipe distill; expected one of merge"),
        ({"recipe": "compose", "taken": {"merge": "y"}}, "x is a run of recipe compose; expected one of merge"),
        # A composition keeps the report of its merge under stages/merge, and not the twin.
        (MERGE, "x has no merged/twin.json; give the folder of a finished 'recipe: merge' run with tasks"),
        (
            MERGE | {"tasks": SPOKEN, "training": {"model": "causal"}},
            "x has no merged/twin.json; give the folder of a finished",
        ),
        (MERGE | {"tasks": IMAGES}, "x has no merged/twin.json; give the folder of a finished 'recipe: merge' run"),
    ],
    ids=lambda value: value["recipe"] if isinstance(value, dict) else "",
)
def test_what_is_no_merge_with_a_twin_is_not_taken_for_one(capsys, recipe, said):
    wrote("x", recipe)
    assert f"taken.merge: {said}" in refused(capsys, merge="x")


def test_a_merge_with_a_regression_is_not_taken(capsys):
    wrote("x", MERGE | {"tasks": [TEXTS[0], NUMBER]}, twin=True)
    assert "taken.merge: task 'two' is a regression, and the losses here compare probabilities of classes" in refused(
        capsys, merge="x"
    )


def test_an_unfinished_run_is_not_taken(capsys):
    (wrote("x", MERGE, twin=True) / "result.json").unlink()
    assert "taken.merge: x is no finished run; give the folder of a finished merge run" in refused(capsys, merge="x")


def test_a_merge_whose_result_is_no_mapping_is_not_taken(capsys):
    (wrote("x", MERGE, twin=True) / "result.json").write_text("[1]")
    assert "taken.merge: x/result.json cannot be read ('list' object has no attribute 'get')" in refused(
        capsys, merge="x"
    )


@pytest.mark.parametrize(
    ("recipe", "result", "said"),
    [
        ({"recipe": "csp"}, {}, "x is a run of recipe csp; expected one of distill"),
        (MERGE, {}, "x is a run of recipe merge; expected one of distill"),
        (GRID, {}, "x learned from data.source digits, and not from a merge; give a student of this merge"),
        (
            STUDENT | {"data": {"source": "merge", "path": "images"}},
            {"merge": "images"},
            "x learned from a merge of other tasks or another seed, so that its scores are of other inputs",
        ),
    ],
    ids=["csp", "merge", "digits", "images"],
)
def test_what_is_no_student_of_the_merge_is_not_taken_for_one(capsys, recipe, result, said):
    wrote("texts", MERGE, twin=True)
    wrote("images", MERGE | {"tasks": IMAGES}, twin=True)
    wrote("x", recipe, student="dense", **result)
    assert f"taken.dense: {said}" in refused(capsys, merge="texts", dense="x")
