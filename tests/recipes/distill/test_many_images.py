"""A merge of images distilled into one dense student, and explained."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

import twinmerge
from benchmarks import families
from recipes.explain.merged import read_merged
from tests.recipes.merge.test_images import paint, recipe
from tests.recipes.tiny import World
from twinmerge.states import states_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    made = World(tmp_path_factory.mktemp("images"))
    families.build("resnet").save_pretrained(made.folder / "resnet")
    look = transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0)
    look.save_pretrained(made.folder / "resnet")
    paint(made.folder / "colours")
    paint(made.folder / "shades", 20)
    given = recipe(made, training={"image_size": 32, "augmentation": "none"})
    given["baselines"] = {"scales": [0.5], "probe": False}
    done = made.run(given, "merge")
    assert done.code == 0, done.err
    return made


def test_a_merge_of_images_teaches_one_student(world):
    changes = {"epochs": 1, "batch_size": 16, "optimizer": "adamw", "learning_rate": 1e-3, "schedule_on": "update"}
    given = {
        "recipe": "distill",
        "data": {"source": "merge", "path": "merge"},
        "methods": {"kd": {"kd": {}}},
        "changes": changes | {"warmup_epochs": 0},
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    refused = world.run(given | {"student": {"options": {"num_hidden_layers": 1}}}, "x", "--check")
    assert refused.code == 2
    assert "configuration counts no layers" in refused.err
    refused = world.run(given | {"changes": changes | {"mixup": 0.2}}, "x", "--check")
    assert "changes.mixup: expected none with a merge as data" in refused.err
    done = world.run(given, "many")
    assert done.code == 0, done.err
    rows = json.loads((world.folder / "many/result.json").read_text())["rows"]
    merged = json.loads((world.folder / "merge/result.json").read_text())["rows"]
    assert rows["teacher"]["tasks"] == merged["routed"]["tasks"]
    assert set(rows["kd"]["agreement_tasks"]) == {"colours", "shades"}
    assert set(load_file(world.folder / "many/cache/answers.safetensors")) == {"train", "validation", "test"}
    folder = world.folder / "many/students/kd/model"
    assert transformers.AutoImageProcessor.from_pretrained(folder).image_mean
    body = transformers.AutoModel.from_pretrained(folder).eval()
    model = twinmerge.load(folder)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model.classify(pixel_values=images, head="shades").logits
        alone = model.heads["shades"](states_of(body, body(images)))
    assert torch.allclose(alone, wanted, atol=1e-5)
    with world.inside():
        table = read_merged(world.folder / "merge", lambda _: None, {"kd": folder}, examples=True)
    assert "words" not in table.columns
    for task, part in table.groupby("task"):
        assert 1 - part["kd_zero_one"].mean() == pytest.approx(rows["kd"]["tasks"][task], abs=1e-6)
        assert 1 - part["expert_zero_one"].mean() == pytest.approx(merged["experts"]["tasks"][task], abs=1e-6)


def test_what_is_augmented_is_asked_anew(world):
    given = recipe(world, training={"image_size": 32, "augmentation": "crop"})
    folder = world.folder / "cropped"
    folder.mkdir()
    for name in ("result.json", "merged"):
        (folder / name).symlink_to(world.folder / "merge" / name)
    given["baselines"] = {"scales": [0.5], "probe": False}
    (folder / "recipe.yaml").write_text(json.dumps(given))
    many = {
        "recipe": "distill",
        "data": {"source": "merge", "path": "cropped"},
        "changes": {"epochs": 1, "batch_size": 16, "schedule_on": "update", "warmup_epochs": 0},
        "methods": {"kd": {"kd": {}}},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 2},
    }
    done = world.run(many, "augmented")
    assert done.code == 0, done.err
    assert set(load_file(world.folder / "augmented/cache/answers.safetensors")) == {"validation", "test"}
