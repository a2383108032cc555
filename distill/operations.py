"""The image operations of RandAugment, with their arguments drawn beforehand: name and number in, image out."""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from distill.draws import Draws
from distill.errors import DistillError

_FILL = 128  # grey, where a moved image leaves nothing


class Operation(NamedTuple):
    """One operation and its argument: degrees, a share of the side, bits, a threshold or a factor; unused by some."""

    name: str
    argument: float


class RandAugment(NamedTuple):
    """How many operations of which strength, as timm names them.

    Attributes:
        operations: Drawn for an image, with replacement.
        magnitude: Mean strength, from 0 to 10.
        deviation: Standard deviation of the strength, which is then clipped to [0, 10].
        probability: That a drawn operation is applied.
        increasing: Whether a higher strength always changes the image more.
    """

    operations: int = 2
    magnitude: float = 10.0
    deviation: float = 0.0
    probability: float = 0.5
    increasing: bool = False

    def draw(self, draws: Draws) -> tuple[Operation, ...]:
        """Operations for one image."""
        drawn = []
        for _ in range(self.operations):
            name, applied = _NAMES[draws.integer(len(_NAMES))], draws.chance(self.probability)
            strength = min(max(draws.normal(self.magnitude, self.deviation), 0.0), 10.0) / 10
            sign = 1.0 if draws.chance(0.5) else -1.0
            if applied:
                drawn.append(Operation(name, argument(name, strength, sign, self.increasing)))
        return tuple(drawn)


def parse(text: str) -> RandAugment:
    """RandAugment in timm's notation.

    Args:
        text: Such as rand-m9-n3-mstd0.5-inc1: magnitude, number, deviation, probability (p) and increasing.

    Raises:
        DistillError: If a part of it is not known.

    Example:
        >>> parse("rand-m7-mstd0.5")
        RandAugment(operations=2, magnitude=7.0, deviation=0.5, probability=0.5, increasing=False)
    """
    kind, *parts = text.split("-")
    fields = {"m": "magnitude", "mstd": "deviation", "p": "probability", "n": "operations", "inc": "increasing"}
    values: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+\.?\d*)", part)
        if match is None or match[1] not in fields:
            kind = ""
            break
        values[fields[match[1]]] = float(match[2])
    if kind != "rand":
        raise DistillError(f"auto_augment is {text!r}; give RandAugment as in rand-m7-mstd0.5, of {', '.join(fields)}")
    plain = RandAugment(**values)  # type: ignore[arg-type]
    return plain._replace(operations=int(plain.operations), increasing=bool(plain.increasing))


def argument(name: str, strength: float, sign: float, increasing: bool) -> float:
    """Argument of an operation.

    Args:
        name: Of the operation.
        strength: From 0 to 1.
        sign: 1 or -1, for the operations that have two directions.
        increasing: As in `RandAugment`.
    """
    if name == "rotate":
        return sign * 30 * strength
    if name.startswith("shear"):
        return sign * 0.3 * strength
    if name.startswith("translate"):
        return sign * 0.45 * strength
    if name == "posterize":
        bits = int(4 * strength)
        return 4 - bits if increasing else bits
    if name == "solarize":
        threshold = min(256, int(256 * strength))
        return 256 - threshold if increasing else threshold
    if name == "solarize_add":
        return min(128, int(110 * strength))
    if name in ("color", "contrast", "brightness", "sharpness"):
        return max(0.1, 1 + sign * 0.9 * strength) if increasing else 0.1 + 1.8 * strength
    return 0.0


def apply(image: Tensor, operation: Operation) -> Tensor:
    """An image after an operation.

    Args:
        image: Shape (channels, height, width), uint8.
        operation: Of `RandAugment.draw`.
    """
    return _OPERATIONS[operation.name](image, operation.argument)


def _affine(image: Tensor, translate: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)) -> Tensor:
    """Move every row or column, to the nearest pixel and as PIL does: (x, y) shows what was at x + shear y + shift."""
    channels, height, width = image.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at_x = (x + 0.5 + shear[0] * (y + 0.5) + translate[0] * width).floor().long()
    at_y = (y + 0.5 + shear[1] * (x + 0.5) + translate[1] * height).floor().long()
    inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
    moved = image[:, at_y.clamp(0, height - 1), at_x.clamp(0, width - 1)]
    return torch.where(inside, moved, torch.tensor(_FILL, dtype=image.dtype)).reshape(channels, height, width)


_OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "autocontrast": lambda image, _: tv.autocontrast(image),
    "equalize": lambda image, _: tv.equalize(image),
    "invert": lambda image, _: tv.invert(image),
    "rotate": lambda image, degrees: tv.rotate(image, degrees, fill=[_FILL]),
    "posterize": lambda image, bits: tv.posterize(image, int(bits)),
    "solarize": lambda image, threshold: torch.where(image.int() >= threshold, 255 - image, image),
    "solarize_add": lambda image, added: torch.where(image < 128, image + int(added), image),
    "color": tv.adjust_saturation,
    "contrast": tv.adjust_contrast,
    "brightness": tv.adjust_brightness,
    "sharpness": tv.adjust_sharpness,
    "shear_x": lambda image, factor: _affine(image, shear=(factor, 0)),
    "shear_y": lambda image, factor: _affine(image, shear=(0, factor)),
    "translate_x": lambda image, share: _affine(image, translate=(share, 0)),
    "translate_y": lambda image, share: _affine(image, translate=(0, share)),
}
_NAMES = tuple(_OPERATIONS)
