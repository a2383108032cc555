"""The cache of a teacher's answers through the real command: written once, in every form, or refused before."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes import tiny
from tests.recipes.distill.test_recipe import shipped

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*right on .* of the (validation|test) rows.*"
)  # tiny teachers are weak


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tiny.World:
    return tiny.World(tmp_path_factory.mktemp("distill"))


def test_a_cached_teacher_answers_once(world):
    recipe = shipped("distill_tiny.yaml", changes={"repeats": 2, "mixup": 0.2, "cutmix": 1.0}, teacher={"views": 2})
    recipe["methods"] = {"kd": {}}
    done = world.run(recipe, "cached")
    assert done.code == 0, done.err
    manifest = json.loads((world.folder / "cached/cache/MANIFEST.json").read_text())
    assert manifest["views"] == 2
    assert manifest["identity"]["teacher"] == "small_cnn_8"
    assert len(manifest["shards"]) == 2


def test_a_cache_of_the_top_classes_teaches_as_the_whole_logits_do(world):
    """All classes but one with the rest as a ghost class are all there is, so that students agree to rounding."""
    learned = {}
    for name, keep in (("whole", {}), ("some", {"keep": {"kind": "top", "kept": 9, "temperatures": [4.0]}})):
        recipe = shipped("distill_tiny.yaml", teacher={"views": 2, **keep})
        recipe["methods"] = {"kd": {"hard": {}, "kd": {"temperature": 4.0}}}
        done = world.run(recipe, name)
        assert done.code == 0, done.err
        learned[name] = load_file(world.folder / name / "students/kd/network.safetensors")
    manifest = json.loads((world.folder / "some/cache/MANIFEST.json").read_text())
    assert manifest["form"] == {"kind": "top", "dtype": "float32", "kept": 9, "temperatures": [4.0], "exponent": 1.0}
    for name, weights in learned["whole"].items():
        torch.testing.assert_close(learned["some"][name], weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("views", "keep", "method", "message"),
    [
        (0, {"kind": "top", "kept": 3}, {"kd": {}}, "teacher.keep: expected teacher.views above 0 with it, got 0"),
        (2, {"kind": "top"}, {"kd": {}}, "teacher.keep.kind: top with kept=0 and 1 temperatures"),
        (2, {"kind": "hidden"}, {"kd": {}}, "teacher.keep.kind: expected logits, top or sampled, got 'hidden'"),
        (2, {"kind": "top", "kept": 10}, {"kd": {}}, "methods.m: the cache keeps 10 of 10 classes; keep fewer"),
        (2, {"kind": "top", "kept": 3}, {"dkd": {}}, "methods.m: dkd compares all of the teacher's outputs"),
        (2, {"kind": "top", "kept": 3}, {"kd": {"temperature": 4.0}}, "methods.m: kd asks for the temperature 4.0"),
        (2, {"kind": "sampled", "kept": 3, "temperatures": [1, 4]}, {"kd": {"temperature": 4.0}}, "the temperatures 1"),
        (2, {"kind": "top", "kept": 3, "temperatures": [0]}, {"kd": {}}, "teacher.keep.temperatures.0: expected a"),
    ],
)
def test_a_cache_that_cannot_teach_a_method_is_refused_before_it_is_written(world, views, keep, method, message):
    recipe = shipped("distill_tiny.yaml", teacher={"views": views, "keep": keep})
    recipe["methods"] = {"m": method}
    done = world.run(recipe, "refused", "--check")
    assert done.code == 2
    assert message in " ".join(done.err.split())
