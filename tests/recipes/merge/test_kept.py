"""Scores of earlier runs are found again where everything that decides them is the same, and nowhere else."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from recipes.merge import static
from recipes.merge.kept import Kept, fingerprint
from recipes.running import built_with
from tests.recipes import tiny
from twinmerge import Head


class Said:
    """A run folder that keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("GAPBRIDGE_CACHE", str(tmp_path))
    return lambda *decides: Kept(Said(), *decides)


def test_what_is_found_is_what_was_kept_under_the_same_name(store):
    tasks = {"a": 0.5, "b": float("nan")}
    store("base", 1).keep(tasks, 2.0, "test", {"scale": 0.3})
    again = store("base", 1)
    assert json.dumps(again.find("test", {"scale": 0.3})) == json.dumps([tasks, 2.0])
    again.find("test", {"scale": 0.3})
    assert len(again.folder.lines) == 1
    assert again.find("test", {"scale": 0.4}) is None
    assert again.find("validation", {"scale": 0.3}) is None
    assert store("base", 2).find("test", {"scale": 0.3}) is None


def test_every_part_of_a_thing_decides():
    layer = nn.Linear(3, 2)
    moved = copy.deepcopy(layer)
    moved.weight.data[1, 2] += 1e-7
    things = [1, 1.0, True, "1", None, [1], [[1]], {"a": 1}, {"b": 1}, {"a": [1]}, [1, 1], "a", ["a", "b"], ["ab"]]
    things += [
        torch.zeros(2),
        torch.zeros(1, 2),
        torch.zeros(2, dtype=torch.float64),
        torch.ones(2),
        torch.ones(2).half(),
    ]
    things += [torch.ones(2).bfloat16(), torch.tensor([1, 1]), torch.zeros(0), torch.tensor(1.0), torch.eye(3)[:2]]
    things += [layer, moved, nn.Sequential(layer), nn.LayerNorm(2), nn.LayerNorm(2, eps=1e-3)]
    names = [fingerprint(thing) for thing in things]
    assert len(set(names)) == len(things)
    assert names == [fingerprint(copy.deepcopy(thing)) for thing in things]
    assert fingerprint(torch.eye(4).T[::2]) == fingerprint(torch.eye(4)[:, ::2].T.clone())
    with pytest.raises(TypeError, match="got set"):
        fingerprint({1})


@pytest.mark.parametrize(
    "other",
    [{"pooling": "first"}, {"layer_norm": True}, {"dense": True, "activation": "gelu"}, {"unit": True}, {"norm": 1e-3}],
    ids=str,
)
def test_heads_with_the_same_weights_that_read_otherwise_differ(other):
    plain = {"dense": True} if "dense" in other else {"norm": 1e-5} if "norm" in other else {}
    one, two = Head(4, 2, **plain), Head(4, 2, **other)
    two.load_state_dict(one.state_dict())
    assert fingerprint({"a": one}) != fingerprint({"a": two})
    assert fingerprint({"a": one}) == fingerprint({"a": copy.deepcopy(one)})


def test_models_with_the_same_weights_that_compute_otherwise_differ():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    names = []
    for more in ({}, {"hidden_act": "relu"}, {"layer_norm_eps": 1e-3}, {"num_attention_heads": 4}):
        torch.manual_seed(0)
        names.append(fingerprint(BertModel(BertConfig(vocab_size=9, **{**sizes, **more})).eval()))
    assert len(set(names)) == 4


def test_a_changed_line_or_library_makes_another_name(store, monkeypatch):
    store("base").keep({"score": 1.0}, 2.0, "x")
    assert store("base").find("x") == ({"score": 1.0}, 2.0)
    with monkeypatch.context() as now:
        now.setattr(built_with, "version", lambda _: "9")
        built_with.built_with.cache_clear()
        assert store("base").find("x") is None
    built_with.built_with.cache_clear()
    assert store("base").find("x") == ({"score": 1.0}, 2.0)


def test_changed_code_of_the_named_packages_counts(tmp_path, monkeypatch):
    for name in ("one", "one/inner", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("a = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    digest = built_with.built_with.__wrapped__
    before = digest("one"), digest("one", without="one.inner"), digest("two")
    assert len(set(before)) == 3
    (tmp_path / "one/inner/__init__.py").write_text("a = 2\n")
    after = digest("one"), digest("one", without="one.inner"), digest("two")
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True]


@pytest.mark.parametrize(
    "text", ["", "{", '{"tasks": {"score": 2.0}, "ms_per_input": 2.0, "seal": "0"}', '{"tasks": 1}', "[]", "\x00\xff"]
)
def test_a_damaged_entry_counts_as_none(store, tmp_path, text):
    store("base").keep({"score": 1.0}, 2.0, "x")
    (entry,) = (tmp_path / "scores").iterdir()
    entry.write_text(text, encoding="latin-1")
    assert store("base").find("x") is None
    store("base").keep({"score": 1.0}, 2.0, "x")
    assert store("base").find("x") == ({"score": 1.0}, 2.0)


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GAPBRIDGE_CACHE", str(tmp_path / "file"))
    Kept(Said(), "base").keep({"score": 1.0}, 2.0, "x")
    assert Kept(Said(), "base").find("x") is None


@pytest.fixture
def counted(monkeypatch):
    """How many candidates were scored on validation."""
    calls = []
    evaluate = static.evaluate
    monkeypatch.setattr(static, "evaluate", lambda *given: calls.append(given) or evaluate(*given))
    return calls


def test_a_run_scores_only_what_no_run_has_scored(world, counted):
    recipe = world.recipe("merge", baselines={"scales": [0.37, 0.63]})
    first = world.run(recipe, "kept-first")
    assert first.code == 0, first.err
    scored = len(counted)
    assert scored > 8
    again = world.run(recipe, "kept-again")
    assert len(counted) == scored
    assert "are taken from" in again.out
    assert tiny.numbers(world.folder / "kept-again/result.json") == tiny.numbers(
        world.folder / "kept-first/result.json"
    )
    fewer = world.run(world.recipe("merge", baselines={"scales": [0.37]}), "kept-fewer-scales")
    assert fewer.code == 0, fewer.err
    assert len(counted) == scored


def test_other_inputs_are_scored_anew(world, counted):
    recipe = world.recipe("merge", baselines={"scales": [0.41]})
    assert world.run(recipe, "kept-inputs").code == 0
    scored = len(counted)
    recipe["tasks"][0]["max_validation"] = 7
    assert world.run(recipe, "kept-fewer").code == 0
    assert len(counted) - scored == scored + 1  # the average is scored anew too, which this world had scored before
