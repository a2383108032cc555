"""What the front prints: YAML that resolves to itself, help, JSON schema, the list."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from recipes.front import table
from recipes.front.parse import parse
from recipes.front.show import to_yaml
from recipes.front.yaml_lines import load_yaml
from tests.recipes import toy

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)  # others are refused, see test_faults
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
)
TRICKY = st.sampled_from(
    ["1e3", "0x1f", "no", "null", "~", "", " a", "a ", "a: b", "- a", "#", "1_000", "2024-01-01", "é", "'"]
)
VALUES = st.recursive(
    SCALARS | TRICKY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | TRICKY, inner, max_size=3),
    max_leaves=12,
)


@dataclasses.dataclass
class Holder:
    """Holds anything.

    Attributes:
        anything: The thing, with help long enough that it has to be wrapped over several lines when it is printed
            as a comment above the key.
    """

    anything: Any


@given(VALUES)
def test_yaml_reads_back_as_it_was(value):
    document = load_yaml(to_yaml(Holder(value)), "x")
    assert document.problems == []
    assert document.data == {"anything": value}
    assert repr(document.data) == repr({"anything": value})


RECIPE = """\
recipe: toy
method: {scale: 1e-3}
tasks:
  - name: "a"
  - name: b
    max_train: 5
weights: {a: 1, b: 2.5}
path: some/file
note: 'null'
anything: [{x: [1, [2, {}]], y: []}, "1e-3"]
trainer:
  precision: "16"
  devices: [0, 1]
  limit_train_batches: 1.0
  limit_val_batches: 1
  callbacks:
    - class_path: lightning.pytorch.callbacks.EarlyStopping
      init_args: {monitor: loss}
"""


def test_print_config_is_a_recipe_that_resolves_to_itself(front, tmp_path):
    printed = front("r.yaml", "--print-config", "tasks.1.max_train=7", "trainer.max_epochs=2", r=RECIPE)
    assert printed.code == 0
    again = front("again.yaml", "--print-config", again=printed.out)
    assert again.out == printed.out
    before = parse(tmp_path / "r.yaml", ["tasks.1.max_train=7", "trainer.max_epochs=2"])
    assert parse(tmp_path / "again.yaml").recipe == before.recipe
    assert before.recipe.trainer.limit_train_batches == 1.0
    assert isinstance(before.recipe.trainer.limit_val_batches, int)
    assert before.recipe.note == "null"
    assert before.recipe.method == toy.Method(rank=8, scale=0.001)


def test_print_config_carries_the_help(front):
    lines = front("r.yaml", "--print-config", r="recipe: toy\n").out.splitlines()
    assert lines[0] == "# A recipe for tests."
    assert lines[lines.index("  rank: 8") - 1] == "  # Rank of the factors."
    assert lines[lines.index("tasks:") + 1 :][:4] == [
        "    # Name of the task.",
        "  - name: a",
        "    # Use at most so many samples.",
        "    max_train: null",
    ]


@pytest.mark.parametrize(
    ("overrides", "check"),
    [
        (["name=x1"], lambda recipe: recipe.name == "x1"),
        (["name=007"], lambda recipe: recipe.name == "007"),
        (["name=true"], lambda recipe: recipe.name == "true"),
        (["note=null"], lambda recipe: recipe.note is None),
        (["note='null'"], lambda recipe: recipe.note == "null"),
        (["note=a=b"], lambda recipe: recipe.note == "a=b"),
        (["note="], lambda recipe: recipe.note is None),
        (["method.scale=3"], lambda recipe: recipe.method.scale == 3.0 and isinstance(recipe.method.scale, float)),
        (["method.scale=-1e-3"], lambda recipe: recipe.method.scale == -0.001),
        (["method={scale: 2}"], lambda recipe: recipe.method == toy.Method(rank=8, scale=2.0)),
        (["method.rank=1", "method.rank=2"], lambda recipe: recipe.method.rank == 2),
        (["tasks.0.max_train=64"], lambda recipe: recipe.tasks == [toy.Task("a", 64), toy.Task("b", 3)]),
        (["tasks.2.name=c"], lambda recipe: recipe.tasks[2] == toy.Task("c")),
        (["tasks=[{name: z}]"], lambda recipe: recipe.tasks == [toy.Task("z")]),
        (["weights.a=2"], lambda recipe: recipe.weights == {"a": 2.0}),
        (["anything.x.y=[1, no]"], lambda recipe: recipe.anything == {"x": {"y": [1, "no"]}}),
        (["trainer.devices=auto"], lambda recipe: recipe.trainer.devices == "auto"),
        (["trainer.devices=2"], lambda recipe: recipe.trainer.devices == 2),
        (["trainer.precision=bf16-mixed"], lambda recipe: recipe.trainer.precision == "bf16-mixed"),
        (["trainer.deterministic=warn"], lambda recipe: recipe.trainer.deterministic == "warn"),
        (["trainer.fast_dev_run=no"], lambda recipe: recipe.trainer.fast_dev_run is False),
    ],
)
def test_overrides(tmp_path, monkeypatch, overrides, check):
    monkeypatch.setitem(table.TABLE, "toy", table.Entry("tests.recipes.toy", "a recipe for tests"))
    (tmp_path / "r.yaml").write_text("recipe: toy\n")
    assert check(parse(tmp_path / "r.yaml", overrides).recipe)


def test_schema_describes_every_key(front):
    schema = json.loads(front("--schema", "toy").out)
    assert list(schema["properties"]) == [field.name for field in dataclasses.fields(toy.Recipe)]
    assert schema["additionalProperties"] is False
    tasks = schema["properties"]["tasks"]
    assert tasks["items"]["required"] == ["name"]
    assert tasks["items"]["properties"]["max_train"]["anyOf"] == [{"type": "integer"}, {"type": "null"}]
    assert tasks["default"] == [{"name": "a", "max_train": None}, {"name": "b", "max_train": 3}]
    assert schema["properties"]["method"]["properties"]["rank"]["description"] == "Rank of the factors."


def test_list_names_every_recipe(front):
    done = front("--list")
    assert done.code == 0
    assert all(f"{name} " in done.out and entry.about in done.out for name, entry in table.TABLE.items())


def test_shipped_recipe_is_found_by_name(front, tmp_path, monkeypatch):
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "toy.yaml").write_text("# The toy.\nrecipe: toy\nname: shipped\n")
    monkeypatch.setattr(table, "SHIPPED", folder)
    for word in ("toy.yaml", "toy"):
        done = front(word, "--print-config")
        assert "name: shipped" in done.out
        assert done.err == f"{word} is not here: using the recipe that ships as {folder / 'toy.yaml'}\n"
    assert front("--new", "toy").out == "# The toy.\nrecipe: toy\nname: shipped\n"
    assert "toy.yaml" in front("--list").out
    assert "name: mine" in front("toy.yaml", "--print-config", toy="recipe: toy\nname: mine\n").out
