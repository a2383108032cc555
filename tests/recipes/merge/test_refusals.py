"""What the merge recipe refuses: wrong recipes, damaged experts, experts of another base or task."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from recipes.running.seals import STAMP
from tests.recipes import tiny


@pytest.fixture
def given(world, tmp_path):
    """Copies of both experts, to be damaged, and the recipe that takes them."""
    shutil.copytree(world.folder / "experts", tmp_path, dirs_exist_ok=True)
    return tmp_path, world.recipe("merge", experts={t: str(tmp_path / t) for t in ("mood", "topic")})


def refused(world, recipe, code, *sentences, run="refused"):
    """Each sentence is on a line of its own, and nothing is half-written."""
    cached = sorted((world.folder / "cache").rglob("*"))
    before = world.files()
    for word in ["--check"] if code == 2 else []:
        checked = world.run(recipe, run, word)
        assert checked.code == 2
        assert world.files() == before
    done = world.run(recipe, run)
    assert done.code == code, done.err
    lines = [line for line in done.err.splitlines() if ":" in line and not line.startswith(("train ", "test"))]
    for sentence, line in zip(sentences, lines, strict=True):
        assert sentence in line
    assert sorted((world.folder / "cache").rglob("*")) == cached
    if code == 2:
        assert world.files() == before
    else:
        left = {f.name for f in (world.folder / run).iterdir()}
        assert not left & {"merged", "result.json", "report.html"}
        shutil.rmtree(world.folder / run)


def save_expert(folder, **base):
    """Replace the weights and tokenizer of an expert by those of another base."""
    keep = {name: (folder / name).read_bytes() for name in ("expert.json", "head.safetensors")}
    shutil.rmtree(folder)
    tiny.save_base(folder, **base)
    for name, data in keep.items():
        (folder / name).write_bytes(data)


def edit_tensors(file: Path, change):
    """Change an expert and own the change."""
    (file.parent / STAMP).unlink(missing_ok=True)
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_check_names_every_bad_expert(world, given):
    folder, recipe = given
    save_expert(folder / "mood", words=5)
    weights = folder / "topic/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused(world, recipe, 2, "experts.mood: ", "experts.topic: ")


@pytest.mark.parametrize(
    ("base", "sentence"),
    [({"words": 5}, "has vocab_size"), ({"hidden": 64}, "has hidden_size 64 and the base 32")],
)
def test_an_expert_of_another_base_is_refused(world, given, base, sentence):
    folder, recipe = given
    save_expert(folder / "mood", **base)
    refused(world, recipe, 2, sentence)


def test_a_corrupted_header_is_refused(world, given):
    folder, recipe = given
    weights = folder / "mood/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[12:20] = b"\xff" * 8
    weights.write_bytes(data)
    refused(world, recipe, 2, "corrupted")


@pytest.mark.parametrize("name", ["expert.json", "head.safetensors", "model.safetensors"])
def test_a_missing_file_is_named(world, given, name):
    folder, recipe = given
    (folder / "mood" / name).unlink()
    told = "has no model.safetensors" if name == "model.safetensors" else f"lacks {name}; copy the folder again"
    refused(world, recipe, 2, told)


@pytest.mark.parametrize("name", ["expert.json", "head.safetensors"])
def test_without_its_stamp_and_card_or_head_it_is_a_plain_model(world, given, name):
    folder, recipe = given
    (folder / "mood" / name).unlink()
    (folder / "mood" / STAMP).unlink()
    refused(world, recipe, 2, "holds no head (a plain AutoModel)")


def test_a_missing_expert_folder_is_named(world, given):
    folder, recipe = given
    shutil.rmtree(folder / "mood")
    refused(world, recipe, 2, f"{folder / 'mood'} is not a folder")


def test_nan_weights_end_the_run(world, given):
    folder, recipe = given
    edit_tensors(folder / "mood/model.safetensors", lambda t: t["embeddings.LayerNorm.weight"].fill_(float("nan")))
    refused(world, recipe, 1, "tensor 'embeddings.LayerNorm.weight' holds NaN or infinite values")


def test_a_nan_head_ends_the_run(world, given):
    folder, recipe = given
    edit_tensors(folder / "mood/head.safetensors", lambda t: t["out_proj.bias"].fill_(float("nan")))
    refused(world, recipe, 1, "head.safetensors holds NaN or infinite values")


def test_an_expert_of_another_task_ends_the_run(world, given):
    folder, recipe = given
    recipe["experts"] = {"mood": str(folder / "topic"), "topic": str(folder / "mood")}
    refused(world, recipe, 1, "the expert answers food, sport, trade and the task asks for glad, sad")


def test_an_empty_task_is_refused_by_the_check(world, tmp_path):
    recipe = world.recipe("merge")
    (tmp_path / "empty.csv").write_text("text,label\n")
    recipe["tasks"][0]["path"] = str(tmp_path / "empty.csv")
    refused(world, recipe, 2, "task 'mood': train has 0 different rows; give at least 10")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"exclusive": {"rank": 0}}, "exclusive.rank: expected a number > 0, got 0"),
        (
            {"exclusive": {"rank": 1000}},
            "exclusive.rank: expected 1 to 32, the smaller side of the base's",
        ),
        (
            {"training": {"lora_rank": 33}},
            "training.lora_rank: expected 1 to 32, the smaller side of the base's",
        ),
        ({"training": {"max_length": 9999}}, "training.max_length: max_length is 9999; the tokenizer "),
        ({"exclusive": {"density": 0.5}}, "expected exactly one of rank, density, energy and budget"),
        ({"exclusive": {"rank": None, "density": 1.5}}, "exclusive.density: expected a share above 0 and up to 1"),
        ({"exclusive": {"rnk": 4}}, "exclusive.rnk: unknown key; did you mean 'rank'?"),
        ({"exclusive": {"rank": "high"}}, "exclusive.rank: expected a whole number or null, got 'high'"),
        ({"shared": {"method": "average", "options": {"scale": 0.3}}}, "shared.options.scale: average has no such"),
        ({"shared": {"options": {"scael": 0.3}}}, "task_arithmetic has no such option; did you mean 'scale'?"),
        ({"shared": {"method": "dare", "options": {"drop": 1.0}}}, "shared.options.drop: expected a share from 0"),
        ({"baselines": {"densities": [0.0]}}, "baselines.densities.0: expected a number > 0 and <= 1, got 0.0"),
        ({"router": {"epochs": 0}}, "router.epochs: expected a number > 0, got 0"),
        ({"experts": {"mod": "x"}}, "experts.mod: no task has this name; did you mean 'mood'?"),
        ({"training": {"model": "classifier"}}, "training.model: expected encoder (experts with heads) or causal"),
        ({"training": {"model": "causal"}}, "tasks.0.language: expected how the model is asked, for model 'causal'"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(world, changes, sentence):
    refused(world, world.recipe("merge", **changes), 2, sentence)


@pytest.mark.parametrize("name", ["a/b", "..", "../mood"])
def test_a_task_name_that_leaves_its_folder_is_refused(world, name):
    recipe = world.recipe("merge")
    recipe["tasks"][0]["name"] = name
    refused(world, recipe, 2, f"tasks.0.name: expected 1 to 64 letters, digits, '_' or '-', got '{name}'")


def test_one_expert_is_refused(world):
    recipe = world.recipe("merge")
    del recipe["tasks"][1]
    refused(world, recipe, 2, "tasks: expected at least two tasks to merge, got one")
