"""How a base sees images: what its own processor makes of them, and the scale that it brings colours to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from recipes.data.models import reader_of, resolve_model
from recipes.errors import RunError
from twinmerge.errors import CheckpointError
from twinmerge.sight import SHAPES, differing
from twinmerge.unlabelled import image_processor, pixels_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from PIL.Image import Image
    from transformers import BaseImageProcessor, PreTrainedModel

    from recipes.data.image_tasks import Picture
    from recipes.data.models import Reader

__all__ = ["Look", "check_reader", "check_taken", "look_of", "saved_reader"]

COLOUR = (200, 110, 40)
BICUBIC = 3  # of Pillow, and so of transformers' processors


@dataclass(frozen=True)
class Look:
    """How a base sees images.

    Attributes:
        size: Side in pixels.
        mean: Of every channel, of images in [0, 1].
        std: Likewise.
        processed: What the base's processor makes of an image, shape (3, height, width), on the base's scale; None
            resizes the whole image.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    processed: Callable[[Image], Tensor] | None = None

    def resized(self, picture: Picture) -> Tensor:
        """A picture of three channels and 8 bits as the base's processor cuts it, shape (3, size, size).

        Without a processor its shorter side is brought to the size, and the rest of the longer one is cut off.
        """
        return self.cut(picture.open().convert("RGB"))

    def cut(self, image: Image) -> Tensor:
        """What `resized` makes of an image in red, green and blue."""
        from torchvision.transforms import v2

        if self.processed is None:
            pixels = v2.functional.pil_to_tensor(image)
            bicubic = v2.InterpolationMode.BICUBIC
            pixels = v2.functional.resize(pixels, [self.size], interpolation=bicubic, antialias=True)
        else:
            mean, std = self._columns(torch.device("cpu"))
            pixels = ((self.processed(image) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        made: Tensor = v2.functional.center_crop(pixels, [self.size, self.size])
        return made

    def pixels(self, picture: Picture) -> Tensor:
        """A picture as the base takes it, shape (1, 3, size, size)."""
        return self.normalised(self.resized(picture)[None])

    def normalised(self, images: Tensor) -> Tensor:
        """Images of 8 bits, shape (batch, 3, size, size), as the base takes them."""
        mean, std = self._columns(images.device)
        return (images.float() / 255 - mean) / std

    def _columns(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (self.mean, self.std))
        return mean, std


def look_of(base: str | Path, size: int = 0) -> Look:
    """How a base sees images, by what its processor makes of some.

    The processor itself is asked, whatever its settings are called: its way of resizing and cutting is used as it is,
    and mean and standard deviation are read off what becomes of black and white.

    Args:
        base: ``shipped:`` name, folder or Hub id.
        size: Side in pixels instead of the processor's, to which whole images are resized; 0 takes the processor's.

    Raises:
        RunError: When the base has no image processor, or one that does more to colours than a scale and an offset for
            each channel, or gives images whose side depends on the input while no size is asked for.
    """
    from PIL.Image import new

    processed = _processor(base)
    found = [
        [_seen(base, processed, new("RGB", shape, colour)) for shape in SHAPES] for colour in (0, 0xFFFFFF, COLOUR)
    ]
    black, white, colour = (images[0][:, images[0].shape[1] // 2, images[0].shape[2] // 2] for images in found)
    std = 1 / (white - black)
    mean = -black * std
    look = Look(size, tuple(mean.tolist()), tuple(std.tolist()))
    if not torch.allclose(look.normalised(torch.tensor(COLOUR).view(1, 3, 1, 1)).flatten(), colour, atol=1e-4):
        raise RunError(
            f"the image processor of the base {base} does more to colours than to scale each channel; give a base "
            "whose processor normalises red, green and blue by a mean and a standard deviation"
        )
    shapes = {tuple(image.shape[1:]) for image in found[0]}
    if size and shapes != {(size, size)}:
        return look
    own = sorted({min(shape) for shape in shapes})
    if len(own) > 1:
        raise RunError(
            f"the image processor of the base {base} makes images of {' and '.join(map(str, own))} pixels out "
            "of two sizes, and a task needs one; set training.image_size"
        )
    if shapes != {(own[0], own[0])}:
        told = " and ".join(f"{height} x {width}" for height, width in sorted(shapes))
        raise RunError(
            f"the image processor of the base {base} makes images of {told} pixels, and tasks of images are squares; "
            "set training.image_size, to which whole images are resized"
        )
    return Look(own[0], look.mean, look.std, processed)


def check_taken(model: PreTrainedModel, look: Look) -> None:
    """Try a model on one image as the tasks will give it.

    Args:
        model: The base, or one like it; its mode is kept.
        look: How it is to see images.

    Raises:
        RunError: When it takes no such image.
    """
    mode = model.training
    image = torch.zeros(1, 3, look.size, look.size, dtype=model.dtype, device=model.device)
    try:
        with torch.no_grad():
            model.eval()(pixel_values=image)
    except Exception as error:  # each model raises its own
        reason = " ".join(str(error).split())[:160].rstrip(".")
        raise RunError(
            f"training.image_size: a {type(model).__name__} takes no images of 3 x {look.size} x {look.size} pixels "
            f"({reason}); set the size and the channels that the base was made for, or give another base"
        ) from error
    finally:
        model.train(mode)


def check_reader(where: Path, look: Look) -> str:
    """Why an expert was trained on other images than a merge gives it; empty where it was not, or does not say.

    Args:
        where: Folder of the expert.
        look: Of the merge.

    Returns:
        Words that go on after the folder's name.
    """
    try:
        reader = _processor(where)
    except RunError:
        return ""
    if _agree(look, reader):
        return ""
    try:
        own = look_of(where)
    except RunError as error:
        return f"has an image processor of its own ({error})"
    if (own.mean, own.std) != (look.mean, look.std):
        what = f"are normalised by mean {_told(own.mean)} and deviation {_told(own.std)}, and here by "
        what += f"{_told(look.mean)} and {_told(look.std)}"
    else:
        what = f"have {own.size} pixels a side, and here {look.size}" if own.size != look.size else "are cut otherwise"
    return (
        f"was trained on other images by its own processor: they {what}; give an expert that sees images as the base "
        "does, set training.image_size, or correct its processor if that is wrong"
    )


def _told(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.3g}" for value in values)


def _processor(base: str | Path) -> Callable[[Image], Tensor]:
    """The processor of a base, from one image to its tensor."""
    try:
        return image_processor(resolve_model(base) if isinstance(base, str) else base)
    except CheckpointError as error:
        raise RunError(f"base: {error}") from error


def _seen(base: str | Path, processed: Callable[[Image], Tensor], image: Image) -> Tensor:
    """What a processor makes of an image, which must be three channels of numbers."""
    try:
        found = processed(image)
    except Exception as error:  # each processor raises its own
        reason = " ".join(str(error).split())[:160]
        raise RunError(
            f"the image processor of the base {base} fails on an image ({reason}); give another base"
        ) from error
    if found.ndim != 3 or found.shape[0] != 3:
        raise RunError(
            f"the image processor of the base {base} makes {tuple(found.shape)} out of an image, and tasks of images "
            "need three channels of pixels; give another base"
        )
    return found.float()


def saved_reader(where: Path | str, look: Look | None, model: PreTrainedModel) -> Reader | None:
    """What to save beside a model, so that who loads both gives it the inputs that it was trained on.

    Args:
        where: Folder or Hub id of the tokenizer or processor.
        look: How the model saw images; None for texts.
        model: To be saved; the processor of timm's models stands in its configuration, which is changed.

    Returns:
        The tokenizer or the processor; None where no processor of this kind makes what the look makes.
    """
    reader = reader_of(where, images=look is not None)
    if look is None or look.processed is not None:
        return reader
    processor = cast("BaseImageProcessor", reader)
    if hasattr(processor, "data_config"):  # of timm
        whole = {"input_size": [3, look.size, look.size], "crop_pct": 1.0, "crop_mode": "center"}
        model.config.pretrained_cfg = {**model.config.pretrained_cfg, **whole, "interpolation": "bicubic"}
        made = type(processor).from_dict({"pretrained_cfg": model.config.pretrained_cfg})
    else:
        whole = {"size": {"shortest_edge": look.size}, "crop_size": {"height": look.size, "width": look.size}}
        whole |= {"do_resize": True, "do_center_crop": True, "resample": BICUBIC, "crop_pct": 1.0}
        made = type(processor).from_dict({**processor.to_dict(), **whole})
    return cast("Reader", made) if _agree(look, pixels_by(made)) else None


def _agree(look: Look, reader: Callable[[Image], Tensor]) -> bool:
    """Whether a processor makes the same of two images as a look, but for a pixel's shift and roundings."""
    return not differing(lambda image: look.normalised(look.cut(image)[None])[0], reader)
