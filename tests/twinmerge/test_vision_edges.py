"""Image twins where a forward goes another way than the one that was tried: exact, or refused in a sentence."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from benchmarks import families, vision
from twinmerge import merge, recalibrate, wrap_timm
from twinmerge.attaching import attach_layer
from twinmerge.errors import CheckpointError
from twinmerge.folders import read_folder
from twinmerge.layouts import probe_inputs
from twinmerge.mixture import Mixture
from twinmerge.routed_images import image_kind

pytestmark = pytest.mark.filterwarnings("ignore")
WEIGHTS = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)


def twin_of(model: Any) -> tuple[Any, dict[str, dict[str, Tensor]]]:
    inputs = probe_inputs(model, 3)
    assert inputs is not None
    experts = families.fine_tuned(model, inputs)
    twin, _ = merge(copy.deepcopy(model), experts, "average", rank={"density": 1.0})
    return twin.eval(), experts


def images(height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(1))


def dense(model: Any, experts: dict[str, dict[str, Tensor]], row: Tensor) -> Any:
    """The mean of the experts by plain arithmetic, which shares no code with the package."""
    made = copy.deepcopy(model)
    named = next(iter(experts.values()))
    state = {n: sum(w * e[n].double() for w, e in zip(row.double(), experts.values(), strict=True)) for n in named}
    made.load_state_dict({n: v.float() for n, v in state.items()}, strict=False)
    return made.eval()


@pytest.mark.parametrize("name", ["clip_vision_model", "siglip classifier"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_positions_that_are_read_past_their_module_are_no_silent_mixture(name: str, mode: Any) -> None:
    model = vision.tower(name)
    twin, experts = twin_of(model)
    with mode():
        for weights in (WEIGHTS, WEIGHTS[:1]):  # one row too: the shared expert's positions are nobody's
            with pytest.raises(ValueError, match=r"position_embedding.weight' is read outside of the part that sees"):
                twin(pixel_values=images(64, 64), router_weights=weights, interpolate_pos_encoding=True)
        got = twin(pixel_values=images(), router_weights=WEIGHTS)[0]
        for i, row in enumerate(WEIGHTS):
            wanted = dense(model, experts, row)(pixel_values=images()[i : i + 1])[0]
            torch.testing.assert_close(got[i : i + 1], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_efficientnet", "convnext_atto"])
def test_twins_with_grouped_convolutions_take_channels_last(name: str) -> None:
    twin, _ = twin_of(vision.of_timm(name))
    x = images(64, 64)
    with torch.no_grad():
        wanted = twin(pixel_values=x, router_weights=WEIGHTS)[0]
        last = twin.to(memory_format=torch.channels_last)
        got = last(pixel_values=x.to(memory_format=torch.channels_last), router_weights=WEIGHTS)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


class Gained(nn.Conv2d):
    """A convolution that scales each of its outputs by a fixed number."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("gain", torch.linspace(0.5, 3.0, self.out_channels).reshape(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.gain, self.bias)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_that_scales_its_kernel_is_no_plain_one(groups: int) -> None:
    conv = Gained(4, 4, 3, groups=groups)
    assert image_kind(conv) is None
    differences = [{"weight": 0.3 * torch.randn(conv.weight.shape)} for _ in range(2)]
    mixture, x = Mixture(), torch.randn(2, 4, 6, 6)
    stock = copy.deepcopy(conv)
    routed = attach_layer(conv, mixture, {"weight": [d["weight"] for d in differences]})
    with torch.no_grad(), mixture.use(torch.eye(2)):
        got = routed(x)
        for i, difference in enumerate(differences):
            wanted = torch.func.functional_call(stock, {"weight": stock.weight + difference["weight"]}, (x[i : i + 1],))
            torch.testing.assert_close(got[i : i + 1], wanted, rtol=1e-4, atol=1e-5)


def test_statistics_of_a_twin_stay_where_they_are_in_training() -> None:
    twin, _ = twin_of(families.build("resnet"))
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    twin.train()
    with torch.no_grad():
        together = twin.features(pixel_values=images())
        alone = torch.cat([twin.features(pixel_values=image[None]) for image in images()])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_grey_models_of_timm_are_exact(name: str) -> None:
    given = {**vision.TIMM[name], "in_chans": 1}
    torch.manual_seed(0)
    model = wrap_timm(timm.create_model(name, num_classes=0, **given).eval(), given)
    twin, experts = twin_of(model)
    x = images(channels=1)
    with torch.no_grad():
        got = twin(pixel_values=x, router_weights=WEIGHTS).pooler_output
        for i, row in enumerate(WEIGHTS):
            wanted = dense(model, experts, row)(pixel_values=x[i : i + 1]).pooler_output
            torch.testing.assert_close(got[i : i + 1], wanted, rtol=1e-4, atol=1e-5)


def test_a_body_that_computes_otherwise_than_the_base_is_refused(tmp_path: Path) -> None:
    base = families.build("resnet")
    base.config.layer_type = "bottleneck"
    torch.manual_seed(0)
    base = type(base)(base.config).eval()
    base.save_pretrained(tmp_path / "base")
    base.save_pretrained(tmp_path / "expert")
    assert read_folder(tmp_path / "expert", tmp_path / "base", base).error == 0
    dense = families.build("deit")  # a class whose head is none that is read gives its body
    transformers.DeiTForImageClassificationWithTeacher(dense.config).save_pretrained(tmp_path / "other")
    assert read_folder(tmp_path / "other", tmp_path / "none", dense).head is None
    card = json.loads((tmp_path / "expert" / "config.json").read_text())
    card["downsample_in_bottleneck"] = not card["downsample_in_bottleneck"]  # the same tensors, another model
    (tmp_path / "expert" / "config.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="its configuration is not the base's"):
        read_folder(tmp_path / "expert", tmp_path / "base", base)


def test_statistics_that_cannot_be_taken_anew_stay_as_they_are() -> None:
    model = vision.of_timm("resnet18")
    model.unused = nn.BatchNorm2d(4)
    model.unused.running_mean.fill_(7.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    several = {"pixel_values": images()}
    with pytest.raises(ValueError, match=r"a batch of one image leaves a batch norm one value for each channel"):
        recalibrate(model, [several, {"pixel_values": images()[:1]}])  # the last map has one place
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    recalibrate(model, [several])
    assert model.unused.running_mean.eq(7.0).all()
    assert not torch.equal(model.state_dict()["timm_model.bn1.running_mean"], before["timm_model.bn1.running_mean"])
