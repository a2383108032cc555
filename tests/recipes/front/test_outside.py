"""The recipe that CONTRIBUTING shows runs as it stands there, and what a recipe from outside lacks is said of it."""

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from recipes.front import table

SHOWN = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = SHOWN.partition("### Add a recipe")[2].partition("```python\n")[2].partition("```")[0]
YAML = "recipe: count\npath: three.txt\n"


@pytest.fixture
def contributed(front, tmp_path, monkeypatch):
    """Write the module, with some text of it changed, and run the command with it registered."""

    def run(*words, change=("", ""), name="count"):
        package = tmp_path / "contributed"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        (package / "lines.py").write_text(CODE.replace(*change), encoding="utf-8")
        (tmp_path / "three.txt").write_text("a\nb\n" + "c" * 90, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        for module in ("contributed", "contributed.lines"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        point = EntryPoint(name, "contributed.lines", table.GROUP)
        monkeypatch.setattr(table, "entry_points", lambda group: [point])
        return front(*words, r=YAML.replace("count", name))

    return run


def test_the_recipe_of_the_page_runs(contributed, tmp_path):
    done = contributed("r.yaml", "longest=80")
    assert done.code == 0, done.err
    assert "1 of 3 lines are long" in done.out
    assert json.loads((tmp_path / "runs/count-lines/1/result.json").read_text()) == {"lines": 3, "long": 1}
    assert "Lines above this length are counted apart." in contributed("--schema", "count").out
    assert "count the lines of a file" in contributed("--list").out.lower()
    assert contributed("r.yaml", "path=none", "--check").err == "path: none does not exist; give a text file\n"
    assert "longest: expected at least 1, got 0" in contributed("r.yaml", "longest=0").err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('    recipe: Literal["count"] = "count"\n', ""),
            """has a Recipe without the field recipe: Literal['count']""",
        ),
        (
            ('Literal["count"] = "count"', 'str = "count"'),
            """has a Recipe without the field recipe: Literal['count']""",
        ),
        (('    name: str = "lines"\n', '    label: str = "lines"\n'), "without the field name: str with a default"),
        (("    seed: int = 0\n", ""), "has a Recipe without the field seed: int with a default; add it"),
        (("@dataclass\n", ""), "has a Recipe that is no dataclass"),
        (
            ("def run(recipe: Recipe, folder: RunFolder)", "def run(recipe: Recipe)"),
            "has a run that cannot be called as",
        ),
        (("def check(recipe: Recipe)", "def check()"), "has a check that cannot be called as check(recipe)"),
        (("def check(", "def look("), "defines no check; a recipe has Recipe, check and run"),
    ],
)
def test_what_a_recipe_lacks_is_said_of_its_module(contributed, change, message):
    refused = contributed("r.yaml", "--check", change=change)
    assert refused.code == 2
    assert refused.err.startswith("recipe count: contributed.lines ")
    assert message in refused.err
    assert refused.err.count("\n") == 1


def test_another_name_than_that_of_the_field_is_said_too(contributed):
    refused = contributed("r.yaml", "--check", name="tally")
    assert refused.err.startswith(
        "recipe tally: contributed.lines has a Recipe without the field recipe: Literal['tally']"
    )


def test_a_check_that_yields_nothing_is_refused(contributed):
    refused = contributed("r.yaml", "--check", change=('    yield f"count {recipe.path}"\n', ""))
    assert refused.code == 1
    assert refused.err == "recipe count: check(recipe) gives None; yield one line of text for every step\n"
