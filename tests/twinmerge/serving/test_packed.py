"""Linear layers by oneDNN are the linear layers they stand for, and are taken only where they are faster."""

import pytest
import torch
from torch import nn

from twinmerge.serving import packed


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24, bias=False), nn.LayerNorm(24), nn.Linear(24, 5)
    )


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a processor where oneDNN is faster; the products that it made."""
    made: list[int] = []
    product = packed._product
    monkeypatch.setattr(packed, "_faster", lambda weight: True)
    monkeypatch.setattr(packed, "_product", lambda *a: made.append(1) or product(*a))
    return made


def test_products_are_those_of_pytorch(always: list[int]) -> None:
    model, x = net(), torch.randn(2, 7, 24)
    with torch.inference_mode(), packed.Packed(model):
        found = model(x)
    with torch.inference_mode():
        torch.testing.assert_close(found, model(x))
        assert len(always) == 3  # outside, the model is what it was
        other = nn.Linear(24, 3)
        with packed.Packed(model):
            torch.testing.assert_close(other(x), x @ other.weight.t() + other.bias)
            torch.testing.assert_close(nn.functional.linear(x, model[0].weight, bias=model[0].bias), model[0](x))
    assert len(always) == 5


@pytest.mark.parametrize("why", ["slower", "bfloat16", "large", "none"])
def test_nothing_is_copied_where_it_does_not_pay(why: str, always: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = net().to(torch.bfloat16) if why == "bfloat16" else net()
    if why == "slower":
        monkeypatch.setattr(packed, "_faster", lambda weight: False)
    if why == "large":
        monkeypatch.setattr(packed, "LIMIT", 100)
    mode = packed.Packed(nn.LayerNorm(3) if why == "none" else model)
    assert not mode.copies
    with torch.inference_mode(), mode:
        model(torch.randn(3, 24, dtype=model[0].weight.dtype))
    assert not always


@pytest.mark.parametrize(("seconds", "taken"), [(0.5, True), (0.9, False), (1.5, False)])
def test_the_trial_takes_the_faster(seconds: float, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def lasting(time: float) -> torch.Tensor:
        now[0] += time
        return torch.zeros(1)

    monkeypatch.setattr(packed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(packed, "linear", lambda x, weight: lasting(1.0))
    monkeypatch.setattr(packed, "_product", lambda x, weight: lasting(seconds))
    assert packed._faster(torch.randn(8, 6)) == taken
