"""What a regime does to a picture: the augmentation of training, the crop of evaluation, and the mixing of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from distill.errors import DistillError
from distill.regimes import Regime

if TYPE_CHECKING:
    from timm.data import Mixup
    from torchvision.transforms.v2 import Compose, Lambda


def mixup(regime: Regime, classes: int) -> Mixup:
    """Mixup and CutMix of timm under a regime: batches in, mixed batches and label distributions out."""
    from timm.data import Mixup

    if regime.batch_size % 2:
        raise DistillError(f"mixup pairs images, so batch_size must be even, got {regime.batch_size}")
    return Mixup(
        regime.mixup,
        regime.cutmix,
        prob=regime.mix_probability,
        switch_prob=regime.switch_probability,
        label_smoothing=regime.smoothing,
        num_classes=classes,
    )


def train_transform(regime: Regime, grey: bool = False) -> Compose:
    """The training augmentation of a regime: PIL image in, tensor out, uint8 or in [0, 1]."""
    from torchvision.transforms import v2

    size = regime.image_size
    flips = [v2.RandomHorizontalFlip(regime.flip)] if regime.flip else []
    if regime.crop == "pad":
        crop = [v2.Resize(size), v2.RandomCrop(size, padding=regime.padding)]
        return v2.Compose([_channels(grey), *crop, *flips, v2.PILToTensor()])
    if regime.crop == "none":
        return v2.Compose([_channels(grey), v2.Resize((size, size)), *flips, v2.PILToTensor()])
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

    made = create_transform(
        size,
        is_training=True,
        scale=regime.scale,
        ratio=regime.ratio,
        hflip=regime.flip,
        color_jitter=regime.color_jitter or None,  # type: ignore[arg-type]
        auto_augment=regime.auto_augment or None,
        interpolation=regime.interpolation,
        re_prob=regime.erase,
        re_mode="pixel",
        normalize=regime.erase > 0,  # erased pixels are noise of the normalised image
    )
    if not regime.erase:
        return v2.Compose([_channels(grey), made])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return v2.Compose([_channels(grey), made, v2.Lambda(lambda image: image * std + mean)])


def evaluation_transform(regime: Regime, grey: bool = False) -> Compose:
    """Resize and crop at the centre, as timm evaluates."""
    from timm.data import create_transform
    from torchvision.transforms import v2

    made = create_transform(regime.image_size, crop_pct=regime.test_crop, interpolation="bicubic", normalize=False)
    return v2.Compose([_channels(grey), made])


def _channels(grey: bool) -> Lambda:
    from torchvision.transforms import v2

    return v2.Lambda(lambda image: image.convert("L" if grey else "RGB"))
