"""Small networks of published comparisons that timm has not: ResNets for CIFAR, and plain CNNs for small pictures."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

NAMES = re.compile(r"(?P<kind>cifar_resnet|small_cnn)_?(?P<number>\d+)(?P<wide>x4)?")


class SmallCNN(nn.Module):
    """Four 3x3 convolutions of width w, 2w, 2w and 4w with batch norm, two of them halving the picture, and a mean.

    Args:
        width: w.
        num_classes: Outputs.
        in_chans: Channels of the picture.
    """

    def __init__(self, width: int, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        widths = (in_chans, width, 2 * width, 2 * width, 4 * width)
        self.blocks = nn.Sequential(
            *(_block(a, b, stride) for a, b, stride in zip(widths, widths[1:], (1, 2, 1, 2), strict=False))
        )
        self.head = nn.Linear(4 * width, num_classes)
        self.num_features = 4 * width

    def forward_features(self, images: Tensor) -> Tensor:
        """The last maps."""
        return cast(Tensor, self.blocks(images))

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or the pooled features before them."""
        pooled = maps.mean((-2, -1))
        return pooled if pre_logits else cast(Tensor, self.head(pooled))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.forward_head(self.forward_features(images))


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True))


def small_model(name: str, num_classes: int, **options: Any) -> nn.Module | None:
    """A network by name: small_cnn_<width>, or cifar_resnet<depth>[x4]; None for other names.

    A CIFAR ResNet of depth 6n + 2 is timm's ResNet with three stages of n basic blocks, 16, 32 and 64 wide (64, 128 and
    256 with x4, and then a stem of 32), behind one 3x3 convolution.

    Args:
        name: As above.
        num_classes: Outputs.
        options: in_chans.

    Example:
        >>> sum(p.numel() for p in small_model("cifar_resnet20", 100).parameters())
        278324

    Reference:
        He et al. (2016), arXiv 1512.03385, section 4.2; the x4 nets as in Tian et al. (2020), arXiv 1910.10699.
    """
    found = NAMES.fullmatch(name)
    if found is None:
        return None
    number = int(found["number"])
    if found["kind"] == "small_cnn":
        return SmallCNN(number, num_classes, **options)
    from timm.models.resnet import BasicBlock, ResNet

    stem = 32 if found["wide"] else 16
    widths = (64, 128, 256) if found["wide"] else (16, 32, 64)
    repeats = ((number - 2) // 6,) * 3
    # stem_width only sizes the stem that is replaced; inplanes is what the first stage reads
    build = cast(Callable[..., Any], ResNet)  # timm says of the class of its blocks that it is a block
    model = build(BasicBlock, repeats, num_classes, stem_width=stem // 2, stem_type="deep", channels=widths, **options)
    model.conv1 = nn.Conv2d(options.get("in_chans", 3), stem, 3, padding=1, bias=False)
    model.bn1 = nn.BatchNorm2d(stem)
    model.maxpool = model.layer4 = nn.Identity()
    with torch.no_grad():
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.feature_info = [{**s, "reduction": max(1, s["reduction"] // 4)} for s in model.feature_info]
    return cast(nn.Module, model)
