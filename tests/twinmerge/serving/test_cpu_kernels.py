"""The products of adapters on CPUs: every token with the factors of its own slot, and none without an adapter."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from twinmerge.serving import cpu_kernels

NAMES = ("sgmv_shrink", "sgmv_expand", "sgmv_expand_slice", "bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
SLOTS, RANK, TAKEN, GIVEN = 3, 4, 6, 5


class Manager:
    """As much of vLLM's manager as fills slots."""

    def __init__(self, fails: bool = False) -> None:
        self.lora_index_to_id: list[int | None] = [None] * SLOTS
        self.fails = fails

    def activate_adapter(self, lora_id: int) -> bool:
        if lora_id in self.lora_index_to_id:
            return False
        self.lora_index_to_id[self.lora_index_to_id.index(None)] = lora_id
        if self.fails:
            raise ValueError("half way")
        return True


class Wrapper:
    """As much of vLLM's wrapper as adds adapters, with the slots of the tokens in work."""

    def __init__(self, each: list[int]) -> None:
        self.token_lora_indices = torch.tensor(each)

    def add_lora_linear(self, y: Any, *inputs: Any, **options: Any) -> None:
        y.fill_(7.0)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("a_vllm_for_cpus")
    for name in NAMES:
        setattr(module, name, None)
    module.PunicaWrapperCPU = type("PunicaWrapperCPU", (Wrapper,), {})  # type: ignore[attr-defined]
    module.LoRAModelManager = type("LoRAModelManager", (Manager,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert cpu_kernels.install(module.__name__, module.__name__)
    return module


def wanted(x: Any, down: Any, up: Any, base: Any, each: list[int], scaling: float) -> Any:
    rows = []
    for token, row, slot in zip(x, base, each, strict=True):
        added = up[slot].double() @ (down[slot].double() @ token.double()) if slot >= 0 else 0.0
        rows.append(row.double() + scaling * added)
    return torch.stack(rows).to(base.dtype)


@pytest.mark.parametrize("dims", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("slots", "lengths"), [([2, -1, 0], [2, 5, 3]), ([1, 2, 0], [1, 1, 1]), ([-1], [4])])
def test_tokens_take_the_factors_of_their_slot(
    installed: Any, slots: list[int], lengths: list[int], dtype: torch.dtype, dims: int
) -> None:
    torch.manual_seed(0)
    tokens, each = sum(lengths), [s for s, count in zip(slots, lengths, strict=True) for _ in range(count)]
    x, base = torch.randn(tokens, TAKEN).to(dtype), torch.randn(tokens, GIVEN + 3).to(dtype)
    down, up = torch.randn(SLOTS, RANK, TAKEN).to(dtype), torch.randn(SLOTS, GIVEN, RANK).to(dtype)
    stacked = [f[:, None] if dims == 4 else f for f in (down, up)]
    runs = (torch.zeros(0), torch.tensor(lengths), torch.tensor(slots), len(slots), max(lengths), tokens)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 0.1}
    want = base.clone()
    want[:, 2 : 2 + GIVEN] = wanted(x, down, up, base[:, 2 : 2 + GIVEN], each, 0.5)

    z, y = torch.zeros(tokens, RANK), base.clone()
    installed.sgmv_shrink(x, stacked[0], z, *runs, 0.5)
    installed.sgmv_expand_slice(z, stacked[1], y, *runs, 2, GIVEN, True)
    torch.testing.assert_close(y, want, **near)

    z, y, places = torch.zeros(tokens, RANK), base.clone(), torch.tensor(each)
    installed.bgmv_shrink(x, stacked[0], z, places, 0.5)
    installed.bgmv_expand_slice(z, stacked[1], y, places, 2, GIVEN)
    torch.testing.assert_close(y, want, **near)

    for call in (
        lambda out: installed.sgmv_expand(z, stacked[1], out, *runs, True),
        lambda out: installed.bgmv_expand(z, stacked[1], out, places),
    ):  # an output that is wider than the adapter's, and one that is narrower
        y = base.clone()
        call(y)
        torch.testing.assert_close(y[:, :GIVEN], wanted(x, down, up, base[:, :GIVEN], each, 0.5), **near)
        assert torch.equal(y[:, GIVEN:], base[:, GIVEN:])
        narrow = base[:, :3].clone()
        call(narrow)
        torch.testing.assert_close(narrow, wanted(x, down, up[:, :3], base[:, :3], each, 0.5), **near)


def test_linear_layers_add_the_adapters_of_all_slices(installed: Any) -> None:
    torch.manual_seed(0)
    each, widths = [2, -1, 0, 1, 1], (GIVEN, 2)
    x, base = torch.randn(5, TAKEN), torch.randn(5, sum(widths))
    downs, ups = torch.randn(2, SLOTS, 1, RANK, TAKEN), [torch.randn(SLOTS, 1, width, RANK) for width in widths]
    y = base.clone()
    installed.PunicaWrapperCPU(each).add_lora_linear(y, x, tuple(downs), tuple(ups), 0.5, widths)
    pairs = zip(downs, ups, base.split(widths, 1), strict=True)
    want = torch.cat([wanted(x, down[:, 0], up[:, 0], part, each, 0.5) for down, up, part in pairs], 1)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    for cut in ((GIVEN, 1), (2, GIVEN)):  # other columns than the factors have: vLLM's own
        y = base.clone()
        installed.PunicaWrapperCPU(each).add_lora_linear(y, x, tuple(downs), tuple(ups), 0.5, cut)
        assert (y == 7.0).all()


def test_slots_that_are_filled_are_noted(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[int] = []
    monkeypatch.setattr(cpu_kernels, "fill", noted.append)
    manager = installed.LoRAModelManager()
    assert [manager.activate_adapter(name) for name in (11, 12, 11, 13)] == [True, True, False, True]
    assert noted == [0, 1, 2]
    broken = installed.LoRAModelManager(fails=True)
    with pytest.raises(ValueError, match="half way"):
        broken.activate_adapter(14)
    assert noted == [0, 1, 2, 0]


def test_what_stands_in_the_output_is_replaced_where_it_is_not_added_to(installed: Any) -> None:
    torch.manual_seed(0)
    z, up, y = torch.randn(2, RANK), torch.randn(SLOTS, GIVEN, RANK), torch.full((2, GIVEN), float("nan"))
    installed.bgmv_expand(z, up, y, torch.tensor([2, 0]), False)
    torch.testing.assert_close(y, torch.stack([up[2] @ z[0], up[0] @ z[1]]))


def test_a_layer_that_an_adapter_leaves_alone_takes_no_product(installed: Any) -> None:
    y, z, up = torch.ones(3, GIVEN), torch.zeros(3, RANK), torch.full((SLOTS, 1, GIVEN, RANK), float("nan"))
    up[1], z[1] = 1.0, 1.0
    installed.bgmv_expand(z, up, y, torch.tensor([0, 1, 2]), True)
    torch.testing.assert_close(y, torch.ones(3, GIVEN) + torch.tensor([0.0, RANK, 0.0])[:, None])


def test_a_vllm_with_other_names_keeps_its_own(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    module = ModuleType("another_vllm")
    module.sgmv_shrink = own = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert not cpu_kernels.install(module.__name__)
    assert module.sgmv_shrink is own  # type: ignore[attr-defined]
    assert not cpu_kernels.install("no_such_vllm.at_all")
    assert "its own is used" in caplog.text
