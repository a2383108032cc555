"""Adapters that differ in weights alone are multiplied together, and every token still gets what its own slot holds."""

import pytest
import torch

from twinmerge.serving import families

SLOTS, RANK, TAKEN, WIDTHS = 4, 6, 7, (5, 3)
EACH = [0, 2, 1, -1, 1, 0, 2, 3]
MIXED = torch.tensor([[0.5, 0.5, 0.3, 0.3, 0.2, 0.2], [0, 0, 1, 1, 0, 0], [0.25, 0.25, 0, 0, 0.75, 0.75]])


class Layer:
    """The factors of a layer of two slices, three slots being mixtures and the last an adapter of its own."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        rows = [torch.randn(RANK, TAKEN) for _ in WIDTHS]
        self.downs = [torch.stack([*(w[:, None] * row for w in MIXED), torch.randn(RANK, TAKEN)]) for row in rows]
        self.downs = [down[:, None].to(dtype) for down in self.downs]
        self.ups = [torch.randn(1, 1, width, RANK).repeat(SLOTS, 1, 1, 1).to(dtype) for width in WIDTHS]
        for up in self.ups:
            up[3] = torch.randn_like(up[3])
        self.x, self.base = torch.randn(len(EACH), TAKEN).to(dtype), torch.randn(len(EACH), sum(WIDTHS)).to(dtype)

    def wanted(self, each: list[int], scaling: float) -> torch.Tensor:
        out = self.base.double()
        for token, slot in enumerate(each):
            if slot >= 0:
                shrunk = [down[slot, 0].double() @ self.x[token].double() for down in self.downs]
                added = [up[slot, 0].double() @ z for up, z in zip(self.ups, shrunk, strict=True)]
                out[token] += scaling * torch.cat(added)
        return out.to(self.base.dtype)

    def right(self, each: list[int] = EACH, scaling: float = 1.0, **near: float) -> None:
        y, near = self.base.clone(), near or {"rtol": 1e-5, "atol": 1e-5}
        with torch.inference_mode():
            families.add_adapters(y, self.x[: len(each)], self.downs, self.ups, torch.tensor(each), scaling)
        torch.testing.assert_close(y, self.wanted(each, scaling), equal_nan=True, **near)

    def refill(self, slot: int, downs: list[torch.Tensor], ups: list[torch.Tensor]) -> None:
        for stacked, own in zip([*self.downs, *self.ups], [*downs, *ups], strict=True):
            stacked[slot] = 0
            stacked[slot].copy_(own)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The slots that are compared with a family."""
    found: list[int] = []
    take = families.Family.take
    monkeypatch.setattr(families.Family, "take", lambda self, slot, *a: found.append(slot) or take(self, slot, *a))
    return found


@pytest.mark.parametrize("scaling", [1.0, 0.5])
@pytest.mark.parametrize("each", [EACH, [0, 1, 2, 0, 1, 2, 0, 1], [3] * 8, [-1] * 8, [1, -1, 1, 3, 1, -1, -1, 1]])
def test_every_token_gets_what_its_slot_holds(each: list[int], scaling: float) -> None:
    Layer().right(each, scaling)
    Layer(torch.bfloat16).right(each, scaling, rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixtures_of_one_twin_take_one_product(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, products = Layer(dtype), []
    add = families.Family.add
    monkeypatch.setattr(families.Family, "add", lambda self, y, *a: products.append(len(y)) or add(self, y, *a))
    layer.right(rtol=2e-2, atol=0.2)
    assert sorted(products) == [1, 6]  # the adapter of slot 3, and the mixtures; the token without an adapter has none


def test_only_the_slot_that_was_filled_is_looked_at_again(looked_at: list[int]) -> None:
    layer = Layer()
    layer.right()
    looked_at.clear()
    layer.right()
    assert looked_at == []
    own = [torch.randn(1, RANK, TAKEN) for _ in WIDTHS], [torch.randn(1, width, RANK) for width in WIDTHS]
    layer.refill(1, *own)  # an adapter that is no mixture comes into a slot
    families.fill(1)
    layer.right()
    assert set(looked_at) == {1}
    looked_at.clear()
    weights = torch.tensor([0.125, 0.125, 0.5, 0.5, 0.375, 0.375])[:, None]
    whole = [torch.where(MIXED[0, :, None] > 0, down[0, 0] / MIXED[0, :, None], 0.0) for down in layer.downs]
    layer.refill(1, [(weights * row)[None] for row in whole], [up[0] for up in layer.ups])  # and a mixture again
    families.fill(1)
    layer.right()
    assert set(looked_at) == {1}


def test_a_slot_that_is_filled_for_the_first_time_has_the_others_looked_at_no_more(looked_at: list[int]) -> None:
    layer = Layer()
    layer.right([0, 1, 2, -1] * 2)
    looked_at.clear()
    layer.refill(3, [down[1] for down in layer.downs], [up[1] for up in layer.ups])
    families.fill(3)
    layer.right([0, 1, 2, 3] * 2)
    assert set(looked_at) == {3}


def test_a_family_outlives_the_slots_that_all_got_other_mixtures(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, founded = Layer(), []
    layer.right([1] * 8)
    keep = families.Family.__init__
    monkeypatch.setattr(families.Family, "__init__", lambda self, *a, **k: founded.append(1) or keep(self, *a, **k))
    layer.refill(1, [down[0] for down in layer.downs], [up[0] for up in layer.ups])
    families.fill(1)
    layer.right([1] * 8)
    assert not founded


def test_ranks_that_no_adapter_uses_cost_no_product() -> None:
    downs, ups = [torch.randn(5, 4), torch.randn(5, 4)], [torch.randn(3, 5), torch.randn(2, 5)]
    downs[0][3:], downs[1][1] = 0, 0
    family = families.Family(0, downs, ups, slots=2)
    assert family.near_down.shape == (4, 7)
    assert [up.shape for up in family.near_ups] == [(3, 3), (4, 2)]
    y, x = torch.zeros(6, 5), torch.randn(6, 4)
    family.add(y, x, torch.zeros(6, dtype=torch.long), downs, 2.0)
    torch.testing.assert_close(y, torch.cat([2 * x @ a.t() @ b.t() for a, b in zip(downs, ups, strict=True)], 1))


def test_what_changes_unnoticed_is_found_all_the_same(looked_at: list[int]) -> None:
    layer = Layer()
    layer.right()
    layer.ups[1][0, 0, 1, 2] = 5.0
    layer.right()
    layer.downs[0][2, 0, 1, 2] += 0.01
    layer.right()
    layer.downs[1][0, 0, 3] *= 1 + 1e-5
    layer.right(rtol=1e-6, atol=1e-6)


def test_a_rank_that_the_first_mixture_lacks_comes_with_another() -> None:
    layer = Layer()
    layer.right([1] * 8)  # the founder has two ranks of six
    layer.right([1, 2] * 4)
    layer.right([0, 1, 2, 0, 1, 2, 1, 1])
    for slot in (0, 1, 2):
        layer.right([slot] * 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("slot", "row"), [(0, 1), (1, 0), (2, 3), (2, 4)])
def test_an_adapter_with_no_numbers_spoils_no_other(slot: int, row: int, value: float) -> None:
    layer = Layer()
    layer.downs[0][slot, 0, row, 2] = value
    layer.right([1, -1, 0, 2, 0, 1, 2, 3])
    layer = Layer()
    layer.ups[0][slot, 0, 1, row] = value
    layer.right([1, -1, 0, 2, 0, 1, 2, 3])


def test_layers_that_are_gone_are_not_taken_for_others() -> None:
    for seed in range(20):  # their places in memory are used again
        layer = Layer()
        layer.downs[0] *= 1 + seed / 20
        layer.right()
        del layer
