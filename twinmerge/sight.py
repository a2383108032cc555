"""Whether two image processors make the same of an image: a twin sees every image once, for all of its experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from PIL.Image import Image, new, radial_gradient
from torch import Tensor

from twinmerge.errors import CheckpointError
from twinmerge.unlabelled import image_processor

SHAPES = (600, 400), (500, 800)  # width and height of images by which a processor is asked what it does
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
ROUNDING = 0.04  # of colours in [0, 1]: a pixel's shift and roundings


def differing(wanted: Callable[[Image], Tensor], found: Callable[[Image], Tensor]) -> str:
    """How two processors differ on two images, by more than a pixel's shift and roundings; empty where they do not.

    Args:
        wanted: from an image in red, green and blue to its tensor, shape (channels, height, width).
        found: likewise.

    Returns:
        What the second makes of an image, and the first, for a message.
    """
    for shape in SHAPES:
        image = radial_gradient("L").resize(shape).convert("RGB")
        theirs, ours = found(image), wanted(image)
        if theirs.shape != ours.shape:
            told, here = (" x ".join(map(str, one.shape)) for one in (theirs, ours))
            return f"{told} numbers, and here {here}"
        black, white = (wanted(new("RGB", shape, colour)) for colour in (0, 0xFFFFFF))
        apart = float((theirs - ours).abs().max())
        if not apart <= ROUNDING * float((white - black).abs().max()):
            return f"numbers that differ by up to {apart:.3g}"
    return ""


def check_sight(base: Path, experts: Mapping[str, Path]) -> None:
    """Refuse experts whose own image processor makes other tensors of an image than the base's.

    Args:
        base: folder of the base; one without a processor's file says nothing.
        experts: task -> its folder; likewise.

    Raises:
        CheckpointError: for the first that does, or whose file cannot be read.
    """
    readers = {}
    for task, where in {"": base, **experts}.items():
        try:
            readers[task] = image_processor(where)  # timm's stands in config.json
        except CheckpointError:
            if any((where / name).exists() for name in PROCESSORS):
                raise
    if (wanted := readers.pop("", None)) is None:
        return
    for task, found in readers.items():
        try:
            fault = differing(wanted, found)
        except Exception as error:  # each processor raises its own
            raise CheckpointError(
                f"{experts[task]}: its image processor, or that of {base}, fails on an image ({error}); save a "
                "processor that fits the model."
            ) from error
        if fault:
            raise CheckpointError(
                f"{experts[task]} was trained on other images than those of the base: of one image its processor makes "
                f"{fault}; give an expert that sees images as the base does, or correct the processor that is wrong."
            )
