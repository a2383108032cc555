"""The twin as an object: tied factors, copies, state dicts, moves, checkpointing, compilation, refusals."""

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from tests.twinmerge import tiny
from tests.twinmerge.test_routed import MODELS, real
from twinmerge import attach, check_routing, densify
from twinmerge.routed_layers import FactoredLayer, RoutedLayer


def test_tied_weights_share_one_set_of_factors() -> None:
    for build, names in (
        (tiny.gpt2, ("transformer.wte", "lm_head")),
        (tiny.llama_tied, ("model.embed_tokens", "lm_head")),
    ):
        model = build()
        shared = sum(p.numel() for p in model.parameters())
        experts = tiny.differences(model)
        twin = attach(model, tiny.TASKS, experts)
        first, second = (twin.get_submodule(n) for n in names)
        assert first.experts_up is second.experts_up
        assert first.experts_down is second.experts_down
        sizes = [sum(t.numel() for t in d) if isinstance(d, tuple) else d.numel() for e in experts for d in e.values()]
        assert sum(p.numel() for p in twin.parameters()) == shared + sum(sizes)


def test_a_tied_bias_is_counted_once() -> None:
    model, inputs, weights = tiny.bert_masked_lm(), tiny.text(), tiny.mixtures(4)
    experts = [{"cls.predictions.bias": e["cls.predictions.bias"]} for e in tiny.differences(model)]
    wanted = tiny.reference(model, experts, weights, inputs)
    twin = attach(model, tiny.TASKS, experts)
    with torch.no_grad():
        got = twin(**inputs, router_weights=weights)[0]
    torch.testing.assert_close(real(got, inputs), real(wanted, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301 - our own bytes
@pytest.mark.parametrize("name", ["gpt2", "mixtral", "stem"])
def test_a_copy_is_independent_and_equal(copier: object, name: str) -> None:
    build, batch = MODELS[name]
    model, inputs, weights = build(), batch(), tiny.mixtures(4)
    twin = attach(model, tiny.TASKS, tiny.differences(model))
    other = copier(twin)  # type: ignore[operator]
    assert type(other) is type(twin)
    assert other.mixture is not twin.mixture
    routed = [m for m in other.modules() if isinstance(m, RoutedLayer)]
    assert routed
    assert all(m.mixture is other.mixture for m in routed)
    with torch.no_grad():
        before = twin(**inputs, router_weights=weights)[0]
        for parameter in other.parameters():
            parameter.zero_()
        torch.testing.assert_close(twin(**inputs, router_weights=weights)[0], before, rtol=0, atol=0)


def test_state_dict_round_trip() -> None:
    model = tiny.mixtral()
    twin = attach(model, tiny.TASKS, tiny.differences(model))
    other = attach(tiny.mixtral(), tiny.TASKS, tiny.differences(tiny.mixtral(), seed=7))
    other.load_state_dict(twin.state_dict())
    with torch.no_grad():
        a, b = (t(**tiny.text(), router_weights=tiny.mixtures(4))[0] for t in (twin, other))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_everything_moves_with_the_model() -> None:
    model = tiny.stem()
    twin = attach(model, tiny.TASKS, tiny.differences(model)).to("meta")
    assert {t.device.type for t in (*twin.parameters(), *twin.buffers())} == {"meta"}
    owners = [m.experts_owner for m in twin.modules() if isinstance(m, FactoredLayer)]
    assert owners
    assert {o.device.type for o in owners} == {"meta"}


def test_recorded_hidden_states_are_the_routed_ones() -> None:
    model, inputs = tiny.llama(), tiny.text()
    twin = attach(model, tiny.TASKS, tiny.differences(model))
    with torch.no_grad():
        out = twin(**inputs, router_weights=tiny.mixtures(4), output_hidden_states=True)
    assert len(out.hidden_states) == 3


@pytest.mark.parametrize("build", [tiny.bert, tiny.llama])
def test_gradient_checkpointing_recomputes_with_the_same_mixture(build: object) -> None:
    grads = []
    for enabled in (False, True):
        model = build()  # type: ignore[operator]
        twin = attach(model, tiny.TASKS, tiny.differences(model), tiny.router(32))
        twin.train()
        twin.router.requires_grad_(False)
        twin.train()
        if enabled:
            twin.activation_checkpointing_enable()
        (copy.deepcopy(twin) if enabled else twin)  # copying must not bind the copy to this mixture
        twin(**tiny.text())[0].square().mean().backward()
        grads.append({n: p.grad for n, p in twin.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        twin.activation_checkpointing_enable({"use_reentrant": True})


def test_compiled_equals_eager() -> None:
    model, inputs, weights = tiny.gpt2(layers=1), tiny.text(), tiny.mixtures(4)
    twin = attach(model, tiny.TASKS, tiny.differences(model), tiny.router(32))
    with torch.no_grad():
        compiled = torch.compile(twin, backend="aot_eager")
        for options in ({"router_weights": weights}, {}):
            wanted, got = twin(**inputs, **options)[0], compiled(**inputs, **options)[0]
            torch.testing.assert_close(real(got, inputs), real(wanted, inputs), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_check_routing_finds_a_weight_that_escapes() -> None:
    class Leaky(tiny.Stem):
        def forward(self, pixel_values: Tensor, **_: object) -> tuple[Tensor]:
            return (torch.nn.functional.linear(pixel_values[:, :, 0, :12], self.own.inner.weight),)

    class Turns(tiny.Stem):
        leaks = False

        def forward(self, pixel_values: Tensor, **_: object) -> tuple[Tensor]:
            return Leaky.forward(self, pixel_values) if self.leaks else tiny.Stem.forward(self, pixel_values)

    model = tiny.make(Turns, tiny.StemConfig())
    twin = attach(model, tiny.TASKS, tiny.differences(model))
    assert check_routing(twin, **tiny.images(3)) < 1e-4
    twin.leaks = True  # in a way that no batch which attach may try would show
    with pytest.raises(ValueError, match="does not see its experts"):
        check_routing(twin, **tiny.images(3))
    leaky = tiny.make(Leaky, tiny.StemConfig())
    with pytest.raises(ValueError, match=r"'own.inner.weight' of Leaky cannot differ per input"):
        attach(leaky, tiny.TASKS, tiny.differences(leaky))


@pytest.mark.parametrize("build", [tiny.gpt2, tiny.mixtral, tiny.stem, tiny.bert_masked_lm])
def test_densify_is_the_dense_merge(build: object) -> None:
    model = build()  # type: ignore[operator]
    inputs = tiny.images() if build is tiny.stem else tiny.text()
    experts, row = tiny.differences(model), [0.7, 0.0, 0.3]
    wanted = functional_call(model, tiny.dense_state(model, experts, row), kwargs=inputs)[0]
    twin = attach(model, tiny.TASKS, experts)
    before, state = {n: p.clone() for n, p in twin.named_parameters()}, torch.get_rng_state()
    dense = densify(twin, {"spam": 0.7, "mood": 0.3})
    assert type(dense) is type(twin).__bases__[1]
    assert torch.equal(state, torch.get_rng_state())
    assert not any("experts_" in n and n not in dict(build().named_parameters()) for n in dense.state_dict())  # type: ignore[operator]
    torch.testing.assert_close(dense(**inputs)[0], wanted, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[n], p) for n, p in twin.named_parameters())
    assert densify(twin.double(), {"spam": 1.0}).dtype == torch.float64
    with pytest.raises(ValueError, match="no expert named 'ham'; this twin has spam, topic, mood"):
        densify(twin, {"ham": 1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("a", "a", "b")}, "give one distinct name per expert"),
        ({"tasks": ("a", "b")}, "3 experts cannot be named"),
        ({"experts": [{"nowhere.weight": torch.ones(2)}] * 3}, "does not have"),
        ({"experts": [{"encoder.layer.0.attention.self.query.bias": torch.ones(5)}] * 3}, "shape"),
        (
            {"experts": [{"encoder.layer.0.attention.self.query.weight": (torch.ones(4, 2), torch.ones(2, 4))}] * 3},
            "takes",
        ),
        ({"router": 2}, "the router has 2 outputs for 3 experts"),
    ],
)
def test_attach_refuses_what_does_not_fit(change: dict, message: str) -> None:
    model = tiny.bert()
    router = tiny.router(32, change["router"]) if "router" in change else None
    with pytest.raises(ValueError, match=message) as caught:
        attach(model, change.get("tasks", tiny.TASKS), change.get("experts", [{}] * 3), router)
    assert "\n" not in str(caught.value)


def test_refusals_of_the_routed_model() -> None:
    model = tiny.gpt2()
    twin = attach(model, tiny.TASKS, tiny.differences(model))
    inputs = tiny.text(4)
    for call, message in (
        (lambda: twin(**inputs), "has no router"),
        (lambda: twin(**inputs, router_weights=torch.ones(4, 2)), r"this twin takes \(batch, 3\)"),
        (lambda: twin(**inputs, router_weights=tiny.mixtures(3)), "4 inputs cannot share 3 rows"),
        (lambda: twin.save_pretrained("x"), "use twinmerge.save"),
        (lambda: twin.train_only("all"), "choose among router, shared, experts, heads"),
        (lambda: twin.features(attention_mask=inputs["attention_mask"]), "routing reads input_ids"),
        (lambda: twin.classify(**inputs, router_weights=tiny.mixtures(4)), "this twin has no heads"),
        (lambda: attach(twin, ["a"], [{}]), "a twin already"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    hooked = tiny.bert()
    hooked.pooler.dense.forward = hooked.pooler.dense.forward
    with pytest.raises(ValueError, match="forward replaced"):
        attach(hooked, tiny.TASKS, tiny.differences(hooked))
