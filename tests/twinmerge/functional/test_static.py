"""Properties and independent references of the static merge methods."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from twinmerge.functional import METHODS, average, dare, dare_ties, drop_and_rescale, task_arithmetic, ties

SHAPES = {"layer.weight": (6, 5), "layer.bias": (5,), "embedding": (7, 3)}


def states(seed, experts=3, dtype=torch.float32, size=0.1):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}  # noqa: E731
    base = draw()
    tuned = [{name: base[name] + size * delta for name, delta in draw().items()} for _ in range(experts)]
    cast = lambda state: {name: tensor.to(dtype) for name, tensor in state.items()}  # noqa: E731
    return cast(base), [cast(state) for state in tuned]


def close(merged, expected, atol=1e-6):
    assert merged.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(merged[name], torch.as_tensor(expected[name]).to(merged[name]), rtol=1e-5, atol=atol)


def numpy_task_vectors(base, experts):
    names = list(base)
    flat = lambda state: np.concatenate([state[name].double().numpy().ravel() for name in names])  # noqa: E731
    origin = flat(base)
    return origin, np.stack([flat(expert) for expert in experts]) - origin


def numpy_ties(base, experts, scale, density):
    origin, vectors = numpy_task_vectors(base, experts)
    kept = max(1, round(density * vectors.shape[1]))
    for vector in vectors:
        vector[np.argsort(-np.abs(vector))[kept:]] = 0
    sign = np.sign(vectors.sum(0))
    vectors[np.sign(vectors) != sign] = 0
    merged = origin + scale * vectors.sum(0) / np.maximum(1, (vectors != 0).sum(0))
    sizes = [base[name].numel() for name in base]
    return dict(zip(base, map(torch.tensor, np.split(merged, np.cumsum(sizes)[:-1])), strict=True))


def reshaped(flat):
    return {name: tensor.reshape(SHAPES[name]) for name, tensor in flat.items()}


# What makes a method return its only expert.
WHOLE = {
    "average": {},
    "task_arithmetic": {"scale": 1.0},
    "ties": {"scale": 1.0, "density": 1.0},
    "dare": {"scale": 1.0, "drop": 0.0},
    "dare_ties": {"scale": 1.0, "drop": 0.0, "density": 1.0},
    "tsv_m": {"scale": 1.0},
}


def test_the_table_is_fixed():
    assert list(METHODS) == ["average", "task_arithmetic", "ties", "dare", "dare_ties", "tsv_m"]
    for method in METHODS.values():
        kinds = [parameter.kind for parameter in inspect.signature(method).parameters.values()][2:]
        assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds)
    with pytest.raises(TypeError):
        METHODS["other"] = average


@pytest.mark.parametrize("name", METHODS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_one_expert_with_weight_one_is_returned(name, seed):
    base, experts = states(seed, experts=1)
    close(METHODS[name](base, experts, **WHOLE[name]), experts[0])


@pytest.mark.parametrize("name", METHODS)
@given(seed=st.integers(0, 2**32), order=st.permutations(range(4)))
@settings(max_examples=15, deadline=None)
def test_the_order_of_experts_and_tensors_does_not_matter(name, seed, order):
    base, experts = states(seed, experts=4)
    merged = METHODS[name](base, experts)
    turned = {key: base[key] for key in reversed(base)}
    close(METHODS[name](turned, [experts[index] for index in order]), merged)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "average"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_scale_zero_returns_the_base(name, seed):
    base, experts = states(seed)
    merged = METHODS[name](base, experts, scale=0.0)
    assert all(torch.equal(merged[key], base[key]) for key in base)


@given(seed=st.integers(0, 2**32), scales=st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
@settings(max_examples=20, deadline=None)
def test_task_arithmetic_is_linear_in_its_scale(seed, scales):
    base, experts = states(seed)
    first, second, both = (task_arithmetic(base, experts, scale=scale) for scale in (*scales, sum(scales)))
    close(both, {key: first[key] + second[key] - base[key] for key in base})


@given(seed=st.integers(0, 2**32), scale=st.floats(-2, 2))
@settings(max_examples=20, deadline=None)
def test_task_arithmetic_and_average_against_numpy(seed, scale):
    base, experts = states(seed)
    for name in base:
        origin, tuned = base[name].numpy(), np.stack([expert[name].numpy() for expert in experts])
        expected = origin + scale * (tuned - origin).sum(0)
        np.testing.assert_allclose(task_arithmetic(base, experts, scale=scale)[name], expected, atol=1e-5)
        np.testing.assert_allclose(average(base, experts)[name], tuned.mean(0), atol=1e-5)


@given(seed=st.integers(0, 2**32), scale=st.floats(0, 2), density=st.floats(0.01, 1))
@settings(max_examples=40, deadline=None)
def test_ties_against_numpy(seed, scale, density):
    base, experts = states(seed)
    expected = reshaped(numpy_ties(base, experts, scale, density))
    close(ties(base, experts, scale=scale, density=density), expected, atol=1e-5)


def test_ties_trims_the_whole_task_vector_not_each_tensor():
    base = {"large": torch.zeros(4), "small": torch.zeros(4)}
    expert = {"large": torch.tensor([9.0, 8, 7, 6]), "small": torch.tensor([1.0, 2, 3, 4])}
    merged = ties(base, [expert], density=0.5)
    assert torch.equal(merged["large"], expert["large"])
    assert not merged["small"].any()


def test_ties_leaves_an_undecided_sign_alone():
    base = {"w": torch.ones(1)}
    assert torch.equal(ties(base, [{"w": torch.tensor([2.0])}, {"w": torch.zeros(1)}], density=1.0)["w"], torch.ones(1))


@given(seed=st.integers(0, 2**32), drop=st.floats(0, 0.95))
@settings(max_examples=20, deadline=None)
def test_dare_methods_merge_the_dropped_experts(seed, drop):
    base, experts = states(seed)
    sparse = drop_and_rescale(base, experts, drop=drop, seed=seed)
    for dropped, expert in zip(sparse, experts, strict=True):
        for name in base:
            vector, full = (dropped[name] - base[name]).numpy(), ((expert[name] - base[name]) / (1 - drop)).numpy()
            kept = vector != 0
            np.testing.assert_allclose(vector[kept], full[kept], rtol=1e-3, atol=1e-5)
    origin, vectors = numpy_task_vectors(base, sparse)
    merged = dare(base, experts, drop=drop, scale=0.5, seed=seed)
    np.testing.assert_allclose(
        np.concatenate([t.ravel() for t in merged.values()]), origin + 0.5 * vectors.sum(0), atol=1e-4
    )
    expected = reshaped(numpy_ties(base, sparse, 1.0, 1.0))
    close(dare_ties(base, experts, drop=drop, density=1.0, seed=seed), expected, atol=1e-4)


def test_dare_drops_the_stated_fraction_and_keeps_the_mean():
    base, expert = {"w": torch.zeros(200, 200)}, {"w": torch.ones(200, 200)}
    (sparse,) = drop_and_rescale(base, [expert], drop=0.9, seed=3)
    assert abs((sparse["w"] == 0).float().mean().item() - 0.9) < 0.01
    assert abs(sparse["w"].mean().item() - 1.0) < 0.1
    (again,) = drop_and_rescale(base, [expert], drop=0.9, seed=3)
    (other,) = drop_and_rescale(base, [expert], drop=0.9, seed=4)
    assert torch.equal(sparse["w"], again["w"])
    assert not torch.equal(sparse["w"], other["w"])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_are_kept_and_integer_buffers_copied(name, dtype):
    base, experts = states(0, dtype=dtype)
    for index, state in enumerate([base, *experts]):
        state["position_ids"] = torch.arange(4) + index
    before = torch.random.get_rng_state()
    merged = METHODS[name](base, experts)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {key: tensor.dtype for key, tensor in merged.items()} == {key: t.dtype for key, t in base.items()}
    assert torch.equal(merged["position_ids"], base["position_ids"])
    assert merged["position_ids"] is not base["position_ids"]


def test_half_precision_is_merged_in_float32():
    base = {"w": torch.full((1,), 1.0, dtype=torch.bfloat16)}
    experts = [{"w": torch.full((1,), 1.0 + step / 128, dtype=torch.bfloat16)} for step in (1, 2, 1, 2, 1, 2, 1, 2)]
    assert average(base, experts)["w"].item() == pytest.approx(1 + 1.5 / 128, abs=0.5 / 128)
    assert task_arithmetic(base, experts, scale=0.125)["w"].item() == average(base, experts)["w"].item()


def spoil(state, name, value):
    return {**state, name: torch.full_like(state[name], value)}


@pytest.mark.parametrize("name", METHODS)
def test_refusals_name_the_expert_and_the_tensor(name):
    base, experts = states(1)
    method = METHODS[name]
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"'embedding' of expert 2 contains NaN or infinite"):
            method(base, [*experts[:2], spoil(experts[2], "embedding", value)])
    with pytest.raises(ValueError, match=r"'layer.bias' of the pretrained model contains NaN"):
        method(spoil(base, "layer.bias", float("nan")), experts)
    with pytest.raises(ValueError, match=r"expert 1 has the tensor 'embedding' of shape \(8, 3\).*is \(7, 3\)"):
        method(base, [experts[0], {**experts[1], "embedding": torch.zeros(8, 3)}])
    with pytest.raises(ValueError, match=r"expert 0 has the tensor 'head'"):
        method(base, [{**experts[0], "head": torch.zeros(2)}])
    with pytest.raises(ValueError, match=r"expert 0 lacks the tensor 'layer.bias'"):
        method(base, [{key: tensor for key, tensor in experts[0].items() if key != "layer.bias"}])
    with pytest.raises(ValueError, match=r"no expert"):
        method(base, [])


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, float("nan")])
def test_density_out_of_range(density):
    base, experts = states(1)
    for method in (ties, dare_ties):
        with pytest.raises(ValueError, match="density is"):
            method(base, experts, density=density)


@pytest.mark.parametrize("drop", [1.0, -0.1, float("nan")])
def test_drop_out_of_range(drop):
    base, experts = states(1)
    for method in (dare, dare_ties):
        with pytest.raises(ValueError, match="drop rate is"):
            method(base, experts, drop=drop)
