"""The solar cells: the parser on a small file of its format, and the true images where the cache holds them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.data import image_tasks, wheels
from recipes.data.image_tasks import Picture, read_pictures
from recipes.data.solar_cells import CELLS, read_cells
from recipes.data.sources import check_task, load_task
from recipes.data.splits import TextTask
from recipes.data.task_source import TaskSource

LINES = [
    "images/cell0001.png  1.0                 mono",
    "images/cell0002.png  0.0                 mono",
    "images/cell0003.png  0.3333333333333333  poly",
    "images/cell0004.png  0.6666666666666666  mono",
    "images/cell0005.png  0.0                 poly",
    "images/cell0006.png  1.0                 poly",
]
SOURCE = TaskSource(name="solar_cells", kind="images")


def pixels(picture: Picture) -> bytes:
    """What the image holds, whatever its file is like."""
    return picture.open().tobytes()


def check_splits(task: TextTask) -> None:
    """Four classes in every split, in the same shares, and no image on two sides of a cut."""
    assert task.labels == CELLS
    splits = (task.train, task.validation, task.test)
    seen = [{pixels(picture) for picture in split.texts} for split in splits]
    assert [len(found) for found in seen] == [len(split) for split in splits]
    assert len(set.union(*seen)) == sum(map(len, splits))
    for split in splits:
        for label in range(4):
            share = [part.labels.count(label) / len(part) for part in (split, task.train)]
            assert abs(share[0] - share[1]) < 1 / len(split)


def test_cells_that_nobody_is_sure_of_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    told = [(Path(path).relative_to(tmp_path).as_posix(), name) for path, name in read_cells(tmp_path / "labels.csv")]
    assert told == [
        ("images/cell0001.png", "defective mono"),
        ("images/cell0002.png", "functional mono"),
        ("images/cell0005.png", "functional poly"),
        ("images/cell0006.png", "defective poly"),
    ]


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the wheel has it, of 120 cells, of which three occur twice."""
    (tmp_path / "images").mkdir()
    generator, lines = np.random.default_rng(0), []
    for number in range(120):
        name = f"images/cell{number + 1:04}.png"
        image = generator.integers(0, 255, (30, 30)).astype(np.uint8)
        if number >= 117:
            image = np.asarray(Image.open(tmp_path / f"images/cell{number - 115:04}.png"))
        Image.fromarray(image).save(tmp_path / name)
        lines.append(f"{name}  {number % 2}.0  {('mono', 'poly')[number // 2 % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(wheels, "fetch", lambda key: {"elpv": tmp_path}[key])
    return tmp_path


@pytest.mark.usefixtures("drawn")
def test_the_cut_has_no_image_on_two_sides_and_is_the_same_for_every_seed() -> None:
    image_tasks._door.cache_clear()
    task = load_task(SOURCE, 0)
    assert len(task.train) + len(task.validation) + len(task.test) == 117
    check_splits(task)
    image_tasks._door.cache_clear()
    again = load_task(SOURCE, 5)
    for split in ("train", "validation", "test"):
        ours, theirs = getattr(task, split), getattr(again, split)
        assert ours.labels == theirs.labels
        assert list(map(pixels, ours.texts)) == list(map(pixels, theirs.texts))
    fewer = [load_task(TaskSource(name="solar_cells", kind="images", max_train=20), seed).train for seed in (0, 0, 1)]
    drawn_as = [list(map(pixels, split.texts)) for split in fewer]
    assert drawn_as[0] == drawn_as[1] != drawn_as[2]
    assert all(set(found) <= set(map(pixels, task.train.texts)) for found in drawn_as)


def test_the_pre_flight_says_what_is_fetched_on_which_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPBRIDGE_CACHE", str(tmp_path))
    told = check_task(SOURCE)
    assert "elpv-dataset==" in told
    assert "CC-BY-NC-SA-4.0" in told


@pytest.mark.slow
def test_true_cells() -> None:
    names = [name for _, name in read_pictures(SOURCE).rows["train"]]
    assert [names.count(name) for name in CELLS] == [588, 313, 920, 402]
    task = load_task(SOURCE, 0)
    assert (len(task.train), len(task.validation), len(task.test)) == (1556, 222, 445)
    check_splits(task)
    assert {(picture.open().size, picture.open().mode) for picture in task.test.texts[:20]} == {((300, 300), "L")}
