"""Augmented views whose every random choice is a function of a seed, a view and an index: nothing else is remembered.

A view is drawn first, as plain numbers, and rendered then. Two calls with the same numbers give the same pixels, in any
process and order, so a teacher's answer stored under (view, index) belongs to exactly the crop, the operations and the
mix that the student sees.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict

import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from distill.arguments import check_given
from distill.draws import Draws
from distill.errors import DistillError
from distill.operations import Operation, apply, parse
from gapbridge.arguments import Count, NotNegative, Positive, ProperShare, Seed, Share, Whole

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]  # top, left, height, width
_OWN, _MIX = 0, 1  # purposes of draws: an image's own view is the same whether or not it is mixed


@dataclass(frozen=True)
class Augmentation:
    """What views are drawn from.

    Attributes:
        size: Side of a view, in pixels.
        crop: `random_resized`, `pad` (resize, then a crop moved by at most `padding`), or `none` (resize alone).
        scale: Area of a random resized crop, as shares of the image.
        ratio: Its aspect ratios, width over height.
        padding: Pixels of zeros around the image for `pad`.
        interpolation: `bilinear`, `bicubic`, or `random` for either, by chance.
        flip: Probability of a horizontal flip.
        auto_augment: RandAugment in timm's notation, as rand-m7-mstd0.5; empty is none.
        erase: Probability of a grey box of 2 to 33 % of the view.
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of CutMix; 0 is off.
        mix_probability: Share of views that are mixed.
        switch_probability: Share of these that take CutMix where both are on.
    """

    size: Count = 224
    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    padding: Whole = 4
    interpolation: Literal["bilinear", "bicubic", "random"] = "random"
    flip: Share = 0.5
    auto_augment: str = ""
    erase: Share = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    mix_probability: Share = 1.0
    switch_probability: Share = 0.5

    def __post_init__(self) -> None:
        """Refuse what no view can be drawn from."""
        check_given(Augmentation.__init__, vars(self))
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise DistillError(f"{name} is {(low, high)}, but it must rise")
        if self.auto_augment:
            parse(self.auto_augment)

    @property
    def mixes(self) -> bool:
        """Whether a view may be a mix of two images."""
        return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def digest(self) -> str:
        """Hash of all values and of the library that renders them, for the key of a cache."""
        values = {**dataclasses.asdict(self), "torchvision": torchvision.__version__}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class View:
    """One image's own view: everything that rendering needs besides the image.

    Attributes:
        crop: Part of the image that is resized to the view; it may reach beyond the image.
        resized: Height and width to which the image is brought before the crop; None keeps it.
        interpolation: Of the resize.
        flip: Whether it is mirrored.
        operations: Applied in this order.
        erased: Box of the view that is grey, or None.
    """

    crop: Box
    resized: tuple[int, int] | None
    interpolation: str
    flip: bool
    operations: tuple[Operation, ...]
    erased: Box | None


@dataclass(frozen=True)
class Mix:
    """How a second image enters a view.

    Attributes:
        partner: Index of the other image, whose own view of the same number is mixed in.
        share: Weight of the first image's label, from 0 to 1.
        box: Part of the view that shows the partner (CutMix), or None for a weighted sum of pixels (mixup).
    """

    partner: int
    share: float
    box: Box | None


def draw_view(augmentation: Augmentation, seed: int, view: int, index: int, height: int, width: int) -> View:
    """The view of one image, as numbers.

    Args:
        augmentation: What to draw from.
        seed: Of all views of a run.
        view: Number of the view, such as the epoch.
        index: Of the image in its data set.
        height: Of the image.
        width: Of the image.

    Returns:
        A :class:`View`, the same for the same arguments.
    """
    draws, size = Draws(seed, _OWN, view, index), augmentation.size
    resized = None if augmentation.crop == "random_resized" else (size, size)
    if augmentation.crop == "random_resized":
        crop = _resized_crop(draws, augmentation, height, width)
    elif augmentation.crop == "pad":
        reach = 2 * augmentation.padding + 1
        top, left = (draws.integer(reach) - augmentation.padding for _ in range(2))
        crop = (top, left, size, size)
    else:
        crop = (0, 0, size, size)
    interpolation = augmentation.interpolation
    bicubic = draws.chance(0.5)
    return View(
        crop,
        resized,
        ("bicubic" if bicubic else "bilinear") if interpolation == "random" else interpolation,
        draws.chance(augmentation.flip),
        parse(augmentation.auto_augment).draw(draws) if augmentation.auto_augment else (),
        _erased(draws, size) if draws.chance(augmentation.erase) else None,
    )


def draw_mix(augmentation: Augmentation, seed: int, view: int, index: int, images: int) -> Mix | None:
    """The partner of a view and how it is mixed in, or None where it is not.

    The partner is drawn for every image apart, from all images: a batch has no say, so that the view stays a function
    of its numbers however batches are made.

    Args:
        augmentation: What to draw from.
        seed: Of all views of a run.
        view: Number of the view.
        index: Of the image.
        images: How many there are to draw the partner from.

    Reference:
        Zhang et al. (2018), "mixup", arXiv 1710.09412; Yun et al. (2019), "CutMix", arXiv 1905.04899, equation 2.
    """
    draws = Draws(seed, _MIX, view, index)
    if not augmentation.mixes or not draws.chance(augmentation.mix_probability):
        return None
    partner, both = draws.integer(images), augmentation.mixup > 0 and augmentation.cutmix > 0
    switched = draws.chance(augmentation.switch_probability)
    cut = switched if both else augmentation.cutmix > 0
    share = draws.beta(augmentation.cutmix if cut else augmentation.mixup)
    if not cut:
        return Mix(partner, share, None)
    size, side = augmentation.size, int(augmentation.size * math.sqrt(1 - share))
    edges = []
    for _ in range(2):
        centre = draws.integer(size)
        start, end = max(centre - side // 2, 0), min(centre + side // 2, size)
        edges.append((start, end - start))
    (top, tall), (left, wide) = edges
    return Mix(partner, 1 - tall * wide / size**2, (top, left, tall, wide))


def render(image: Tensor, view: View, size: int) -> Tensor:
    """An image's own view.

    Args:
        image: Shape (channels, height, width), uint8.
        view: Of `draw_view` for an image of this height and width.
        size: Side of the view.

    Returns:
        Shape (channels, size, size), float32 in [0, 1]; a network's own mean and deviation come later.
    """
    mode = InterpolationMode(view.interpolation)
    if view.resized is not None and image.shape[-2:] != view.resized:
        image = tv.resize(image, list(view.resized), interpolation=mode, antialias=True)
    image = tv.crop(image, *view.crop)
    if image.shape[-2:] != (size, size):
        image = tv.resize(image, [size, size], interpolation=mode, antialias=True)
    if view.flip:
        image = tv.horizontal_flip(image)
    for operation in view.operations:
        image = apply(image, operation)
    image = image.float() / 255
    if view.erased is not None:
        top, left, height, width = view.erased
        image[:, top : top + height, left : left + width] = 0.5
    return image


def blend(first: Tensor, second: Tensor, mix: Mix) -> Tensor:
    """The mix of two views of one shape.

    Args:
        first: Shape (channels, size, size), floating.
        second: The partner's.
        mix: Of `draw_mix`.
    """
    if mix.box is None:
        return first * mix.share + second * (1 - mix.share)
    top, left, height, width = mix.box
    mixed = first.clone()
    mixed[:, top : top + height, left : left + width] = second[:, top : top + height, left : left + width]
    return mixed


class Labelled(Protocol):
    """Pairs of image and class; an image is a uint8 tensor (channels, height, width) or a PIL image."""

    def __len__(self) -> int:
        """Number of pairs."""

    def __getitem__(self, index: int, /) -> tuple[Tensor | Image, int]:
        """A pair."""


class ViewItem(TypedDict):
    """A view of an image as an item of a batch; labels are a class, or a distribution over the classes."""

    images: Tensor
    labels: Tensor | int
    index: int
    view: int


class ViewDataset(Dataset[ViewItem]):
    """Views of a data set, addressed by one number: items of `images`, `labels`, `index` and `view`.

    Number n is view n // images of image n % images, as :class:`~distill.order.ViewOrder` gives them: there is no epoch
    to set, and none to forget in a loader's process.

    Args:
        images: Pairs of image (a uint8 tensor (channels, height, width) or a PIL image) and class.
        augmentation: What views are drawn from.
        classes: Number of classes; labels are distributions where views are mixed or labels smoothed, else indices.
        seed: Of all views.
        views: Distinct views of an image, after which they come around; 0 never repeats one. A cached teacher costs
            `views` passes over the data, however many epochs the student trains.
        smoothing: Label smoothing.
    """

    def __init__(
        self,
        images: Labelled,
        augmentation: Augmentation,
        classes: Count,
        *,
        seed: Seed = 0,
        views: Whole = 0,
        smoothing: ProperShare = 0.0,
    ) -> None:
        check_given(ViewDataset.__init__, locals())
        self.images, self.augmentation, self.classes = images, augmentation, classes
        self.seed, self.views, self.smoothing = seed, views, smoothing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> ViewItem:
        view, index = divmod(number, len(self))
        return self.item(view % self.views if self.views else view, index)

    def item(self, view: int, index: int) -> ViewItem:
        """The item of a view of an image."""
        image, label = self._own(view, index)
        mix = draw_mix(self.augmentation, self.seed, view, index, len(self))
        labels: Tensor | int = label
        if mix is not None:
            other, other_label = self._own(view, mix.partner)
            image = blend(image, other, mix)
            labels = self._distribution(label) * mix.share + self._distribution(other_label) * (1 - mix.share)
        elif self.augmentation.mixes or self.smoothing > 0:
            labels = self._distribution(label)
        return {"images": image, "labels": labels, "index": index, "view": view}

    def _own(self, view: int, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        image = image if isinstance(image, Tensor) else tv.pil_to_tensor(image)
        if image.dtype != torch.uint8:
            raise DistillError(f"image {index} is of type {image.dtype}; views are rendered from uint8 or PIL images")
        drawn = draw_view(self.augmentation, self.seed, view, index, *image.shape[-2:])
        return render(image, drawn, self.augmentation.size), int(label)

    def _distribution(self, label: int) -> Tensor:
        distribution = torch.full((self.classes,), self.smoothing / self.classes)
        distribution[label] += 1 - self.smoothing
        return distribution


def _resized_crop(draws: Draws, augmentation: Augmentation, height: int, width: int) -> Box:
    """Area and shape by chance, as torchvision's RandomResizedCrop: ten tries, then the centre at the nearest ratio."""
    low, high = augmentation.ratio
    for _ in range(10):
        area = height * width * draws.uniform(*augmentation.scale)
        ratio = math.exp(draws.uniform(math.log(low), math.log(high)))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        top, left = draws.uniform(), draws.uniform()
        if 0 < wide <= width and 0 < tall <= height:
            return int(top * (height - tall + 1)), int(left * (width - wide + 1)), tall, wide
    wide, tall = min(width, round(height * high)), min(height, round(width / low))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def _erased(draws: Draws, size: int) -> Box | None:
    """A box of 2 to 33 % of the area, of aspect 0.3 to 3.3: ten tries.

    Reference:
        Zhong et al. (2017), "Random erasing data augmentation", arXiv 1708.04896, algorithm 1.
    """
    for _ in range(10):
        area = size**2 * draws.uniform(0.02, 1 / 3)
        ratio = math.exp(draws.uniform(math.log(0.3), math.log(1 / 0.3)))
        tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < tall < size and 0 < wide < size:
            return draws.integer(size - tall), draws.integer(size - wide), tall, wide
    return None
