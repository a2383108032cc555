"""The batched routed forward equals one dense merge per input, for every kind of parameter."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from tests.twinmerge import tiny
from twinmerge import attach, check_routing, densify
from twinmerge.attaching import attach_layer
from twinmerge.routed_layers import FactoredLayer, Mixture, RoutedAny, RoutedConv, RoutedLayer, RoutedLinear, RoutedNorm

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


# One layer at a time, on shapes that hypothesis chooses.


def layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """A stock layer and the shape of one input."""
    return {
        "linear": (nn.Linear(5, 7), (3, 5)),
        "unbiased": (nn.Linear(5, 7, bias=False), (5,)),
        "conv1d": (Conv1D(7, 5), (3, 5)),
        "embedding": (nn.Embedding(11, 5), (4,)),
        "kernel1": (nn.Conv1d(4, 6, 3, padding=1), (4, 9)),
        "kernel2": (nn.Conv2d(4, 6, 3, stride=2), (4, 7, 7)),
        "kernel3": (nn.Conv3d(2, 3, 2), (2, 3, 3, 3)),
        "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
        "norm": (nn.LayerNorm(5), (3, 5)),
        "rms": (nn.RMSNorm(5, eps=1e-6), (3, 5)),
    }


def layer_case(name: str, rank: int, experts: int, seed: int) -> tuple[nn.Module, tuple[int, ...], list[dict]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, shape = layers()[name]
    for parameter in module.parameters():
        parameter.data += 0.1
    return module, shape, tiny.differences(module, rank, seed=seed, experts=experts, size=1.0)


def mapping_of(experts: list[dict]) -> dict[str, list]:
    return {n: [e.get(n) for e in experts] for n in sorted({n for e in experts for n in e})}


def batch_of(name: str, count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if name == "embedding":
        return torch.randint(0, 11, (count, *shape), generator=generator)
    return torch.randn(count, *shape, generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(layers())),
    rank=st.integers(1, 3),
    experts=st.integers(1, 4),
    rows=st.integers(1, 4),
    each=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_layer_is_exact_for_any_batch(name: str, rank: int, experts: int, rows: int, each: int, seed: int) -> None:
    module, shape, differences = layer_case(name, rank, experts, seed)
    stock, mixture = copy.deepcopy(module), Mixture()
    x, weights = batch_of(name, rows * each, shape, seed), tiny.mixtures(rows, experts, seed)
    routed = attach_layer(module, mixture, mapping_of(differences))
    with torch.no_grad(), mixture.use(weights):
        got = routed(x)
        shared_input = routed(x[:1])  # one input, as position ids are: every row gets its own output
    for i, row in enumerate(weights.tolist()):
        state = tiny.dense_state(stock, differences, row)
        mine = slice(i * each, (i + 1) * each)
        torch.testing.assert_close(got[mine], functional_call(stock, state, (x[mine],)), rtol=1e-4, atol=1e-5)
        if rows > 1:
            wanted = functional_call(stock, state, (x[:1],))
            torch.testing.assert_close(shared_input[i : i + 1], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(routed(x), stock(x), rtol=0, atol=0)  # no mixture: the stock layer to the bit


@pytest.mark.parametrize("name", ["linear", "unbiased", "conv1d"])
@pytest.mark.parametrize("tokens", [1, 2, 3, 40])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_cost_rule_merges_the_weight_where_tokens_pay_for_it(
    name: str, tokens: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, differences = layer_case(name, 2, 3, 0)
    stock, mixture, used = copy.deepcopy(module), Mixture(), []
    kept = RoutedLinear._materialised
    monkeypatch.setattr(RoutedLinear, "_materialised", lambda self, flat: used.append(1) or kept(self, flat))
    routed = attach_layer(module, mixture, mapping_of(differences))
    x, weights = batch_of(name, 4, (tokens, 5), 0), tiny.mixtures(rows)
    with torch.no_grad(), mixture.use(weights):
        got = routed(x)
    assert bool(used) == (tokens * (4 // rows) > 5 * 7 / (5 + 7))
    for i in range(4):
        wanted = functional_call(stock, tiny.dense_state(stock, differences, weights[i % rows].tolist()), (x[i],))
        torch.testing.assert_close(got[i], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "conv1d", "embedding", "kernel2", "grouped", "norm", "rms"])
def test_half_precision_stays_within_its_rounding(name: str) -> None:
    module, shape, differences = layer_case(name, 2, 3, 0)
    stock, mixture = copy.deepcopy(module).bfloat16(), Mixture()
    rounded = [
        {n: tuple(t.bfloat16() for t in d) if isinstance(d, tuple) else d.bfloat16() for n, d in e.items()}
        for e in differences
    ]
    routed = attach_layer(module.bfloat16(), mixture, mapping_of(rounded))
    assert all(p.dtype == torch.bfloat16 for p in routed.parameters())
    x, weights = batch_of(name, 4, shape, 0), tiny.mixtures(4)
    x = x if name == "embedding" else x.bfloat16()
    with torch.no_grad(), mixture.use(weights):
        got = routed(x)
    assert got.dtype == torch.bfloat16
    for i, row in enumerate(weights.tolist()):
        wide = {n: p.float() for n, p in tiny.dense_state(stock.float(), differences, row).items()}
        one = x[i : i + 1] if name == "embedding" else x[i : i + 1].float()
        wanted = functional_call(stock, wide, (one,))
        assert (got[i : i + 1].float() - wanted).abs().max() < 0.03 * wanted.abs().max().clamp_min(1.0)


# Gradients: against a dense merge that is written out and differentiated.


def dense_output(stock: nn.Module, differences: list[dict], weights: Tensor, x: Tensor, leaves: dict) -> Tensor:
    transposed = isinstance(stock, Conv1D)
    rows = []
    for i, row in enumerate(weights):
        state = dict(stock.named_parameters())
        for t, expert in enumerate(differences):
            for name, difference in expert.items():
                delta = difference
                if isinstance(difference, tuple):
                    delta = leaves[t, name, 0] @ leaves[t, name, 1]
                    delta = (delta.t() if transposed else delta).reshape(state[name].shape)
                else:
                    delta = leaves[t, name, 0]
                state[name] = state[name] + row[t] * delta
        rows.append(functional_call(stock, state, (x[i : i + 1],)))
    return torch.cat(rows)


@pytest.mark.parametrize("name", ["linear", "conv1d", "embedding", "kernel2", "grouped", "norm", "rms"])
@pytest.mark.parametrize("wanted", ["all", "inputs", "weights", "experts", "shared"])
@pytest.mark.parametrize("tokens", [1, 9])
def test_gradients_equal_those_of_the_dense_merge(name: str, wanted: str, tokens: int) -> None:
    if name == "embedding" and wanted == "inputs":
        pytest.skip("ids have no gradient")
    module, shape, differences = layer_case(name, 2, 3, 0)
    shape = (tokens, 5) if name in ("linear", "conv1d", "norm", "rms") else shape
    module, stock, mixture = module.double(), copy.deepcopy(module).double(), Mixture()
    leaves = {
        (t, n, k): part.double().clone().requires_grad_(wanted in ("all", "experts"))
        for t, e in enumerate(differences)
        for n, d in e.items()
        for k, part in enumerate(d if isinstance(d, tuple) else (d,))
    }
    stock.requires_grad_(wanted in ("all", "shared"))
    routed = attach_layer(module, mixture, mapping_of(differences))
    for parameter_name, parameter in routed.named_parameters():
        parameter.requires_grad_(wanted in ("all", "experts" if "experts_" in parameter_name else "shared"))
    x, weights = batch_of(name, 4, shape, 0), tiny.mixtures(4).double()
    x = x if name == "embedding" else x.double()
    ours, theirs = [w.clone().requires_grad_(wanted in ("all", "weights")) for w in (weights, weights)]
    x1, x2 = x.clone(), x.clone()
    if name != "embedding":
        x1.requires_grad_(wanted in ("all", "inputs")), x2.requires_grad_(wanted in ("all", "inputs"))
    with mixture.use(ours):
        got = routed(x1)
    reference = dense_output(stock, differences, theirs, x2, leaves)
    torch.testing.assert_close(got, reference, rtol=1e-6, atol=1e-8)
    probe = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).double()
    (got * probe).sum().backward()
    (reference * probe).sum().backward()
    for mine, his in ((ours, theirs), (x1, x2)):
        assert (mine.grad is None) == (his.grad is None)
        if his.grad is not None:
            torch.testing.assert_close(mine.grad, his.grad, rtol=1e-6, atol=1e-8)
    if wanted in ("all", "shared"):
        for parameter_name, parameter in stock.named_parameters():
            torch.testing.assert_close(routed.get_parameter(parameter_name).grad, parameter.grad, rtol=1e-6, atol=1e-8)
    if wanted in ("all", "experts") and isinstance(routed, FactoredLayer):
        grads = [leaves[t, "weight", 0].grad for t in range(3)]
        torch.testing.assert_close(routed.experts_up.grad, torch.cat(grads, 1), rtol=1e-6, atol=1e-8)
        grads = [leaves[t, "weight", 1].grad for t in range(3)]
        torch.testing.assert_close(routed.experts_down.grad, torch.cat(grads, 0), rtol=1e-6, atol=1e-8)


def test_gradient_reaches_router_experts_and_shared_expert() -> None:
    model = tiny.bert()
    twin = attach(model, tiny.TASKS, tiny.differences(model, skip=("pooler",)), tiny.router(32))
    twin(**tiny.text())[0].square().mean().backward()
    for name, parameter in twin.named_parameters():
        assert "pooler" in name or (parameter.grad is not None and parameter.grad.abs().max() > 0), name


# The model as an object.


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


# What layer serves what, and refusals.


class ScaledEmbedding(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return 3.0 * super().forward(ids)


class GemmaNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps, self.weight = 1e-6, nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


class TokenExperts(nn.Module):
    """Experts called on a choice of the tokens: a linear layer inside cannot know whose tokens it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(5, 2), nn.ModuleList(nn.Linear(5, 5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        flat, choice = x.reshape(-1, 5), self.gate(x).argmax(-1).flatten()
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            out[choice == i] = expert(flat[choice == i])
        return out.reshape(x.shape)


@pytest.mark.parametrize("module", [ScaledEmbedding(9, 5), GemmaNorm(), nn.Conv2d(4, 4, 3, groups=2)])
def test_a_module_of_another_formula_is_not_taken_for_its_base(module: nn.Module) -> None:
    module, stock = copy.deepcopy(module), copy.deepcopy(module)
    differences, mixture = tiny.differences(module, 1, size=1.0), Mixture()
    routed = attach_layer(module, mixture, mapping_of(differences))
    assert isinstance(routed, RoutedAny)
    kind = "embedding" if isinstance(stock, nn.Embedding) else "other"
    x = torch.arange(4)[:, None] if kind == "embedding" else torch.randn(4, 4, 5, 5)
    with mixture.use(tiny.mixtures(4)):
        got = routed(x)
    for i, row in enumerate(tiny.mixtures(4).tolist()):
        wanted = functional_call(stock, tiny.dense_state(stock, differences, row), (x[i : i + 1],))
        torch.testing.assert_close(got[i : i + 1], wanted, rtol=1e-4, atol=1e-5)


def test_the_usual_layers_take_the_fast_route() -> None:
    kinds = {}
    for build in (tiny.bert, tiny.llama, tiny.vit, tiny.gpt2):
        model = build()
        twin = attach(model, tiny.TASKS, tiny.differences(model, skip=("mask_token",)))
        kinds |= {n: m for n, m in twin.named_modules() if isinstance(m, RoutedLayer)}
    slow = {type(m).__name__ for m in kinds.values() if isinstance(m, RoutedAny)}
    assert slow == {"RoutedViTEmbeddings"}
    assert any(isinstance(m, RoutedNorm) and "RMS" in type(m).__name__ for m in kinds.values())
    assert any(isinstance(m, RoutedConv) for m in kinds.values())


def test_a_list_of_token_experts_is_routed_as_a_block() -> None:
    class Block(tiny.Stem):
        def __init__(self, config: tiny.StemConfig) -> None:
            tiny.transformers.PreTrainedModel.__init__(self, config)
            self.mlp = TokenExperts()
            self.post_init()

        def forward(self, pixel_values: Tensor, **_: object) -> tuple[Tensor]:
            return (self.mlp(pixel_values),)

    model, inputs = tiny.make(Block, tiny.StemConfig()), {"pixel_values": torch.randn(4, 6, 5)}
    experts, weights = tiny.differences(model, 2), tiny.mixtures(4)
    wanted = tiny.reference(model, experts, weights, inputs)
    twin = attach(model, tiny.TASKS, experts)
    with torch.no_grad():
        got = twin(**inputs, router_weights=weights)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_check_routing_finds_a_weight_that_escapes() -> None:
    class Leaky(tiny.Stem):
        def forward(self, pixel_values: Tensor, **_: object) -> tuple[Tensor]:
            return (torch.nn.functional.linear(pixel_values[:, :, 0, :12], self.own.inner.weight),)

    for kind, fine in ((tiny.Stem, True), (Leaky, False)):
        model = tiny.make(kind, tiny.StemConfig())
        twin = attach(model, tiny.TASKS, tiny.differences(model))
        if fine:
            assert check_routing(twin, **tiny.images(3)) < 1e-4
        else:
            with pytest.raises(ValueError, match="does not see its experts"):
                check_routing(twin, **tiny.images(3))


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
