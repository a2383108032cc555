"""Rows of image tasks: what stands in a file is read as it is meant, or refused in a sentence before a run."""

import gzip
import io
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recipes.data.image_tasks import Picture
from recipes.data.sources import check_task, load_task
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError
from recipes.merge.experts import cache_folder
from recipes.merge.schema import Training
from recipes.running.trainer import TrainerConfig


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8))


def content(seed: int) -> bytes:
    stream = io.BytesIO()
    picture(seed).save(stream, "PNG")
    return stream.getvalue()


def folder(where: Path, split: str = "train", count: int = 12, start: int = 0) -> Path:
    for number, name in enumerate(("cat", "dog")):
        (where / split / name).mkdir(parents=True)
        for index in range(count):
            picture(start + 1000 * number + index).save(where / split / name / f"{index:02}.png")
    return where


def source(path: Path, kind: str = "folder", **given: object) -> TaskSource:
    return TaskSource(name="t", kind="images", source=kind, path=str(path), **given)  # type: ignore[arg-type]


def test_every_image_of_a_folder_counts_whatever_its_form(tmp_path: Path) -> None:
    where = folder(tmp_path)
    for index in range(4):
        frames = [picture(5000 + 10 * index + frame) for frame in range(3)]
        frames[0].save(where / "train" / "cat" / f"moving{index}.gif", save_all=True, append_images=frames[1:])
    assert "28 images of train" in check_task(source(where))
    task = load_task(source(where), 0)
    rows = [row for split in (task.train, task.validation, task.test) for row in split.texts]
    moving = [row for row in rows if isinstance(row, Picture) and str(row.source).endswith(".gif")]
    assert (len(rows), len(moving)) == (28, 4)
    assert moving[0].open().convert("RGB").size == (8, 6)


def test_a_split_that_is_named_is_the_one_that_is_read(tmp_path: Path) -> None:
    where = folder(folder(tmp_path), "holdout", 8, 50)
    task = load_task(source(where, test="holdout"), 0)
    assert {Path(str(row.source)).parts[-3] for row in task.test.texts if isinstance(row, Picture)} == {"holdout"}
    assert len(task.test) == 16
    assert len(load_task(source(where, train="holdout", test="train"), 0).test) == 24
    with pytest.raises(RecipeError, match="has no folder elsewhere; it holds holdout, train"):
        check_task(source(where, validation="elsewhere"))
    for kind, path in (("idx", "x"), ("shipped", "mnist")):
        with pytest.raises(FieldError, match=f"expected none for images of source '{kind}'"):
            source(Path(path), kind, test="holdout")


def test_damaged_files_are_found_before_a_run(tmp_path: Path) -> None:
    where = folder(tmp_path)
    (where / "train" / "dog" / "07.png").write_bytes(b"")
    with pytest.raises(RecipeError, match=r"dog/07.png has no content"):
        check_task(source(where))
    (where / "train" / "dog" / "07.png").write_bytes(b"no image at all")
    with pytest.raises(RecipeError, match=r"dog/07.png cannot be read"):
        check_task(source(where))


def test_an_image_too_large_to_be_meant_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(RunError, match="an image cannot be read"):
        Picture(content(0)).open()


@pytest.mark.parametrize("labels", [["x", "y", None], [0.0, 1.0, float("nan")], ["x", "y", ""]])
def test_rows_of_a_table_without_a_class_are_no_class(labels: list[object], tmp_path: Path) -> None:
    images = [{"bytes": content(index), "path": None} for index in range(30)]
    pd.DataFrame({"image": images, "label": labels * 10}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(RunError, match=r"row 3: column 'label' is .*, which is no class; repair it, or drop"):
        load_task(source(tmp_path / "a.parquet", "parquet"), 0)
    task = load_task(source(tmp_path / "a.parquet", "parquet", drop_missing=True), 0)
    assert task.labels == tuple(str(label) for label in labels[:2])
    assert "10 rows without an image or label were left out" in task.notes


def test_tables_of_something_else_are_refused(tmp_path: Path) -> None:
    images: list[object] = [content(index) for index in range(24)]
    file = tmp_path / "a.parquet"
    pd.DataFrame({"image": images, "label": [[0, 1], [1, 1]] * 12}).to_parquet(file)
    with pytest.raises(RunError, match="which are several labels, and a task has one for each row"):
        load_task(source(file, "parquet"), 0)
    pd.DataFrame({"image": [*images[:-1], None], "label": [0, 1] * 12}).to_parquet(file)
    with pytest.raises(RunError, match="row 24: column 'image' holds no content of an image file"):
        load_task(source(file, "parquet"), 0)
    pd.DataFrame({"image": [b"junk"] * 24, "label": [0, 1] * 12}).to_parquet(file)
    with pytest.raises(RecipeError, match="an image cannot be read"):
        check_task(source(file, "parquet"))


def hub(where: Path, label: object, **splits: list[object]) -> Path:
    where.mkdir()
    form = datasets.Features({"image": datasets.Image(), "label": label})
    for split, labels in splits.items():
        start = 100 * (split == "test")
        images = [{"bytes": content(start + index), "path": None} for index in range(len(labels))]
        made = datasets.Dataset.from_dict({"image": images, "label": labels}, features=form)
        made.to_parquet(where / f"{split}.parquet")
    return where


def test_hidden_labels_of_the_hub_are_not_the_last_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    three = datasets.ClassLabel(names=["x", "y", "z"])
    where = hub(tmp_path / "a", three, train=[0, 1, 2] * 8, test=[-1, -1, 0, 1])
    with pytest.raises(RunError, match=r"a\[test\], row 1: column 'label' is None, which is no class"):
        load_task(source(where, "hub", test="test"), 0)
    task = load_task(source(where, "hub", test="test", drop_missing=True), 0)
    assert (task.labels, task.test.labels) == (("x", "y", "z"), [0, 1])
    where = hub(tmp_path / "b", three, train=[0, 1, None] * 8)
    assert len(load_task(source(where, "hub", drop_missing=True), 0).train) == 11
    where = hub(tmp_path / "c", datasets.Sequence(three), train=[[0], [1, 2]] * 8)
    with pytest.raises(RunError, match="which are several labels"):
        load_task(source(where, "hub"), 0)
    with pytest.raises(RunError, match=r"column 'label' of .* holds no images"):
        load_task(source(where, "hub", text=["label"]), 0)


def idx(where: Path, images: int, labels: int) -> Path:
    where.mkdir()
    for part, count, named in (("train", images, labels), ("t10k", 4, 4)):
        pixels = np.random.default_rng(count).integers(0, 255, (count, 4, 4)).astype(np.uint8)
        for name, array in (("images-idx3", pixels), ("labels-idx1", np.arange(named, dtype=np.uint8) % 3)):
            shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
            head = bytes([0, 0, 8, array.ndim]) + shape
            (where / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return where


def test_idx_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    whole = idx(tmp_path / "whole", 30, 30)
    assert len(load_task(source(whole, "idx"), 0).train) == 27
    for images, labels in ((30, 20), (20, 30)):
        where = idx(tmp_path / f"{images}", images, labels)
        with pytest.raises(RunError, match=f"has {images} images of train and {labels} labels"):
            load_task(source(where, "idx"), 0)
    file = whole / "train-images-idx3-ubyte.gz"
    whole_file = file.read_bytes()
    for short in (0, 2, 60):
        file.write_bytes(whole_file[:short])
        with pytest.raises(RecipeError, match=r"train-images-idx3-ubyte.gz is no whole idx file"):
            check_task(source(whole, "idx"))


def test_where_an_image_stands_decides_its_expert(tmp_path: Path) -> None:
    def name(where: Path) -> str:
        return cache_folder("shipped:minilm", source(where), Training(), TrainerConfig(), 0).name

    first = name(folder(tmp_path / "a"))
    assert name(folder(tmp_path / "b")) == first  # the same images elsewhere
    moved = tmp_path / "b" / "train"
    (moved / "cat" / "11.png").rename(moved / "dog" / "!.png")  # another class, the same place in the order of files
    assert name(tmp_path / "b") != first
    folder(tmp_path / "c")
    (tmp_path / "c" / "train" / "cat").rename(tmp_path / "c" / "train" / "cats")
    assert name(tmp_path / "c") != first
