"""The glyph set: a function of seed and index, balanced, and hard but learnable."""

import pytest
import torch
from torch.utils.data import DataLoader

from distill.errors import DistillError
from distill.glyphs import CHARACTERS, MEAN, STD, Glyphs, _masters


def test_an_item_is_a_function_of_seed_and_index():
    whole = Glyphs(300).tensors()
    for index in (0, 7, 299):
        image, label = Glyphs(1000)[index]
        assert torch.equal(image, whole.images[index])
        assert label == whole.labels[index]
    assert torch.equal(Glyphs(300).render([299, 3]).images, whole.images[[299, 3]])
    assert (Glyphs(300, seed=1).tensors().images != whole.images).float().mean() > 0.9


def test_workers_and_batches_do_not_matter():
    glyphs = Glyphs(60)
    alone = DataLoader(glyphs, 7)
    several = DataLoader(glyphs, 13, num_workers=2)
    first, second = (torch.cat([images for images, _ in loader]) for loader in (alone, several))
    assert torch.equal(first, second)
    assert torch.equal(first, glyphs.tensors().images)


def test_there_are_99_characters_in_16_fonts_all_different():
    masters = _masters()
    assert masters.shape[:2] == (99, 16)
    assert len(set(CHARACTERS)) == 99
    assert (masters.flatten(2).sum(-1) > 0).all()
    in_one_font = masters[:, 0].flatten(1)
    distances = torch.cdist(in_one_font, in_one_font) + torch.eye(99) * 1e3
    assert distances.min() > 1  # no two letters of a font are the same picture, and none is the box of a missing one
    assert (torch.cdist(masters[0].flatten(1), masters[0].flatten(1)) + torch.eye(16) * 1e3).min() > 0


def test_classes_are_even_and_intensities_as_documented():
    images, labels = Glyphs(9900, seed=3).tensors()
    counts = labels.bincount(minlength=99)
    assert counts.shape == (99,)
    assert 60 < counts.min() <= counts.max() < 145  # 100 each, five standard deviations
    pixels = images.float() / 255
    assert float(pixels.mean()) == pytest.approx(MEAN, abs=0.005)
    assert float(pixels.std()) == pytest.approx(STD, abs=0.005)
    assert ((images == 0) | (images == 255)).float().mean() < 0.01


def test_it_can_be_learned_by_more_than_chance_and_not_by_a_linear_map():
    images, labels = Glyphs(6000).tensors()
    rest = Glyphs(1000, seed=1).tensors()
    x, y = (i.flatten(1).double() / 255 - MEAN for i in (images, rest.images))
    targets = torch.nn.functional.one_hot(labels, 99).double()
    solution = torch.linalg.solve(x.T @ x + 30 * torch.eye(256), x.T @ targets)
    accuracy = ((y @ solution).argmax(1) == rest.labels).double().mean()
    assert 0.1 < accuracy < 0.5


def test_a_set_without_items_is_refused():
    with pytest.raises(DistillError, match="at least 1 item"):
        Glyphs(0)
    with pytest.raises(IndexError, match="item 5 of a glyph set of 5"):
        Glyphs(5)[5]
