"""Views are functions of their numbers, drawn from the documented distributions, and rendered as drawn."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch.utils.data import DataLoader

from distill.errors import DistillError
from distill.order import ViewOrder
from distill.views import Augmentation, Mix, View, ViewDataset, blend, draw_mix, draw_view, render

FULL = Augmentation(size=12, auto_augment="rand-m7-mstd0.5", erase=0.25, mixup=0.2, cutmix=1.0)


class Pictures:
    def __init__(self, count=20, side=16, channels=3):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (count, channels, side, side), generator=generator, dtype=torch.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 5


def all_images(dataset, view, **loader):
    numbers = range(view * len(dataset), (view + 1) * len(dataset))
    return torch.cat([batch["images"] for batch in DataLoader(dataset, sampler=numbers, **loader)])


def test_a_view_does_not_depend_on_order_batches_workers_or_the_global_generators():
    dataset = ViewDataset(Pictures(), FULL, 5, seed=3)
    once = all_images(dataset, 4, batch_size=20)
    torch.manual_seed(99)
    assert torch.equal(all_images(dataset, 4, batch_size=3, num_workers=2), once)
    again = ViewDataset(Pictures(), FULL, 5, seed=3)
    backwards = torch.stack([again.item(4, index)["images"] for index in reversed(range(20))]).flip(0)
    assert torch.equal(backwards, once)
    assert not torch.equal(all_images(dataset, 5, batch_size=20), once)
    assert not torch.equal(all_images(ViewDataset(Pictures(), FULL, 5, seed=4), 4, batch_size=20), once)


def test_the_order_of_views_addresses_them():
    dataset, order = ViewDataset(Pictures(), FULL, 5), ViewOrder(20, 5, repeats=2)
    order.set_epoch(3)
    items = [dataset[number] for number in order]
    assert {item["view"] for item in items} == {6, 7}
    assert all(torch.equal(item["images"], dataset.item(item["view"], item["index"])["images"]) for item in items)


def test_a_finite_number_of_views_comes_around():
    dataset = ViewDataset(Pictures(), FULL, 5, views=3)
    assert torch.equal(all_images(dataset, 1, batch_size=20), all_images(dataset, 7, batch_size=20))
    assert not torch.equal(all_images(dataset, 1, batch_size=20), all_images(dataset, 2, batch_size=20))


def test_an_item_is_the_mix_of_the_views_that_were_drawn():
    dataset = ViewDataset(Pictures(), FULL, 5, seed=1, smoothing=0.1)
    kinds = set()
    for index in range(20):
        item, mix = dataset.item(2, index), draw_mix(FULL, 1, 2, index, 20)
        rendered = []
        for i in (index, mix.partner):
            view = draw_view(FULL, 1, 2, i, 16, 16)
            rendered.append(render(dataset.images[i][0], view, 12))
        if mix.box is None:
            expected = mix.share * rendered[0] + (1 - mix.share) * rendered[1]
        else:
            top, left, height, width = mix.box
            inside = torch.zeros(12, 12, dtype=torch.bool)
            inside[top : top + height, left : left + width] = True
            expected = torch.where(inside, rendered[1], rendered[0])
            assert float(1 - inside.float().mean()) == pytest.approx(mix.share)
        kinds.add(mix.box is None)
        torch.testing.assert_close(item["images"], expected, rtol=0, atol=1e-6)
        labels = torch.full((5,), 0.02)
        labels[index % 5] += 0.9 * mix.share
        labels[mix.partner % 5] += 0.9 * (1 - mix.share)
        torch.testing.assert_close(item["labels"], labels)
    assert kinds == {True, False}


def test_without_mixing_labels_are_classes():
    plain = dataclasses.replace(FULL, mixup=0.0, cutmix=0.0)
    item = ViewDataset(Pictures(), plain, 5).item(0, 7)
    assert (item["labels"], item["index"], item["view"]) == (2, 7, 0)
    assert item["images"].dtype == torch.float32
    assert 0 <= item["images"].min() <= item["images"].max() <= 1


def test_crops_follow_area_and_ratio():
    augmentation = Augmentation(size=32)
    views = [draw_view(augmentation, 0, 0, index, 300, 400) for index in range(2000)]
    crops = np.array([view.crop for view in views])
    assert (crops[:, 0] >= 0).all()
    assert (crops[:, 0] + crops[:, 2] <= 300).all()
    assert (crops[:, 1] + crops[:, 3] <= 400).all()
    ratios = crops[:, 3] / crops[:, 2]
    assert 0.74 < ratios.min() < ratios.max() < 1.35
    small = (crops[:, 2] * crops[:, 3] / 120_000)[crops[:, 2] < 200]
    assert 0.075 < small.min() < 0.1
    assert np.mean([view.flip for view in views]) == pytest.approx(0.5, abs=0.04)
    assert {view.interpolation for view in views} == {"bilinear", "bicubic"}


def test_an_extreme_image_is_cropped_at_the_centre():
    view = draw_view(Augmentation(size=8, scale=(1.0, 1.0)), 0, 0, 0, 10, 400)
    assert view.crop == (0, 193, 10, 13)


def test_mixes_follow_alpha_and_chances():
    augmentation = Augmentation(size=100, mixup=0.3, cutmix=1.0, mix_probability=0.8, switch_probability=0.5)
    mixes = [draw_mix(augmentation, 0, 1, index, 50) for index in range(3000)]
    mixed = [mix for mix in mixes if mix is not None]
    assert len(mixed) / 3000 == pytest.approx(0.8, abs=0.03)
    assert np.mean([mix.box is None for mix in mixed]) == pytest.approx(0.5, abs=0.04)
    shares = [mix.share for mix in mixed if mix.box is None]
    assert stats.kstest(shares, "beta", args=(0.3, 0.3)).pvalue > 1e-3
    assert stats.chisquare(np.bincount([mix.partner for mix in mixed], minlength=50)).pvalue > 1e-3
    assert draw_mix(Augmentation(), 0, 0, 0, 5) is None


def test_padding_moves_the_image_and_fills_with_nothing():
    image = torch.full((1, 8, 8), 200, dtype=torch.uint8)
    augmentation = Augmentation(size=8, crop="pad", padding=2, flip=0.0)
    places = set()
    for index in range(200):
        view = draw_view(augmentation, 0, 0, index, 8, 8)
        places.add(view.crop[:2])
        shown = render(image, view, 8)[0] > 0
        assert shown.sum() == (8 - abs(view.crop[0])) * (8 - abs(view.crop[1]))
    assert places == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_a_plain_view_is_the_image():
    image = Pictures().images[0]
    augmentation = Augmentation(size=16, crop="none", flip=0.0)
    torch.testing.assert_close(render(image, draw_view(augmentation, 0, 0, 0, 16, 16), 16), image / 255)
    mirrored = render(image, View((0, 0, 16, 16), None, "bilinear", True, (), (1, 2, 3, 4)), 16)
    expected = (image / 255).flip(-1)
    expected[:, 1:4, 2:6] = 0.5
    torch.testing.assert_close(mirrored, expected)
    as_pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    dataset = ViewDataset([(as_pil, 3)], augmentation, 5)
    torch.testing.assert_close(dataset[0]["images"], image / 255)


def test_a_share_of_one_changes_nothing():
    first, second = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blend(first, second, Mix(0, 1.0, None)), first)
    assert torch.equal(blend(first, second, Mix(0, 1.0, (2, 2, 0, 0))), first)


def test_the_digest_tells_augmentations_apart():
    assert FULL.digest() == dataclasses.replace(FULL).digest()
    for change in ({"size": 13}, {"flip": 0.4}, {"auto_augment": "rand-m6"}, {"cutmix": 0.5}, {"scale": (0.1, 1.0)}):
        assert dataclasses.replace(FULL, **change).digest() != FULL.digest()


REFUSALS = [
    ({"crop": "center"}, "crop: expected one of 'random_resized', 'pad', 'none', got 'center'"),
    ({"interpolation": "lanczos"}, "interpolation: expected one of 'bilinear', 'bicubic', 'random', got 'lanczos'"),
    ({"flip": 1.5}, "flip: expected a finite number >= 0 and <= 1, got 1.5"),
    ({"mixup": -1.0}, "mixup: expected a finite number >= 0, got -1.0"),
    ({"cutmix": float("inf")}, "cutmix: expected a finite number >= 0, got inf"),
    ({"size": True}, "size: expected a whole number >= 1, got True"),
    ({"size": 0}, "size: expected a whole number >= 1, got 0"),
    ({"scale": (0.5, 0.1)}, "scale is"),
    ({"auto_augment": "rand-q"}, "as in rand-m7-mstd0.5"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSALS)
def test_wrong_augmentation_is_refused_in_a_sentence(change, sentence):
    with pytest.raises(DistillError, match=sentence):
        Augmentation(**change)


def test_images_of_floats_are_refused():
    with pytest.raises(DistillError, match=r"image 0 is of type torch\.float32"):
        ViewDataset([(torch.zeros(1, 4, 4), 0)], FULL, 5)[0]
