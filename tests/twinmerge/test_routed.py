"""The batched routed forward equals one dense merge per input, for every kind of parameter."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from tests.twinmerge import tiny
from twinmerge import attach
from twinmerge.routed_layers import RoutedLayer

MODELS = {
    "bert": (tiny.bert, tiny.text),
    "bert_masked_lm": (tiny.bert_masked_lm, tiny.text),
    "bert_classifier": (tiny.bert_classifier, tiny.text),
    "gpt2": (tiny.gpt2, tiny.text),
    "llama": (tiny.llama, tiny.text),
    "llama_tied": (tiny.llama_tied, tiny.text),
    "mixtral": (tiny.mixtral, tiny.text),
    "vit": (tiny.vit, tiny.images),
    "stem": (tiny.stem, tiny.images),
    "bart": (tiny.bart, tiny.text),
}
SKIP = {"bert": ("pooler",), "vit": ("pooler",)}


def real(output: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Outputs at real tokens: at padding they depend on what attention makes of a fully masked row."""
    mask = inputs.get("attention_mask")
    return output if mask is None or output.dim() < 3 else output[mask.bool()]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rank", [2, None])
def test_equals_the_dense_merge_of_every_input(name: str, rank: int | None) -> None:
    build, batch = MODELS[name]
    model, inputs = build(), batch()
    experts = tiny.differences(model, rank, skip=("mask_token",))
    experts[1] = {k: v for i, (k, v) in enumerate(experts[1].items()) if i % 3}  # an expert need not change everything
    weights = tiny.mixtures(4)
    wanted = tiny.reference(model, experts, weights, inputs)
    twin = attach(model, tiny.TASKS, experts)
    with torch.no_grad():
        got = twin(**inputs, router_weights=weights)[0]
        plain = tiny.reference(build(), [{}] * 3, weights, inputs)
    torch.testing.assert_close(real(got, inputs), real(wanted, inputs), rtol=2e-4, atol=2e-4)
    assert (real(wanted, inputs) - real(plain, inputs)).abs().max() > 0.05  # the experts do something
    assert isinstance(twin, type(build()))
    unseen = [n for n, m in twin.named_modules() if isinstance(m, RoutedLayer) and m.mixture is not twin.mixture]
    assert not unseen


@pytest.mark.parametrize("name", MODELS)
def test_one_row_of_weights_serves_every_input(name: str) -> None:
    build, batch = MODELS[name]
    model, inputs = build(), batch()
    experts = tiny.differences(model, 2, skip=("mask_token",))
    row = tiny.mixtures(1)
    wanted = tiny.reference(model, experts, row.expand(4, -1), inputs)
    with torch.no_grad():
        got = attach(model, tiny.TASKS, experts)(**inputs, router_weights=row)[0]
    torch.testing.assert_close(real(got, inputs), real(wanted, inputs), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama_tied", "mixtral", "vit"])
def test_each_parameter_kind_alone(name: str) -> None:
    """One parameter at a time differs, so that no kind can hide behind another."""
    build, batch = MODELS[name]
    inputs, weights = batch(2), tiny.mixtures(2)
    skip = ("layer.1.", "layers.1.", "h.1.", "mask_token", "pooler")
    for parameter in [n for n in tiny.names_of(build()) if not any(s in n for s in skip)]:
        model = build()
        experts = [{parameter: e[parameter]} for e in tiny.differences(model, 2)]
        wanted = tiny.reference(model, experts, weights, inputs)
        with torch.no_grad():
            got = attach(model, tiny.TASKS, experts)(**inputs, router_weights=weights)[0]
        difference = (real(got, inputs) - real(wanted, inputs)).abs().max()
        assert difference < 1e-4, f"{parameter}: {difference}"


@pytest.mark.parametrize("build", [tiny.bert, tiny.gpt2, tiny.mixtral, tiny.stem])
def test_inputs_keep_their_outputs_in_another_order_and_company(build: object) -> None:
    model = build()  # type: ignore[operator]
    inputs = tiny.images() if build is tiny.stem else tiny.text()
    weights, order = tiny.mixtures(4), torch.tensor([2, 0, 3, 1])
    twin = attach(model, tiny.TASKS, tiny.differences(model))
    with torch.no_grad():
        whole = twin(**inputs, router_weights=weights)[0]
        mixed = twin(**{k: v[order] for k, v in inputs.items()}, router_weights=weights[order])[0]
        single = [{k: v[i : i + 1] for k, v in inputs.items()} for i in range(4)]
        alone = torch.cat([twin(**one, router_weights=weights[i : i + 1])[0] for i, one in enumerate(single)])
    moved = {k: v[order] for k, v in inputs.items()}
    torch.testing.assert_close(real(mixed, moved), real(whole[order], moved), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(real(alone, inputs), real(whole, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [tiny.bert, tiny.gpt2])
def test_full_rank_does_not_depend_on_the_shared_expert(build: object) -> None:
    inputs, weights = tiny.text(), tiny.mixtures(4)
    base = build()  # type: ignore[operator]
    targets = [tiny.dense_state(base, [e], [1.0]) for e in tiny.differences(base, 3)]
    outputs = []
    for seed in range(2):
        model = build()  # type: ignore[operator]
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):  # any shared expert at all
                p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * seed + i))
        own = dict(model.named_parameters())
        experts = [{n: (t[n] - own[n]).detach() for n in t} for t in targets]
        twin = attach(model, tiny.TASKS, experts)
        with torch.no_grad():
            outputs.append(twin(**inputs, router_weights=weights)[0])
            for i, target in enumerate(targets):  # one-hot is the expert itself
                got = twin(**inputs, router_weights=torch.eye(3)[i : i + 1])[0]
                wanted = functional_call(build(), target, kwargs=inputs)[0]  # type: ignore[operator]
                torch.testing.assert_close(real(got, inputs), real(wanted, inputs), rtol=1e-5, atol=1e-4)
            got = twin(**inputs, router_weights=torch.full((1, 3), 1 / 3))[0]  # uniform is the average
            mean = {n: torch.stack([t[n] for t in targets]).mean(0) for n in targets[0]}
            wanted = functional_call(build(), mean, kwargs=inputs)[0]  # type: ignore[operator]
            torch.testing.assert_close(real(got, inputs), real(wanted, inputs), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(real(outputs[0], inputs), real(outputs[1], inputs), rtol=1e-5, atol=1e-4)


def test_gradient_reaches_router_experts_and_shared_expert() -> None:
    model = tiny.bert()
    twin = attach(model, tiny.TASKS, tiny.differences(model, skip=("pooler",)), tiny.router(32))
    twin(**tiny.text())[0].square().mean().backward()
    for name, parameter in twin.named_parameters():
        assert "pooler" in name or (parameter.grad is not None and parameter.grad.abs().max() > 0), name
