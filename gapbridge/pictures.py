"""Image files as they are meant: upright, 8 bits a channel, and named where they are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


class PictureError(ValueError):
    """An image cannot be read; the message is one sentence: which, why, what to do."""


FORMATS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")  # of a folder's images


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder and of those within it, in order.

    Args:
        folder: Where they are looked for.
    """
    return [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in FORMATS]


def open_image(path: str | BinaryIO) -> Image:
    """An image file as PIL reads it, upright, of 8 bits a channel; of several frames the first.

    A camera's rotation (EXIF) is applied, and 16 bits are brought to 8 by their high byte: PIL's own conversion would
    cut all that is above 255 to white.

    Args:
        path: Of the file, or its content.

    Raises:
        PictureError: If it cannot be read, with its name.
    """
    from PIL.Image import open as read_image

    try:
        with read_image(path) as file:
            image = upright(file)
            image.load()
    except Exception as error:  # each of PIL's readers raises its own, and the guard against huge images too
        raise unreadable(path, error) from error
    return eight_bits(image)


def check_header(path: str) -> None:
    """Refuse a file whose header is that of no image; its pixels are not read.

    Args:
        path: Of the file.

    Raises:
        PictureError: If it cannot be read, with its name.
    """
    from PIL.Image import open as read_image

    try:
        with read_image(path):
            pass
    except Exception as error:  # as above
        raise unreadable(path, error) from error


def unreadable(path: str | BinaryIO, error: Exception) -> PictureError:
    """What is said of an image that cannot be read."""
    name = f"image {path}" if isinstance(path, str) else "content of an image"
    return PictureError(f"the {name} cannot be read ({error}); repair or remove it")


def eight_bits(image: Image) -> Image:
    """A PIL image whose channels hold 0 to 255; whole numbers of 16 bits, as PNG and TIFF keep them, lose their low byte.

    Example:
        >>> from PIL import Image
        >>> eight_bits(Image.fromarray(np.array([[65535, 256]], np.uint16))).getpixel((1, 0))
        1
    """  # noqa: E501
    from PIL.Image import fromarray

    if image.mode == "F":
        raise PictureError("an image holds floating numbers, whose range no file tells; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    whole = image.mode != "I" or values.max(initial=0) > 255  # in 32 bits, as older files are read, 8 bits stay 8
    return fromarray((values >> 8 if whole else values).astype(np.uint8))


def upright(image: Image) -> Image:
    """A PIL image turned as its camera says."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)
