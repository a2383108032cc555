"""The page of a composition: its story, from stages of which the merge and the student are stand-ins."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from recipes.compose import stages
from recipes.compose.schema import Recipe
from recipes.compose.stages import TABLE, Stage, make, plan, show
from recipes.compose.story import finish
from recipes.front.parse import parse
from recipes.run import main
from recipes.running.folder import RunFolder
from recipes.running.sweep_table import numbers
from tests.recipes.browser import check_page, needs_chromium

TASKS = [f"a_task_of_long_name_{number}" for number in range(14)]


def composed(folder: Path) -> Recipe:
    tasks = [{"name": name, "source": "csv", "path": f"{name}.csv"} for name in TASKS]
    given = {
        "recipe": "compose",
        "merge": {"recipe": "merge", "base": "base", "tasks": tasks},
        "students": {"dense": {}, "small": {}},
        "explain": {
            "loss": "log",
            "groups": {"task": ["task"], "length": ["words"]},
            "estimation": {"learners": "linear", "folds": 2},
        },
    }
    (folder / "compose.yaml").write_text(yaml.safe_dump(given))
    return parse(folder / "compose.yaml").recipe


def answers(file: Path) -> None:
    """Losses of which the students' are higher where texts are long, which an explanation finds."""
    draw = np.random.default_rng(0)
    rows = 600
    words = draw.integers(3, 30, rows)
    table = pd.DataFrame({"task": [TASKS[i % len(TASKS)] for i in range(rows)], "words": words, "text": "a <b> text"})
    for model, more in (("expert", 0.0), ("twin", 0.01), ("dense", 0.05), ("small", 0.1)):
        table[f"{model}_log"] = 0.3 + more * words + 0.02 * draw.standard_normal(rows)
        table[f"{model}_zero_one"] = (draw.random(rows) < 0.2 + more).astype(float)
        table[f"{model}_answer"] = "yes"
    table["router_confidence"] = 0.9
    file.parent.mkdir(parents=True)
    table.to_parquet(file, index=False)


@pytest.fixture
def page(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GAPBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stages, "_run", lambda words: main([str(word) for word in words[3:]]))
    recipe = composed(tmp_path)
    merge, students, table, why = plan(recipe)
    row = {"mean": 0.5, "normalised": 1.0, "bytes": 9e7, "ms_per_input": 1.0, "tasks": dict.fromkeys(TASKS, 0.5)}
    names = ["experts", "pretrained", "ties", "routed"]
    stand_in(merge, {"rows": dict.fromkeys(names, row), "best_static": "ties"})
    for student in students:
        stand_in(student, {"rows": {student.name: row}})
        (student.folder / "students" / student.name).mkdir(parents=True)
    answers(table.folder / TABLE)
    folder = RunFolder(tmp_path / "run", "compose-x")
    for stage in why:
        make(stage, folder)
    for stage in (merge, *students, *why):
        show(stage, folder.path)
    finish(recipe, folder, (merge, students, table, why), [])
    return folder.path / "report.html"


def stand_in(stage: Stage, result: dict[str, object]) -> None:
    stage.folder.mkdir(parents=True)
    (stage.folder / "result.json").write_text(json.dumps(result))
    (stage.folder / "report.html").write_text("its report")


@needs_chromium
def test_a_browser_shows_the_story_of_a_composition(page):
    found = check_page(page)
    shown = [picture["alt"].split(". ")[0] for picture in found["pictures"]]
    assert shown == [
        "From experts to students",
        "What every step loses, by task",
        *(
            f"{step}: What the outcome shift depends on"
            for step in ("expert to twin", "twin to dense", "twin to small")
        ),
    ]
    for stage in ("merge", "dense", "small", "expert-twin", "twin-dense", "twin-small"):
        assert f"stages/{stage}/report.html" in found["links"]
    for stage in ("expert-twin", "twin-dense"):
        check_page(page.parent / "stages" / stage / "report.html")


def test_the_map_of_the_stages_stands_below_the_summary(page):
    text = page.read_text()
    assert text.count("<img alt='From experts to students.") == 1
    order = [
        "</h1>",
        "<p>The twin has",
        "<img alt='From experts to students.",
        "<nav ",
        "<table>",
        "<img alt='What every",
    ]
    assert sorted(order, key=text.index) == order


def test_a_sweep_of_compositions_shows_the_scores(page):
    result = json.loads((page.parent / "result.json").read_text())
    shown = {name: value for name, value in numbers(result) if "." not in name}
    assert shown.keys() >= {"experts_mean", "twin_mean", "dense_mean", "small_mean"}
    assert shown["dense_mean"] == 0.5
