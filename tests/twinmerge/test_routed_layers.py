"""One routed layer at a time: exact for any batch, both strategies, half precision, gradients, kinds of modules."""

import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from tests.twinmerge import tiny
from twinmerge import attach
from twinmerge.attaching import attach_layer
from twinmerge.routed_images import RoutedConv
from twinmerge.routed_layers import FactoredLayer, Mixture, RoutedAny, RoutedLayer, RoutedLinear, RoutedNorm


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


# What layer serves what module.


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
