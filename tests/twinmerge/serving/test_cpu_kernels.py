"""The products of adapters on CPUs: every token with the factors of its own slot, and none without an adapter."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from twinmerge.serving import cpu_kernels

NAMES = ("sgmv_shrink", "sgmv_expand", "sgmv_expand_slice", "bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
SLOTS, RANK, TAKEN, GIVEN = 3, 4, 6, 5


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("a_vllm_for_cpus")
    for name in NAMES:
        setattr(module, name, None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert cpu_kernels.install(module.__name__)
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


def test_adapters_with_the_same_factor_are_multiplied_together_until_one_changes(
    installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, down = torch.randn(7, TAKEN), torch.randn(SLOTS, 1, RANK, TAKEN)
    up = torch.randn(1, 1, GIVEN, RANK).repeat(SLOTS, 1, 1, 1)
    each = [0, 2, 1, -1, 1, 0, 2]
    products = []
    multiply = torch.Tensor.addmm_
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *a, **k: products.append(a) or multiply(*a, **k))

    def right() -> int:
        products.clear()
        z, y = torch.zeros(7, RANK), torch.ones(7, GIVEN)
        installed.bgmv_shrink(x, down, z, torch.tensor(each), 1.0)
        installed.bgmv_expand(z, up, y, torch.tensor(each))
        want = wanted(x, down[:, 0], up[:, 0], torch.ones(7, GIVEN), each, 1.0)
        torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
        return len(products)

    with torch.inference_mode():
        assert right() == 2  # before and after the token without an adapter
        assert right() == 2
        up[2] += 1.0  # another adapter comes into a slot
        assert right() == 5
        up[2] -= 1.0
        up[2] = up[0]
        assert right() == 2
        up[0, 0, 1, 2] = 5.0
        assert right() == 5


def test_what_stands_in_the_output_is_replaced_where_it_is_not_added_to(installed: Any) -> None:
    torch.manual_seed(0)
    z, up, y = torch.randn(2, RANK), torch.randn(SLOTS, GIVEN, RANK), torch.full((2, GIVEN), float("nan"))
    installed.bgmv_expand(z, up, y, torch.tensor([2, 0]), False)
    torch.testing.assert_close(y, torch.stack([up[2] @ z[0], up[0] @ z[1]]))


def test_a_vllm_with_other_names_keeps_its_own(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    module = ModuleType("another_vllm")
    module.sgmv_shrink = own = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert not cpu_kernels.install(module.__name__)
    assert module.sgmv_shrink is own  # type: ignore[attr-defined]
    assert not cpu_kernels.install("no_such_vllm.at_all")
    assert "its own is used" in caplog.text
