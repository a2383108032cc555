"""A base's images are those that its own processor makes, or a sentence says why they cannot be."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from recipes.data.image_tasks import Picture
from recipes.data.looks import look_of, saved_reader
from recipes.data.task_source import TaskSource
from recipes.errors import RunError

PROCESSORS = {  # how each cuts an image of another shape
    "squashed, bilinear": transformers.ViTImageProcessor(size={"height": 40, "width": 40}),
    "squashed, bicubic": transformers.SiglipImageProcessor(size={"height": 40, "width": 40}),
    "shorter side, then the centre": transformers.CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}
    ),
    "a margin is cut off": transformers.BitImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 40, "width": 40}
    ),
    "a share is cut off": transformers.ConvNextImageProcessor(size={"shortest_edge": 40}, crop_pct=0.875),
    "an offset": transformers.EfficientNetImageProcessor(
        size={"height": 40, "width": 40}, rescale_factor=1 / 127.5, rescale_offset=True
    ),
    "nothing is normalised": transformers.ViTImageProcessor(size={"height": 40, "width": 40}, do_normalize=False),
}


@pytest.fixture
def image(tmp_path: Path) -> Picture:
    """A photograph-like image, wider than high, whose colours differ everywhere."""
    rows, columns = np.mgrid[0:61, 0:97]
    waves = [np.sin(rows / a + columns / b) for a, b in ((7, 9), (5, -11), (13, 4))]
    pixels = np.clip(np.stack(waves, -1) * 90 + 128 + np.random.default_rng(0).normal(0, 9, (61, 97, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "image.png")
    return Picture(str(tmp_path / "image.png"))


def same(folder: Path, picture: Picture) -> None:
    """Compare with what a user of the processor gets, to half a step of 8 bits."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    wanted = processor(images=[picture.open()], return_tensors="pt")["pixel_values"].float()
    look = look_of(folder)
    assert look.size == 40
    found = look.normalised(look.resized(picture)[None])
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 0.51 / 255 / min(look.std)


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_those_of_the_processor(name: str, image: Picture, tmp_path: Path) -> None:
    PROCESSORS[name].save_pretrained(tmp_path)
    same(tmp_path, image)


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_images_are_those_of_timm(mode: str, image: Picture, tmp_path: Path) -> None:
    told = {"input_size": [3, 40, 40], "crop_pct": 0.875, "crop_mode": mode, "interpolation": "bilinear"}
    told |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    transformers.TimmWrapperConfig(architecture="resnet18", pretrained_cfg=told).save_pretrained(tmp_path)
    same(tmp_path, image)
    assert look_of(tmp_path).mean == pytest.approx((0.4, 0.5, 0.6))
    assert look_of(tmp_path).std == pytest.approx((0.2, 0.3, 0.25))


def test_another_side_shows_the_whole_image(image: Picture, tmp_path: Path) -> None:
    PROCESSORS["a share is cut off"].save_pretrained(tmp_path)
    look = look_of(tmp_path, 24)
    wanted = image.open().resize((round(24 * 97 / 61), 24), Image.Resampling.BICUBIC)
    wanted = wanted.crop((7, 0, 31, 24))
    found = look.resized(image).permute(1, 2, 0)
    assert found.shape == (24, 24, 3)
    assert (found.float() - torch.from_numpy(np.array(wanted)).float()).abs().max() <= 2
    assert look_of(tmp_path, 40).resized(image).equal(look_of(tmp_path).resized(image))


TASKS = [TaskSource(name="mnist", kind="images")]


@pytest.mark.parametrize("name", PROCESSORS)
def test_who_loads_a_model_with_its_processor_gives_it_the_images_of_its_training(
    name: str, image: Picture, tmp_path: Path
) -> None:
    PROCESSORS[name].save_pretrained(tmp_path)
    look = look_of(tmp_path, 24)
    model = SimpleNamespace(config=None)
    made = saved_reader(tmp_path, look, model)  # type: ignore[arg-type]  # which only timm's would need
    assert made is not None
    made.save_pretrained(tmp_path / "saved")
    again = look_of(tmp_path / "saved")
    assert (again.size, again.mean, again.std) == (24, look.mean, look.std)
    assert (again.resized(image).int() - look.resized(image).int()).abs().max() <= 12
    own = saved_reader(tmp_path, look_of(tmp_path), model)  # type: ignore[arg-type]
    assert own is not None
    assert own.to_dict() == PROCESSORS[name].to_dict()  # type: ignore[union-attr]


def test_timm_says_it_in_the_configuration_of_the_model(image: Picture, tmp_path: Path) -> None:
    told = {"input_size": [3, 40, 40], "crop_pct": 0.875, "interpolation": "bilinear", "mean": [0.5] * 3}
    config = transformers.TimmWrapperConfig(architecture="resnet18", pretrained_cfg=told)
    config.save_pretrained(tmp_path)
    look = look_of(tmp_path, 24)
    saved_reader(tmp_path, look, SimpleNamespace(config=config))  # type: ignore[arg-type]
    config.save_pretrained(tmp_path / "saved")
    again = look_of(tmp_path / "saved")
    assert (again.size, again.mean) == (24, look.mean)
    assert (again.resized(image).int() - look.resized(image).int()).abs().max() <= 12


def test_what_no_task_can_use_is_refused(tmp_path: Path) -> None:
    transformers.MobileViTImageProcessor(do_flip_channel_order=True).save_pretrained(tmp_path / "turned")
    with pytest.raises(RunError, match="does more to colours than to scale each channel"):
        look_of(tmp_path / "turned")
    transformers.ViTImageProcessor(do_resize=False).save_pretrained(tmp_path / "as they are")
    with pytest.raises(RunError, match=r"images of 400 and 500 pixels out of two sizes, .*set training.image_size"):
        look_of(tmp_path / "as they are")
    assert look_of(tmp_path / "as they are", 32).size == 32
    (tmp_path / "none").mkdir()
    with pytest.raises(RunError, match="has no image processor"):
        look_of(tmp_path / "none")
