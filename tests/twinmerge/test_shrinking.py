"""Layers that take one tensor share one product with their factors A, and stay exact whatever happens to the model."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.twinmerge import tiny
from twinmerge import attach, densify
from twinmerge.routed_layers import RoutedLinear


def twin_of(name: str = "llama") -> Any:
    model = {"llama": tiny.llama, "gpt2": tiny.gpt2, "mixtral": tiny.mixtral}[name]()
    return attach(model, tiny.TASKS, tiny.differences(model, size=0.6), tiny.router(32)).eval()


def wanted(twin: Any, ids: Any, weights: Any) -> Any:
    dense = (densify(twin, dict(zip(twin.tasks, row, strict=True))) for row in weights.tolist())
    with torch.no_grad():
        return torch.cat([model(ids[i : i + 1]).logits for i, model in enumerate(dense)])


def routed(twin: Any, ids: Any, weights: Any) -> Any:
    with torch.inference_mode():
        return twin(ids, router_weights=weights).logits.clone()


def test_query_key_and_value_and_gate_and_up_are_siblings() -> None:
    twin = twin_of()
    for layer in twin.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        assert attention.q_proj.siblings.modules == [attention.q_proj, attention.k_proj, attention.v_proj]
        assert mlp.gate_proj.siblings.modules == [mlp.gate_proj, mlp.up_proj]
        assert attention.o_proj.siblings is mlp.down_proj.siblings is None


@pytest.mark.parametrize("rows", [1, 4])
def test_one_product_serves_all_siblings(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, weights = twin_of(), tiny.mixtures(4)[:rows]
    ids = tiny.text(4, padding="none")["input_ids"][:, :2]  # so few that no matrix is merged
    want = wanted(twin, ids, weights if rows == 4 else weights.expand(4, -1))
    products, stock = [], F.linear
    monkeypatch.setattr(F, "linear", lambda x, w, b=None: products.append(tuple(w.shape)) or stock(x, w, b))
    got = routed(twin, ids, weights)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    # stacked ranks of 3 experts of rank 2: q, k and v, then gate and up; o, down and the output head by themselves
    shrinks = [shape for shape in products if shape[0] in (18, 12, 6)]
    assert sorted(shrinks) == sorted([(18, 32), (12, 32), (6, 32), (6, 48)] * 2 + [(6, 32)] * (len(shrinks) - 8))
    assert len(shrinks) in (8, 9)


def test_layers_with_biases_share_one_product_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights, inputs = tiny.bert(), tiny.mixtures(4), tiny.text(tokens=1)
    experts = tiny.differences(model)
    twin = attach(model, tiny.TASKS, experts).eval()
    want = tiny.reference(tiny.bert(), experts, weights, inputs)
    products, stock = [], F.linear
    monkeypatch.setattr(F, "linear", lambda x, w, b=None: products.append(tuple(w.shape)) or stock(x, w, b))
    with torch.no_grad():
        got = twin(**inputs, router_weights=weights)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert len([shape for shape in products if shape == (18, 32)]) == 2  # query, key and value of two layers


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_copies_pickles_moves_and_changes_stay_exact(name: str) -> None:
    twin, ids, weights = twin_of(name), tiny.text(4, padding="none")["input_ids"], tiny.mixtures(4)
    want = wanted(twin, ids, weights)

    def close(model: Any, to: Any) -> None:
        torch.testing.assert_close(routed(model, ids, weights), to, rtol=1e-4, atol=1e-4)

    close(twin, want)
    close(copy.deepcopy(twin), want)
    close(pickle.loads(pickle.dumps(twin)), want)  # noqa: S301 - our own
    close(twin.double().float(), want)
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, RoutedLinear):
                module.experts_down.data.mul_(1.5)  # no version counter says so
    changed = wanted(twin, ids, weights)
    assert (changed - want).abs().max() > 1e-2
    close(twin, changed)
    twin.load_state_dict({k: v * 0.5 if "experts_down" in k else v for k, v in twin.state_dict().items()}, assign=True)
    close(twin, wanted(twin, ids, weights))


def test_a_twin_that_has_answered_can_still_be_trained() -> None:
    twin, ids, weights = twin_of().train_only("experts"), tiny.text(4, padding="none")["input_ids"], tiny.mixtures(4)
    routed(twin, ids, weights)
    twin.float()
    routed(twin, ids, weights)  # lays the factors anew in inference mode
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    twin(ids, labels=ids, router_weights=weights).loss.backward()
    assert all(m.experts_down.grad.abs().max() > 0 for m in twin.model.layers.modules() if isinstance(m, RoutedLinear))
    optimizer.step()
    torch.testing.assert_close(routed(twin, ids, weights), wanted(twin, ids, weights), rtol=1e-4, atol=1e-4)


def test_a_layer_called_by_hand_out_of_turn_is_exact() -> None:
    twin, weights = twin_of(), tiny.mixtures(4)
    attention = twin.model.layers[0].self_attn
    x = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(0))
    y = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(1))

    def one(layer: Any, x: Any) -> Any:
        with twin.mixture.use(weights):
            return layer(x)

    with torch.no_grad():
        want = [one(attention.v_proj, y), one(attention.k_proj, x)]
        with twin.mixture.use(weights):
            attention.q_proj(x)
            got = [attention.v_proj(y), attention.k_proj(x)]
            attention.q_proj(x)
            x.mul_(2)  # the same tensor with other numbers
            torch.testing.assert_close(attention.k_proj(x), 2 * want[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # without and with biases
def test_one_mixture_held_over_changes_of_shape_setting_and_factors_stays_exact(name: str) -> None:
    twin, weights = twin_of(name), tiny.mixtures(4)
    ids = tiny.text(4, padding="none")["input_ids"]
    tied = twin.get_output_embeddings() if name == "gpt2" else None

    def close(got: Any, ids: Any) -> None:
        torch.testing.assert_close(got, wanted(twin, ids, weights), rtol=1e-4, atol=1e-4)

    with twin.mixture.use(weights):
        for _ in range(2):  # the second time by what the first found out
            with torch.inference_mode():
                close(twin(ids[:, :2]).logits.clone(), ids[:, :2])
                close(twin(ids[:, :1]).logits.clone(), ids[:, :1])
            with torch.no_grad():
                close(twin(ids[:, :1]).logits, ids[:, :1])
        assert twin(ids[:, :1]).logits.requires_grad
        close(twin(ids[:, :1]).logits.detach(), ids[:, :1])
        for change in (
            lambda m: m.experts_down.data.mul_(1.5),
            lambda m: setattr(m.experts_down, "data", m.experts_down.data * 0.5),
            lambda m: None if m.experts_bias is None else m.experts_bias.data.mul_(-2),
            lambda m: setattr(m, "experts_up", torch.nn.Parameter(m.experts_up.data * 0.5)),
            lambda m: setattr(m.experts_up, "data", m.experts_up.data * 3),
        ):
            for module in twin.modules():
                if isinstance(module, RoutedLinear) and module is not tied:
                    change(module)
            with torch.no_grad():
                close(twin(ids[:, :1]).logits, ids[:, :1])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            rough = twin(ids[:, :1]).logits.float()
        torch.testing.assert_close(rough, wanted(twin, ids[:, :1], weights), rtol=0.1, atol=0.1)
        with torch.no_grad():
            close(twin(ids[:, :1]).logits, ids[:, :1])
            with twin.mixture.use(weights.flip(0)):
                other = twin(ids[:, :1]).logits
            torch.testing.assert_close(other, wanted(twin, ids[:, :1], weights.flip(0)), rtol=1e-4, atol=1e-4)
            with twin.mixture.use(None):
                assert (twin.stock_forward(input_ids=ids[:, :1]).logits - other).abs().max() > 1e-2
            close(twin(ids[:, :1]).logits, ids[:, :1])
