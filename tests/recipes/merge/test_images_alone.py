"""The merge recipe without tasks takes experts of images, and makes their router from folders of images."""

from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

import twinmerge
from tests.recipes.tiny import World
from tests.twinmerge import foreign

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VIT = {**SIZES, "image_size": 16, "patch_size": 8, "initializer_range": 0.2}
NAMES = ("red", "blue")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("alone"))
    torch.manual_seed(0)
    kind, reader = (
        transformers.ViTForImageClassification,
        transformers.ViTImageProcessor(size={"height": 16, "width": 16}),
    )
    kind(transformers.ViTConfig(**VIT, num_labels=5)).save_pretrained(made.folder / "vit")
    reader.save_pretrained(made.folder / "vit")
    for number, name in enumerate(NAMES):
        said = {"id2label": {0: "old", 1: "new"}, "label2id": {"old": 0, "new": 1}}
        model = kind.from_pretrained(made.folder / "vit", ignore_mismatched_sizes=True, num_labels=2, **said)
        foreign.moved(model, number).eval().save_pretrained(made.folder / name)
        reader.save_pretrained(made.folder / name)
        foreign.paint(made.folder / "seen" / name, 2 * number)
    return made


def recipe(world: World, **changes: object) -> dict[str, object]:
    plain = {
        "recipe": "merge",
        "base": str(world.folder / "vit"),
        "experts": {name: str(world.folder / name) for name in NAMES},
        "images": {name: str(world.folder / "seen" / name) for name in NAMES},
        "exclusive": {"density": 1.0},
        "router": {"kind": "linear", "features": "last"},
    }
    return {key: value for key, value in (plain | changes).items() if value is not None}


def test_experts_of_images_become_a_twin_with_a_router_from_images(world: World, tmp_path: Path) -> None:
    done = world.run(recipe(world), "run")
    assert done.code == 0, done.err
    folder = world.folder / "run" / "merged"
    twin = twinmerge.load(folder)
    reader = transformers.AutoImageProcessor.from_pretrained(folder)
    for number, name in enumerate(NAMES):
        new = [Image.open(file) for file in sorted(foreign.paint(tmp_path / name, 2 * number, 3).iterdir())]
        inputs = reader(images=new, return_tensors="pt")
        assert twin.route(**inputs).argmax(-1).tolist() == [number] * 3
        row = torch.eye(2)[[number] * 3]
        with torch.no_grad():
            found = twin.classify(**inputs, head=name, router_weights=row).logits
            own = transformers.ViTForImageClassification.from_pretrained(world.folder / name).eval()
            torch.testing.assert_close(found, own(**inputs).logits, rtol=1e-4, atol=1e-4)
    static = {path.name for path in (world.folder / "run" / "static").iterdir()}
    assert {"average", "ties"} <= static
    assert (world.folder / "run" / "static" / "average" / "preprocessor_config.json").is_file()


def test_without_images_there_is_no_router_and_the_processor_is_kept(world: World) -> None:
    done = world.run(recipe(world, images=None), "unrouted")
    assert done.code == 0, done.err
    assert "no router: a forward takes router_weights" in done.out
    assert (world.folder / "unrouted" / "merged" / "preprocessor_config.json").is_file()


def test_what_no_router_can_be_made_from_is_refused_at_check(world: World, tmp_path: Path) -> None:
    good = {name: str(world.folder / "seen" / name) for name in NAMES}
    (tmp_path / "none").mkdir()
    bad = foreign.paint(tmp_path / "bad", 0, 3)
    (bad / "1.png").write_bytes(b"no image")
    words = tmp_path / "words.txt"
    words.write_text("one\ntwo\n")
    texts = dict.fromkeys(NAMES, str(words))
    for changes, said in (
        ({"images": {**good, "red": "nowhere"}}, "images.red: images of 'red': nowhere is no folder"),
        ({"images": {**good, "red": str(tmp_path / "none")}}, "a router needs at least two of every task, got 0"),
        ({"images": {**good, "red": str(bad)}}, "1.png cannot be read"),
        ({"images": {"red": good["red"]}}, "images: expected a folder for every expert, got none for 'blue'"),
        ({"images": {**good, "bleu": good["red"]}}, "images.bleu: no task has this name; did you mean 'blue'"),
        ({"texts": texts}, "images: expected none beside texts"),
        ({"texts": texts, "images": None}, "texts: expected images, which the base"),
        (
            {"base": str(world.base), "experts": dict.fromkeys(NAMES, str(world.base))},
            "images: expected texts, which the",
        ),
    ):
        done = world.run(recipe(world, **changes), "refused", "--check")
        assert done.code == 2, said
        assert said in done.err
