"""RandAugment's operations against timm's on PIL images, pixel by pixel, and its draws against timm's notation."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_augment

from distill.draws import Draws
from distill.errors import DistillError
from distill.operations import Operation, RandAugment, apply, argument, parse

THEIRS = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "solarize_add": "SolarizeAdd",
    "color": "Color",
    "contrast": "Contrast",
    "brightness": "Brightness",
    "sharpness": "Sharpness",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


def picture(height=24, width=20):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 5, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0.05, 0.9)
    return (255 * smooth[0]).to(torch.uint8)


def timm_result(name, value, image):
    as_pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    moved = {"resample": Image.Resampling.NEAREST, "fillcolor": (128, 128, 128)}
    arguments = () if timm_augment.LEVEL_TO_ARG[name] is None else (value,)
    result = timm_augment.NAME_TO_OP[name](as_pil, *arguments, **moved)
    return torch.from_numpy(np.array(result)).permute(2, 0, 1)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("strength", [0.2, 0.7, 1.0])
def test_an_operation_is_timms(name, strength, monkeypatch):
    image = picture()
    for sign in (1.0, -1.0):
        monkeypatch.setattr(timm_augment, "_randomly_negate", lambda v, sign=sign: sign * v)
        for increasing in (False, True):
            label = THEIRS[name]
            label += "Increasing" if increasing and f"{label}Increasing" in timm_augment.LEVEL_TO_ARG else ""
            level = timm_augment.LEVEL_TO_ARG[label]
            value = argument(name, strength, sign, increasing)
            if level is not None:
                assert value == pytest.approx(level(10 * strength, {"translate_pct": 0.45})[0])
            if (name, value) == ("posterize", 0):  # nothing is left, and PIL refuses
                assert not apply(image, Operation(name, value)).any()
                continue
            theirs = timm_result(label, int(value) if "solar" in name or "post" in name else value, image)
            ours = apply(image, Operation(name, value))
            assert ours.shape == image.shape
            assert ours.dtype == torch.uint8
            difference = (ours.int() - theirs.int()).abs()
            # a pixel at the edge of a rotation may round to its neighbour; levels may round to the next
            assert (difference > (1 if name != "equalize" else 3)).float().mean() < 0.02


def test_the_notation_is_timms():
    for text in ("rand-m7-mstd0.5", "rand-m9-n3-mstd0.5-inc1", "rand-m5-p0.3"):
        theirs = timm_augment.rand_augment_transform(text, {})
        ours = parse(text)
        first = theirs.ops[0]
        assert (ours.operations, ours.magnitude, ours.probability) == (theirs.num_layers, first.magnitude, first.prob)
        assert ours.deviation == first.magnitude_std
        assert ours.increasing == any("Increasing" in op.name for op in theirs.ops)


def test_draws_follow_the_magnitudes():
    rand = RandAugment(operations=2, magnitude=7, deviation=0.5)
    drawn = [operation for index in range(3000) for operation in rand.draw(Draws(0, index))]
    assert len(drawn) == pytest.approx(3000, rel=0.05)  # two operations, each with probability one half
    names, counts = np.unique([operation.name for operation in drawn], return_counts=True)
    assert set(names) == set(THEIRS)
    assert counts.max() < 1.5 * counts.min()
    angles = np.array([operation.argument for operation in drawn if operation.name == "rotate"])
    assert np.abs(angles).mean() == pytest.approx(21, abs=0.5)
    assert (angles > 0).mean() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("text", ["rand-x3", "augmix-m3", "rand-m", "m7"])
def test_other_notation_is_refused(text):
    with pytest.raises(DistillError, match=r"as in rand-m7-mstd0\.5"):
        parse(text)
