"""Glyph-99: pictures of 99 characters in 16 fonts, made on demand, for experiments along an axis of data size.

Latin letters, digits, Greek and Cyrillic in the DejaVu and STIX fonts that come with matplotlib, under a random affine
map, contrast, blotches and noise, at 16 x 16 pixels: as many images as one asks for, and many classes that look alike.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import ndtri
from torch import Tensor
from torch.utils.data import Dataset

from distill.arguments import check_given
from distill.draws import Draws
from distill.errors import DistillError
from gapbridge.arguments import Finite, Seed

CHARACTERS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789" + "αβγδεζηθικλμνξπρστυφχψω" + "БДЖЗИЛПЦЧШЩЭЮЯ"
)
FAMILIES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
SIDE = 16
MEAN, STD = 0.328, 0.179  # of the images in [0, 1]

_CANVAS, _POINTS = 48, 34
_WIDTHS = (0.9, 0.28, 0.5, 0.22, 0.22)  # of the draws of angle (radians), scale, shear and shifts (half canvases)
_SCALE = 0.76  # middle of the scale: above 0 and below 1, since it maps the view into the canvas
_GRID = 4  # blotches a side
_RANGE = 4.0  # intensities from -1 to 3 are stored in 256 steps
_BATCH = 4096


class Rendered(NamedTuple):
    """Images and their classes.

    Attributes:
        images: Shape (rows, 1, 16, 16), uint8.
        labels: Positions in `CHARACTERS`, shape (rows,), int64.
    """

    images: Tensor
    labels: Tensor


class Glyphs(Dataset[tuple[Tensor, int]]):
    """A set of glyphs; item i is a function of the seed and i alone, so smaller sets are the beginnings of larger ones.

    Args:
        items: How many, any number.
        seed: Of the set; sets of different seeds are independent, so train, validation and test take one each.
        noise: Standard deviation of the pixel noise, in units of a stroke's intensity.

    Example:
        >>> image, label = Glyphs(10)[3]
        >>> image.shape, image.dtype, len(CHARACTERS)
        (torch.Size([1, 16, 16]), torch.uint8, 99)
    """

    def __init__(self, items: int, seed: Seed = 0, *, noise: Finite = 0.22) -> None:
        check_given(Glyphs.__init__, locals())
        if items < 1 or not noise >= 0:
            raise DistillError(f"a glyph set needs at least 1 item and noise of at least 0, got {items} and {noise}")
        self.items, self.seed, self.noise = items, seed, noise

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self.items:
            raise IndexError(f"item {index} of a glyph set of {self.items}")
        images, labels = self.render([index])
        return images[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        images, labels = self.render(indices)
        return list(zip(images, labels.tolist(), strict=True))

    def tensors(self) -> Rendered:
        """The whole set."""
        parts = [self.render(range(i, min(i + _BATCH, self.items))) for i in range(0, self.items, _BATCH)]
        return Rendered(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))

    def render(self, indices: Sequence[int]) -> Rendered:
        """Some items at once.

        Args:
            indices: Of the items, from 0 to the number of items.
        """
        count = 3 + len(_WIDTHS) + _GRID**2 + SIDE**2
        u = torch.from_numpy(np.stack([Draws(self.seed, index).uniforms(count) for index in indices]))
        labels, fonts = (u[:, 0] * len(CHARACTERS)).long(), (u[:, 1] * _masters().shape[1]).long()
        contrast = (1 + 2 * u[:, 2]).float().reshape(-1, 1, 1, 1)
        angle, scale, shear, x, y = ((u[:, 3 : 3 + len(_WIDTHS)] - 0.5) * torch.tensor(_WIDTHS)).unbind(1)
        normal = torch.from_numpy(ndtri(u[:, 3 + len(_WIDTHS) :].numpy())).float()

        cosine, sine = angle.cos() * (_SCALE + scale), angle.sin() * (_SCALE + scale)
        theta = torch.stack([cosine, shear - sine, x, sine, cosine, y], 1).float().reshape(-1, 2, 3)
        grid = F.affine_grid(theta, [len(u), 1, 2 * SIDE, 2 * SIDE], align_corners=False)
        strokes = F.avg_pool2d(F.grid_sample(_masters()[labels, fonts][:, None], grid, align_corners=False), 2)
        blotches = normal[:, : _GRID**2].reshape(-1, 1, _GRID, _GRID)
        blotches = 0.3 * F.interpolate(blotches, size=(SIDE, SIDE), mode="bilinear")
        noise = self.noise * normal[:, _GRID**2 :].reshape(-1, 1, SIDE, SIDE)
        intensity = contrast * strokes + blotches + noise
        return Rendered(((intensity + 1) / _RANGE * 255).round().clamp(0, 255).to(torch.uint8), labels)


@functools.cache
def _masters() -> Tensor:
    """Every character in every font, clean and large: shape (characters, fonts, 48, 48), in [0, 1]."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = [f"{family}{style}" for family in FAMILIES for style in _styles(family)]
    canvases = np.zeros((len(CHARACTERS), len(names), _CANVAS, _CANVAS), np.float32)
    for j, name in enumerate(names):
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), _POINTS, layout_engine=ImageFont.Layout.BASIC)
        for i, character in enumerate(CHARACTERS):
            canvas = Image.new("L", (_CANVAS, _CANVAS))
            pen = ImageDraw.Draw(canvas)
            left, top, right, bottom = pen.textbbox((0, 0), character, font=font)
            place = ((_CANVAS - (right - left)) / 2 - left, (_CANVAS - (bottom - top)) / 2 - top)
            pen.text(place, character, font=font, fill=255)
            canvases[i, j] = np.asarray(canvas, np.float32) / 255
    return torch.from_numpy(canvases)


def _styles(family: str) -> tuple[str, ...]:
    """Endings of the four files of a family."""
    if family == "STIXGeneral":
        return ("", "Bol", "BolIta", "Italic")
    slanted = "Italic" if family == "DejaVuSerif" else "Oblique"
    return ("", "-Bold", f"-Bold{slanted}", f"-{slanted}")
