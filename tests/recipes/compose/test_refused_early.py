"""What a composition refuses of students and explanations before its first stage is made, and what changes no stage."""

import pytest

from recipes.compose.recipe import check
from recipes.compose.schema import GROUPS
from recipes.compose.stages import plan
from recipes.distill import merge_checks
from recipes.errors import RecipeError
from tests.recipes import tiny
from tests.recipes.compose.test_plan import names, own_task, parsed


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """In a folder of its own, without the checks of the merge, which have their own tests."""
    monkeypatch.setenv("GAPBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("recipes.merge.recipe.check", lambda recipe: iter(()))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("changes", "{epochs: 9, batch_size: 8}", "{batch_size: 8, epochs: 9}"),
        ("students.dense.changes", "{epochs: 9, batch_size: 8}", "{batch_size: 8, epochs: 9}"),
        ("students.dense.options", "{a: 1, b: 2}", "{b: 2, a: 1}"),
        ("students.dense.losses", "{kd: {temperature: 2, weight: 1}}", "{kd: {weight: 1, temperature: 2}}"),
    ],
)
def test_the_order_of_keys_makes_nothing_again(key, one, other):
    assert names(parsed(f"{key}={one}")) == names(parsed(f"{key}={other}")) != names(parsed())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hidden_dropot_prob: 0.2", r"__init__\(\) got an unexpected keyword argument 'hidden_dropot_prob'"),
        ("hidden_dropout_prob: much", "Field 'hidden_dropout_prob' with value 'much' doesn't match"),
        (
            "hidden_size: 64",
            r"word_embeddings\.weight would be of shape \(\d+, 64\), and its weights are of \(\d+, 32\)",
        ),
        ("hidden_size: 33", r"The hidden size \(33\) is not a multiple of the number of attention heads \(2\)"),
    ],
)
def test_an_option_that_a_student_does_not_take_is_refused(tmp_path, given, said):
    tiny.save_base(tmp_path / "base")
    start = rf"students\.dense: student\.options: the student base cannot be loaded with options .*{said}"
    with pytest.raises(RecipeError, match=start):
        list(check(parsed("merge.base=base", f"students.dense.options={{{given}}}", "students.small.options={}")))


def test_options_that_a_student_takes_pass(tmp_path):
    tiny.save_base(tmp_path / "base")
    options = {"hidden_dropout_prob": 0.2, "add_pooling_layer": False, "attn_implementation": "eager"}
    merge_checks._check_options(tmp_path / "base", options, language=False)
    tiny.save_base(tmp_path / "speaks", causal=True)
    merge_checks._check_options(tmp_path / "speaks", {"hidden_dropout_prob": 0.2}, language=True)


def test_more_folds_than_the_test_inputs_fill_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.compose.recipe._check_alone", lambda *_: iter(()))
    tasks = f"merge.tasks=[{own_task(tmp_path)}, {own_task(tmp_path, 'two')}]"  # a fifth of 60 rows each is tested on
    list(check(parsed(tasks, "explain.estimation.folds=2")))
    said = "folds: 3 folds need 30 test inputs, and the tasks have 24; give at most 2 folds, or more inputs"
    with pytest.raises(RecipeError, match=rf"explain\.estimation\.{said}"):
        list(check(parsed(tasks, "explain.estimation.folds=3")))
    few = tasks.replace(".csv}", ".csv, max_test: 9}")
    with pytest.raises(RecipeError, match="2 folds need 20 test inputs, and the tasks have 18; give more inputs"):
        list(check(parsed(few, "explain.estimation.folds=2")))


def test_further_columns_are_looked_for_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.merge.recipe.check", lambda recipe: iter(()))
    monkeypatch.setattr("recipes.compose.recipe._check_alone", lambda *_: iter(()))
    tasks = f"merge.tasks=[{own_task(tmp_path)}, {own_task(tmp_path, 'two')}]"
    few = "explain.estimation.folds=2"  # 24 test inputs
    assert "explain.columns: year found" in list(check(parsed(tasks, few, "explain.columns=[year]")))
    with pytest.raises(RecipeError, match=r"explain\.columns: no file of own, two has a column 'month'"):
        list(check(parsed(tasks, few, "explain.columns=[year,month]")))


def test_a_further_column_is_a_group_where_none_is_named():
    groups = plan(parsed("explain.columns=[year,length]"))[3][0].recipe.groups
    assert groups == {**GROUPS, "year": ["year"], "column length": ["length"]}
    named = plan(parsed("explain.columns=[year]", "explain.groups={when: [year]}"))[3][0].recipe.groups
    assert named == {"when": ["year"]}
