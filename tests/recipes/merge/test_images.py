"""Image experts through the real command: folders of images, a pre-flight that knows kinds, a twin that answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
import yaml
from PIL import Image

import twinmerge
from benchmarks import families
from recipes.data.image_module import ImageDataModule, MixedImageDataModule
from recipes.data.image_tasks import IMAGE_TASKS, Picture
from recipes.data.looks import Look
from recipes.data.sources import check_task, load_task
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError
from recipes.merge.kinds import check_kind
from recipes.merge.schema import Recipe, Training
from tests.recipes.tiny import World

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def paint(folder: Path, count: int = 24, split: str = "train", size: int = 12) -> Path:
    """A folder of noisy images of one colour each."""
    generator = np.random.default_rng(count)
    for name, colour in COLOURS.items():
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = generator.integers(-20, 20, (size, size, 3))
            image = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("images"))
    resnet = families.build("resnet")
    resnet.save_pretrained(made.folder / "resnet")
    transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(
        made.folder / "resnet"
    )
    paint(made.folder / "colours")
    paint(made.folder / "shades", 20)
    return made


def recipe(world: World, **changes: object) -> dict[str, object]:
    tasks = [
        {"name": name, "kind": "images", "source": "folder", "path": str(world.folder / name)}
        for name in ("colours", "shades")
    ]
    made = world.recipe("merge", **{"training": {"image_size": 24, "augmentation": "crop"}, **changes})
    made["training"].pop("max_length")
    made["trainer"]["max_epochs"] = 1
    made["baselines"] = {"scales": [0.5], "probe": False, "emr": True}
    return made | {"base": str(world.folder / "resnet"), "tasks": tasks}


@pytest.mark.filterwarnings("ignore")
def test_images_are_merged_saved_exported_and_read_again(world: World) -> None:
    given = recipe(world)
    looking = {"data": ["fisher", "adamerging"], "data_items": 6, "data_steps": 2}
    done = world.run(given | {"baselines": given["baselines"] | looking}, "run")
    assert done.code == 0, done.err
    result = json.loads((world.folder / "run" / "result.json").read_text())
    assert {"experts", "pretrained", "average", "routed", "oracle", "emr", *looking["data"]} <= set(result["rows"])
    folder = world.folder / "run" / "merged"
    twin = twinmerge.load(folder)
    assert twin.heads["colours"].label_names == ["blue", "green", "red"]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)  # makes the images of the training
    made = processor(images=[Image.new("RGB", (50, 40))], return_tensors="pt")["pixel_values"]
    assert made.shape == (1, 3, 24, 24)
    export = {"recipe": "export", "source": str(folder), "weights": {"colours": 1.0}}
    assert world.run(export, "dense").code == 0
    model = transformers.AutoModelForImageClassification.from_pretrained(world.folder / "dense" / "dense")
    assert list(model.config.id2label.values()) == ["blue", "green", "red"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("key", "name"), [("data", "regmean"), ("dynamic", "smile"), ("dynamic", "arrow")])
def test_rows_of_linear_layers_are_refused_for_a_base_without_any(world: World, key: str, name: str) -> None:
    given = recipe(world)
    done = world.run(given | {"baselines": given["baselines"] | {key: [name]}}, f"without-{name}")
    assert done.code == 2  # in the pre-flight: the base is here
    assert f"baselines.{key}: {name} merges linear layers, and the base" in done.err
    assert not (world.folder / f"without-{name}" / "experts").exists()


def test_a_base_of_another_kind_is_refused(world: World) -> None:
    given = recipe(world)
    given["base"] = str(world.base)
    done = world.run(given, "kind", "--check")
    assert done.code == 2
    assert "tasks.0.kind: 'colours' is a task of images, and the base" in done.err
    assert "reads texts; give a base such as shipped:efficientnet-lite0" in done.err
    texts = world.recipe("merge", base=str(world.folder / "resnet"))
    done = world.run(texts, "texts", "--check")
    assert done.code == 2
    assert "is a task of texts, and the base" in done.err
    tuned = world.recipe("finetune", base=str(world.folder / "resnet"))
    assert "is a task of texts, and the base" in world.run(tuned, "tuned", "--check").err
    with pytest.raises(RecipeError, match="a clip model"):
        check_kind("clip", [TaskSource(name="trec")], {"model_type": "clip", "vision_config": {}, "text_config": {}})


def test_folders_are_cut_and_overlaps_refused(tmp_path: Path) -> None:
    source = TaskSource(name="colours", kind="images", source="folder", path=str(paint(tmp_path / "a")))
    assert "72 images of train" in check_task(source)
    task = load_task(source, 0)
    assert (len(task.train), len(task.validation), len(task.test)) == (51, 7, 14)
    assert task.labels == ("blue", "green", "red")
    paint(tmp_path / "a", 24, "test")
    with pytest.raises(RunError, match="72 of 72 test rows stand in train too"):
        load_task(source, 1)
    (tmp_path / "b" / "train" / "x").mkdir(parents=True)
    (tmp_path / "b" / "train" / "x" / "1.png").write_text("no image")
    with pytest.raises(RecipeError, match="cannot be read"):
        check_task(TaskSource(name="b", kind="images", source="folder", path=str(tmp_path / "b")))
    with pytest.raises(RecipeError, match="does not exist"):
        check_task(TaskSource(name="c", kind="images", source="folder", path=str(tmp_path / "c")))


def test_parquet_is_checked_by_its_header(tmp_path: Path) -> None:
    import io

    import pandas as pd

    rows = []
    for number in range(30):
        stream = io.BytesIO()
        Image.fromarray(np.full((8, 8), number * 8, np.uint8)).save(stream, "PNG")
        rows.append({"picture": {"bytes": stream.getvalue(), "path": None}, "label": number % 2})
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    source = TaskSource(name="p", kind="images", source="parquet", path=str(tmp_path / "a.parquet"), text=["picture"])
    assert "30 images of train" in check_task(source)
    task = load_task(source, 0)
    assert task.labels == ("0", "1")
    assert task.train.texts[0].open().size == (8, 8)
    with pytest.raises(RecipeError, match="no column 'image'; it has picture, label"):
        check_task(TaskSource(name="p", kind="images", source="parquet", path=str(tmp_path / "a.parquet")))


def test_what_no_image_task_can_be_is_refused() -> None:
    for wrong, match in (
        ({"source": "csv", "path": "a.csv"}, "expected shipped, folder, idx, parquet or hub for images"),
        ({"metric": "pearson_spearman"}, "accuracy"),
        ({"text": ["a", "b"], "path": "mnist"}, "one column"),
        ({"path": "mnits"}, "did you mean 'mnist'"),
    ):
        with pytest.raises(FieldError, match=match):
            TaskSource(name="a", kind="images", **wrong)  # type: ignore[arg-type]
    with pytest.raises(FieldError, match="idx"):
        TaskSource(name="a", source="idx", path="x")
    mixed = [TaskSource(name="mnist", kind="images"), TaskSource(name="trec")]
    with pytest.raises(FieldError, match="all tasks of images or none"):
        Recipe(tasks=mixed)
    with pytest.raises(FieldError, match="expected encoder for tasks of images"):
        Recipe(
            tasks=[TaskSource(name=n, kind="images") for n in ("mnist", "digits")], training=Training(model="causal")
        )


def test_images_are_augmented_by_seed_epoch_and_place(tmp_path: Path) -> None:
    source = TaskSource(name="colours", kind="images", source="folder", path=str(paint(tmp_path)))
    task, look = load_task(source, 0), Look(16, (0.5,) * 3, (0.5,) * 3)
    made = []
    for _ in range(2):
        data = ImageDataModule(task, look, batch_size=8, augmentation="flip", seed=3)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        made.append(data.on_after_batch_transfer(batch, 0)["pixel_values"])
    assert made[0].equal(made[1])
    assert made[0].shape == (8, 3, 16, 16)
    assert made[0].abs().max() <= 1
    plain = ImageDataModule(task, look, batch_size=8, seed=3)
    plain.setup("fit")
    assert not made[0].equal(plain.on_after_batch_transfer(next(iter(plain.train_dataloader())), 0)["pixel_values"])
    mixed = MixedImageDataModule([task, task], look, batch_size=8)
    mixed.setup(None)
    seen = next(iter(mixed.test_dataloader()))
    assert set(seen) == {"pixel_values", "labels", "task"}
    assert set(seen["task"].tolist()) == {0, 1}


def test_shipped_images_and_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(TaskSource(name="digits", kind="images", max_train=50), 0)
    assert (len(task.labels), len(task.train)) == (10, 50)
    assert task.train.texts[0].open().size == (8, 8)
    assert Picture(task.train.texts[0].source, 5).key != Picture(task.train.texts[0].source, 6).key
    root = Path(__file__).parents[3] / "recipes" / "merge"
    for name in ("merge_images", "merge_images_tiny"):
        given = yaml.safe_load((root / f"{name}.yaml").read_text())
        assert all(task["name"] in IMAGE_TASKS for task in given["tasks"])
    from recipes.data import image_tasks

    monkeypatch.setattr(image_tasks, "FASHION", Path("/nowhere"))
    with pytest.raises(RecipeError, match="install Debian's dataset-fashion-mnist, or give"):
        check_task(TaskSource(name="fashion_mnist", kind="images"))
