"""Images and orders: the same view from anywhere, repeated augmentation as published, refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from distill import DistillError, ImageData
from distill.data import Images, Views, cut
from distill.order import ViewLoader, ViewOrder, view_of
from distill.regimes import regime
from distill.transforms import train_transform

SMALL = {"image_size": 16, "batch_size": 8, "warmup_epochs": 0, "epochs": 2}


def folder(path, classes=("cat", "dog"), splits=("train", "val"), images=6):
    draw = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (path / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / split / name / f"{i}.png")
    return path


def images(rows=6):
    draw = np.random.default_rng(1)
    return Images(draw.integers(0, 256, (rows, 20, 20, 3)), np.arange(rows) % 2)


@pytest.mark.parametrize("name", ["A1", "previous_imagenet", "previous_cifar", "substitute_imagenet_vit"])
def test_a_view_is_a_function_of_its_number(name):
    views = Views(images(), train_transform(regime(name, {"image_size": 16})), seed=5)
    first = [views[v]["images"] for v in range(12)]
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    again = [views[v]["images"] for v in reversed(range(12))][::-1]
    state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    views[3]
    assert torch.equal(torch.get_rng_state(), state)  # and leaves the generators alone
    assert not torch.equal(first[0], first[6])  # the next epoch's view of the same row
    assert first[0].shape == (3, 16, 16)


def test_orders_of_two_processes_are_the_order_of_one(monkeypatch):
    whole = list(ViewOrder(20, 4, seed=1))
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("distill.order.world", lambda r=rank: (2, r))
        parts.append(list(ViewOrder(20, 2, seed=1)))
    assert [view for pair in zip(*parts, strict=True) for view in pair] == whole
    assert sorted(whole) == list(range(20))


def test_repeated_augmentation_is_timms(monkeypatch):
    from timm.data.distributed_sampler import RepeatAugSampler

    monkeypatch.setattr("distill.order.world", lambda: (4, 1))
    order = ViewOrder(600, 8, repeats=3, shuffle=False)
    published = list(RepeatAugSampler(range(600), 4, 1, shuffle=False, num_repeats=3))
    views = list(order)
    assert [view_of(view, 600)[0] for view in views] == published
    assert len(order) == len(published)
    order.set_epoch(1)
    assert not set(order) & set(views)  # new views in every epoch
    monkeypatch.setattr("distill.order.world", lambda: (1, 0))
    alone = list(ViewOrder(600, 8, repeats=3))
    assert len(set(alone)) == len(alone) == 512


def test_a_loader_goes_on_where_it_was():
    loader = ViewLoader(Views(images(), train_transform(regime("A2", {"image_size": 8}))), ViewOrder(6, 2, seed=2))
    batches = iter(loader)
    next(batches)
    place = loader.state_dict()
    rest = [b["images"] for b in batches]
    other = ViewLoader(Views(images(), train_transform(regime("A2", {"image_size": 8}))), ViewOrder(6, 2, seed=2))
    other.load_state_dict(place)
    assert all(torch.equal(a, b["images"]) for a, b in zip(rest, other, strict=True))
    with pytest.raises(ValueError, match="written with seed 2, now it is 3"):
        ViewLoader(Views(images(), None), ViewOrder(6, 2, seed=3)).load_state_dict(place)


def test_folders_make_batches_in_the_unit_interval(tmp_path):
    data = ImageData("folder", str(folder(tmp_path)), regime="A1", changes=SMALL, classes=2)
    data.setup()
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 12, "validation": 12, "test": 12}
    batch = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(batch, 0)
    assert batch["images"].shape == (8, 3, 16, 16)
    assert 0 <= batch["images"].min() <= batch["images"].max() <= 1
    assert batch["labels"].tolist() == [data.splits["train"].targets[i] for i in batch["index"]]
    mixed, labels = data._mixup(batch["images"].clone(), batch["labels"])
    assert labels.shape == (8, 2)
    torch.testing.assert_close(labels.sum(-1), torch.ones(8))
    assert mixed.shape == batch["images"].shape


def test_erased_pixels_are_noise_and_the_rest_stays_in_range():
    transform = train_transform(regime("substitute_imagenet_vit", {"image_size": 16, "erase": 1.0}))
    made = Views(images(), transform)[0]["images"]
    assert made.dtype == torch.float32
    assert made.min() < 0 or made.max() > 1  # noise of the normalised image


def test_missing_splits_are_cut_and_the_same_for_every_seed():
    made = cut({"train": images(40)})
    assert {k: len(v) for k, v in made.items()} == {"train": 28, "validation": 4, "test": 8}
    rows = [row for split in made.values() for row in split.rows]
    assert sorted(rows) == list(range(40))


@pytest.mark.parametrize("splits", [("train", "val"), ("train", "val", "test")])
def test_rows_of_a_folder_that_are_kept_are_of_all_classes(tmp_path, splits):
    """A folder is read class by class, of which the first rows are cats alone."""
    where = folder(tmp_path, splits=splits, images=20)
    kept = {}
    for limit in (8, 16):
        data = ImageData("folder", str(where), changes=SMALL, classes=2, rows=limit, test_rows=limit)
        data.setup()
        for split, images in data.splits.items():
            assert len(images) == limit
            assert set(images.targets) == {0, 1}
            assert [images[row][1] for row in range(limit)] == images.targets
            shown = [np.asarray(images[row][0]).tobytes() for row in range(limit)]
            assert shown[:8] == kept.setdefault(split, shown)
    assert (kept["test"] == kept["validation"]) == ("test" not in splits)
    whole = ImageData("folder", str(where), changes=SMALL, classes=2)
    whole.setup()
    for loader in (whole.val_dataloader(), whole.test_dataloader()):  # of which a trainer may take some batches
        assert set(next(iter(loader))["labels"].tolist()) == {0, 1}
        assert sorted(row for batch in loader for row in batch["labels"].tolist()) == [0] * 20 + [1] * 20


def test_real_digits_and_glyphs():
    data = ImageData("digits", changes=SMALL, classes=10, grey=True, rows=50, test_rows=20)
    data.setup()
    assert next(iter(data.val_dataloader()))["images"].shape == (8, 1, 16, 16)
    assert data.item_labels() == data.splits["train"].targets
    glyphs = ImageData("glyphs", changes=SMALL, classes=99, grey=True, rows=30, test_rows=10)
    glyphs.setup()
    assert {k: len(v) for k, v in glyphs.splits.items()} == {"train": 30, "validation": 10, "test": 10}


def test_refusals(tmp_path):
    def read(where, classes=2, **changes):
        ImageData("folder", str(where), changes={**SMALL, **changes}, classes=classes).setup()

    with pytest.raises(DistillError, match="does not exist; set path"):
        read(tmp_path / "nowhere")
    with pytest.raises(DistillError, match=r"has no folder train; put images into .*/train/<class>/"):
        read(tmp_path)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(DistillError, match="holds no images; put them into one folder a class"):
        read(tmp_path)
    other = folder(tmp_path / "other", classes=("cat", "dog", "owl"))
    with pytest.raises(DistillError, match="labels go from 0 to 2, but there are 2 classes"):
        read(other)
    with pytest.raises(DistillError, match="mixup pairs images, so batch_size must be even, got 7"):
        read(other, 3, batch_size=7)
    data = ImageData("folder", str(other), changes={**SMALL, "batch_size": 64}, classes=3)
    data.setup()
    with pytest.raises(DistillError, match="18 training rows a process do not fill one batch of 64"):
        data.train_dataloader()


def test_cached_training_is_online_training(tmp_path):
    import lightning

    from distill import DistillModule
    from distill.cached_data import CachedImageData
    from distill.small import SmallCNN

    changes = {**SMALL, "optimizer": "adamw", "schedule_on": "update", "drop_path": 0.0, "repeats": 2, "image_size": 8}
    ends, calls = [], []
    for cached in (False, True):
        torch.manual_seed(0)
        student, teacher = SmallCNN(2), SmallCNN(4)
        module = DistillModule(student, teacher, changes=changes, classes=10, log_gradients_every=0)
        data = CachedImageData(
            "digits",
            views=2,
            folder=str(tmp_path / "cache"),
            changes=changes,
            classes=10,
            grey=True,
            rows=24,
            test_rows=8,
        )
        if cached:
            data.fill(module._teacher, "small")
            module._teacher.network.register_forward_hook(lambda *_: calls.append(1))
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        fit = lightning.Trainer(max_epochs=3, accelerator="cpu", devices=1, limit_val_batches=0, **quiet)
        fit.fit(module, datamodule=data)
        ends.append([p.detach().clone() for p in student.parameters()])
    assert not calls  # the cache stood in
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
