"""Discs and rectangles on small images, for replays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]


def blank(height: int, width: int) -> Image:
    """A white image, (height, width, 3)."""
    return np.full((height, width, 3), 255, dtype=np.uint8)


def disc(image: Image, centre: ArrayLike, radius: float, colour: Colour) -> None:
    """Fill a disc in place; centre (row, column) and radius in pixels, cut at the edges."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    row, column = np.asarray(centre, dtype=np.float64)
    image[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = colour


def rectangle(image: Image, first: ArrayLike, last: ArrayLike, colour: Colour) -> None:
    """Fill a rectangle in place between two corners (row, column) in pixels, the last not included."""
    (top, left), (bottom, right) = np.asarray(first, dtype=int).clip(min=0), np.asarray(last, dtype=int).clip(min=0)
    image[top:bottom, left:right] = colour
