"""Image twins where a forward goes another way than the one that was tried: exact, or refused in a sentence."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import families, vision
from twinmerge import merge
from twinmerge.layouts import probe_inputs

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
