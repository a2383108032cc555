"""The further static merges against references in numpy that share no code with them."""

import inspect

import numpy as np
import pytest
import torch

from twinmerge.functional import blocks
from twinmerge.functional.blocks import depths
from twinmerge.functional.fisher import fisher
from twinmerge.functional.regmean import regmean
from twinmerge.functional.thresholds import Largest, Smallest, kth_largest
from twinmerge.functional.ties import ties
from twinmerge.methods import FURTHER, find

SHAPES = {"embed.weight": (12, 5), "layers.0.up.weight": (4, 6), "layers.1.up.weight": (6, 4), "layers.1.norm": (7,)}
EXPERTS = 3


def states(seed=0, experts=EXPERTS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}  # noqa: E731
    base = draw()
    tuned = [{n: base[n] + 0.1 * change for n, change in draw().items()} for _ in range(experts)]
    return ({n: v.to(dtype) for n, v in state.items()} for state in (base, *tuned))


def matrix(value):
    return value.reshape(value.shape[0], -1)


def top(values, count):
    """Mask of the `count` largest magnitudes; of equal ones the first."""
    mask = np.zeros(values.size, bool)
    mask[np.argsort(-np.abs(values).ravel(), kind="stable")[:count]] = True
    return mask.reshape(values.shape)


def election(vectors, weights, votes=None):
    sign = np.sign(np.einsum("t,t...->...", weights if votes is None else votes, vectors))
    sign[sign == 0] = 1
    agrees = np.sign(vectors) == sign
    shares = np.einsum("t,t...->...", weights, agrees)
    return np.einsum("t,t...->...", weights, vectors * agrees) / np.where(shares == 0, 1, shares)


def mean_of_vectors(base, vectors, scale=1.0):
    return base + scale * vectors.mean(0)


def linear(base, tuned, vectors):
    return (tuned[0] + 2 * tuned[1] + 0.5 * tuned[2]) / 3.5


def breadcrumbs(base, tuned, vectors):
    kept = []
    for vector in vectors:
        flat, size = vector.ravel(), vector.size
        order = np.argsort(np.abs(flat), kind="stable")
        below = max(0, size - int(0.6 * size) - int(0.2 * size))
        mask = np.zeros(size, bool)
        mask[order[below : below + int(0.6 * size)]] = True
        kept.append(vector * mask.reshape(vector.shape))
    return base + 0.5 * sum(kept)


def slerp(base, tuned, vectors):
    a, b = tuned[0].ravel(), tuned[1].ravel()
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    if np.cos(angle) > 0.9995:
        return 0.7 * tuned[0] + 0.3 * tuned[1]
    return (np.sin(0.7 * angle) * tuned[0] + np.sin(0.3 * angle) * tuned[1]) / np.sin(angle)


def multi_slerp(base, tuned, vectors):
    flat, weights = vectors.reshape(len(vectors), -1), np.array([0.5, 0.25, 0.25])
    sizes = np.linalg.norm(flat, axis=1)
    units = flat / sizes[:, None]
    mean = weights @ units
    unit = mean / np.linalg.norm(mean)
    tangent = weights @ (units - np.outer(units @ unit, unit))
    step = np.linalg.norm(tangent) + 1e-8
    point = unit * np.cos(step) + tangent * np.sin(step) / step
    return base + (point * (weights @ sizes)).reshape(base.shape)


def karcher(base, tuned, vectors):
    flat = tuned.reshape(len(tuned), -1)
    sizes = np.linalg.norm(flat, axis=1)
    units = flat / sizes[:, None]
    mean = units.mean(0) / np.linalg.norm(units.mean(0))
    for _ in range(200):  # gradient descent on half the mean squared distance
        angles = np.arccos(np.clip(units @ mean, -1, 1))
        step = np.mean([a / np.sin(a) * (u - np.cos(a) * mean) for a, u in zip(angles, units, strict=True)], 0)
        size = np.linalg.norm(step)
        if size < 1e-14:
            break
        mean = np.cos(size) * mean + np.sin(size) / size * step
    return (mean * sizes.mean()).reshape(base.shape)


def model_stock(base, tuned, vectors):
    flat = vectors.reshape(len(vectors), -1)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    cosine = np.mean([unit[0] @ unit[1], unit[0] @ unit[2], unit[1] @ unit[2]])
    share = 3 * cosine / (1 + 2 * cosine)
    return share * tuned.mean(0) + (1 - share) * base


def sce(base, tuned, vectors):
    variance = vectors.var(0)
    chosen = vectors * top(variance, max(1, int(0.4 * np.count_nonzero(variance))))
    weights = np.square(chosen).reshape(len(chosen), -1).sum(1)
    return base + election(chosen, weights / weights.sum(), votes=np.ones(len(chosen)))


def iso_c(base, tuned, vectors):
    if base.ndim < 2:
        return mean_of_vectors(base, vectors, 0.8)
    U, S, Vh = np.linalg.svd(matrix(vectors.sum(0)), full_matrices=False)
    return base + 0.8 * S.mean() * (U @ Vh).reshape(base.shape)


def iso_cts(base, tuned, vectors):
    if base.ndim < 2:
        return mean_of_vectors(base, vectors)
    U, S, Vh = np.linalg.svd(matrix(vectors.sum(0)), full_matrices=False)
    own = (len(S) - int(0.3 * len(S))) // len(vectors)
    common = len(S) - own * len(vectors)
    U, S, Vh = U[:, :common], S[:common], Vh[:common]
    lefts, values, rights = [U], [S], [Vh]
    for vector in vectors:
        u, s, v = np.linalg.svd((np.eye(len(U)) - U @ U.T) @ matrix(vector), full_matrices=False)
        lefts, values, rights = [*lefts, u[:, :own]], [*values, s[:own]], [*rights, v[:own]]

    def polar(x):
        a, _, b = np.linalg.svd(x, full_matrices=False)
        return a @ b

    product = polar(np.concatenate(lefts, 1)) @ polar(np.concatenate(rights))
    return base + np.concatenate(values).mean() * product.reshape(base.shape)


def knots(base, tuned, vectors):
    if base.ndim < 2:
        return mean_of_vectors(base, vectors)
    U, S, Vh = np.linalg.svd(np.concatenate([matrix(v) for v in vectors], 1), full_matrices=False)
    parts = np.split(S[:, None] * Vh, len(vectors), axis=1)
    return base + (U @ np.mean(parts, 0)).reshape(base.shape)


def consensus(base, tuned, vectors):
    merged = vectors.sum(0)
    needs = sum(np.abs(v) >= 0.5 * np.abs(merged - v) for v in vectors)
    return base + 0.4 * merged * (needs >= 2)


def pcb(base, tuned, vectors):
    size, kept = base.size, max(1, int(0.3 * base.size))
    cut = []
    for v in vectors:
        order = np.sort(np.abs(v).ravel())
        cut.append(np.sign(v) * np.clip(np.abs(v), order[int(1e-4 * size)], order[size - 1 - int(1e-4 * size)]))
    cut = np.stack(cut)
    shares = []
    for v in cut:
        low, high = np.abs(v).min(), np.abs(v).max()
        balance = np.exp(len(cut) * ((np.abs(v) - low) / (high - low)) ** 2) * np.tanh(v * cut.sum(0))
        balance = np.maximum(balance, 0)
        bound = np.sort(balance.ravel())[::-1][kept - 1]
        shares.append(np.maximum(balance - bound, 0) / (balance.max() - bound))
    shares = np.stack(shares)
    return base + (vectors * shares).sum(0) / np.maximum(shares.sum(0), 1e-12)


def wudi(base, tuned, vectors):
    if base.ndim < 2:
        return mean_of_vectors(base, vectors)
    parts = [matrix(v) for v in vectors]
    rows = np.concatenate([p / np.linalg.norm(p) for p in parts])
    wanted = np.concatenate([p @ p.T / np.linalg.norm(p) for p in parts], 1)
    moved = np.linalg.lstsq(rows, (wanted - sum(parts) @ rows.T).T, rcond=1e-6)[0].T  # the least change that does it
    return base + (sum(parts) + moved).reshape(base.shape)


CASES = {
    "linear": (linear, {"weights": [1.0, 2.0, 0.5]}, 1e-6),
    "breadcrumbs": (breadcrumbs, {"scale": 0.5, "density": 0.6, "gamma": 0.2}, 1e-6),
    "multi_slerp": (multi_slerp, {"weights": [2.0, 1.0, 1.0]}, 1e-5),
    "karcher": (karcher, {"iterations": 100, "tolerance": 1e-10}, 1e-5),
    "model_stock": (model_stock, {}, 1e-6),
    "sce": (sce, {"select": 0.4}, 1e-6),
    "iso_c": (iso_c, {"scale": 0.8}, 1e-5),
    "iso_cts": (iso_cts, {"common": 0.3}, 1e-5),
    "knots": (knots, {"elect": False}, 1e-5),
    "consensus": (consensus, {"scale": 0.4, "tall": 0.5}, 1e-6),
    "pcb": (pcb, {"density": 0.3}, 1e-5),
    "wudi": (wudi, {}, 1e-4),
}


@pytest.mark.parametrize("size", [10, 2**18], ids=["blocks", "whole"])
@pytest.mark.parametrize("name", CASES)
def test_against_numpy(name, size, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", size)
    reference, options, atol = CASES[name]
    base, *experts = states(1)
    merged = find(name)(base, experts, **options)
    for key, value in base.items():
        tuned = np.stack([expert[key].double().numpy() for expert in experts])
        origin = value.double().numpy()
        np.testing.assert_allclose(merged[key], reference(origin, tuned, tuned - origin), atol=atol, err_msg=key)


@pytest.mark.parametrize("size", [10, 2**18], ids=["blocks", "whole"])
def test_slerp_and_its_line(size, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", size)
    base, first, second = states(2, experts=2)
    second["layers.1.norm"] = 1.001 * first["layers.1.norm"]
    merged = find("slerp")(base, [first, second], t=0.3)
    for key, value in base.items():
        tuned = np.stack([state[key].double().numpy() for state in (first, second)])
        np.testing.assert_allclose(merged[key], slerp(value.double().numpy(), tuned, None), atol=1e-6)
    with pytest.raises(ValueError, match="between two models and got 1"):
        find("slerp")(base, [first])


@pytest.mark.parametrize("size", [10, 2**18], ids=["blocks", "whole"])
def test_knots_elects_in_the_common_directions_of_lora(size, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", size)
    generator = torch.Generator().manual_seed(0)
    base = {"tall": torch.randn(40, 4, generator=generator), "wide": torch.randn(6, 9, generator=generator)}
    experts = [
        {n: v + torch.randn(v.shape[0], 1, generator=generator) @ torch.randn(1, v.shape[1], generator=generator)
         for n, v in base.items()}
        for _ in range(3)
    ]  # fmt: skip
    merged = find("knots")(base, experts, density=1.0)
    for name, value in base.items():
        vectors = [(expert[name] - value).double().numpy() for expert in experts]
        U, S, Vh = np.linalg.svd(np.concatenate(vectors, 1), full_matrices=False)
        parts = np.stack(np.split((S[:, None] * Vh)[:3], 3, axis=1))  # three directions: the ranks together
        expected = value.double().numpy() + U[:, :3] @ election(parts, np.ones(3))
        np.testing.assert_allclose(merged[name], expected, atol=1e-4)


@pytest.mark.parametrize("method", ["iso_c", "iso_cts"])
@pytest.mark.parametrize("shape", [(14, 6), (6, 14)], ids=str)
def test_directions_without_change_stay_without(method, shape):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    base, left, right = {"w": draw(*shape)}, [draw(shape[0], 1) for _ in "ab"], [draw(1, shape[1]) for _ in "ab"]
    experts = [{"w": base["w"] + u @ v} for u, v in zip(left, right, strict=True)]
    change = (find(method)(base, experts)["w"] - base["w"]).numpy()
    sizes = np.linalg.svd(change, compute_uv=False)
    both = np.linalg.svd((left[0] @ right[0] + left[1] @ right[1]).numpy(), compute_uv=False)
    np.testing.assert_allclose(sizes, [both.sum() / 6] * 2 + [0] * 4, atol=1e-7)  # the mean of all six
    outside = np.linalg.svd(np.concatenate(right))[2][2:]
    np.testing.assert_allclose(change @ outside.T, 0, atol=1e-7)


def test_ties_of_each_tensor_is_what_sorting_gives():
    base, *experts = states(3, dtype=torch.bfloat16)  # few different magnitudes: many are equal
    densities, weights = [0.3, 0.5, 0.7], [1.0, 2.0, 0.5]
    merged = ties(base, experts, density=densities, weights=weights, trim="tensor", scale=0.9)
    for name, value in base.items():
        origin = value.double().numpy()
        vectors = [expert[name].double().numpy() - origin for expert in experts]
        vectors = np.stack([v * top(v, int(d * v.size)) for v, d in zip(vectors, densities, strict=True)])
        expected = torch.tensor(origin + 0.9 * election(vectors, np.array(weights))).to(torch.bfloat16)
        torch.testing.assert_close(merged[name], expected, rtol=1e-2, atol=1e-6)


def test_della_keeps_large_entries_more_often_and_the_mean():
    base = {"w": torch.zeros(50, 400)}
    expert = {"w": torch.linspace(0.5, 1.5, 400).expand(50, 400).contiguous()}
    merged = find("della")(base, [expert], drop=0.5, spread=0.6, seed=1)["w"]
    kept = (merged != 0).float().mean(0)
    np.testing.assert_allclose(kept[:100].mean(), 0.2 + 0.075, atol=0.03)
    np.testing.assert_allclose(kept[-100:].mean(), 0.8 - 0.075, atol=0.03)
    np.testing.assert_allclose(merged.mean(), expert["w"].mean(), rtol=0.05)
    probabilities = 0.2 + 0.6 * torch.arange(400) / 399
    torch.testing.assert_close(merged, torch.where(merged != 0, expert["w"] / probabilities, 0.0))
    again = find("della")(base, [expert], drop=0.5, spread=0.6, seed=1)["w"]
    assert torch.equal(again, merged)
    with pytest.raises(ValueError, match="give a smaller spread"):
        find("della")(base, [expert], drop=0.05, spread=0.2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", [name for name in FURTHER if name != "slerp"])
def test_types_are_kept_and_what_no_expert_changed_is_the_base_s(name, dtype):
    base, *experts = states(0, dtype=dtype)
    for expert in experts:
        expert["embed.weight"] = base["embed.weight"].clone()
        expert["ids"] = torch.arange(3)
    base["ids"] = torch.arange(3)
    merged = find(name)(base, experts)
    assert {n: v.dtype for n, v in merged.items()} == {n: v.dtype for n, v in base.items()}
    assert torch.equal(merged["embed.weight"], base["embed.weight"])
    assert torch.equal(merged["ids"], base["ids"])
    assert all(value.isfinite().all() for value in merged.values())


@pytest.mark.parametrize("name", FURTHER)
def test_options_are_keywords_and_opposite_or_equal_experts_stay_finite(name):
    kinds = [parameter.kind for parameter in inspect.signature(find(name)).parameters.values()][2:]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds)
    base, expert = states(0, experts=1)
    opposite = {n: 2 * base[n] - value for n, value in expert.items()}
    for pair in ([expert, opposite], [expert, expert]):
        assert all(value.isfinite().all() for value in find(name)(base, pair).values())


def test_numbers_by_layer_and_by_name():
    base = {n: torch.zeros(1) for n in ("embed", "layers.0.mlp", "layers.1.mlp", "layers.2.mlp", "layers.2.norm")}
    experts = [{n: torch.ones(1) for n in base}]
    scale = {"norm": 7.0, "mlp": [1.0, 3.0], "*": 0.5}
    merged = find("task_arithmetic")(base, experts, scale=scale)
    assert [float(v) for v in merged.values()] == [0.5, 1.0, 2.0, 3.0, 7.0]
    assert depths(["a.0.x"]) == {"a.0.x": 1.0}
    with pytest.raises(ValueError, match=r"no entry of .* fits the tensor 'embed'"):
        find("task_arithmetic")(base, experts, scale={"mlp": 1.0})
    with pytest.raises(ValueError, match="2 values are given for 1 experts"):
        find("linear")(base, experts, weights=[1.0, 2.0])


@pytest.mark.parametrize("wide", [False, True])
def test_thresholds_are_those_of_sorting(wide):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 40, (1000,), generator=generator).to(torch.float64 if wide else torch.float32) / 7
    ordered = values.sort(descending=True).values
    for count in (1, 17, 500, 1000):
        ((found,),) = kth_largest(lambda: ([part] for part in values.split(300)), [[count]], wide=wide)
        assert found.value == float(ordered[count - 1])
        assert found.larger == int((values > found.value).sum())
        assert found.equal == int((values == found.value).sum())
        chosen = Largest(found, count)
        mask = torch.cat([chosen.of(part) for part in values.split(300)])
        assert torch.equal(mask.nonzero().flatten(), values.argsort(descending=True, stable=True)[:count].sort().values)
        ((low,),) = kth_largest(lambda: ([part] for part in values.split(300)), [[1000 - count + 1]], wide=wide)
        chosen = Smallest(low, count, 1000)
        mask = torch.cat([chosen.of(part) for part in values.split(300)])
        assert torch.equal(mask.nonzero().flatten(), values.argsort(stable=True)[:count].sort().values)


def test_fisher_and_regmean_against_numpy():
    base, *experts = states(4)
    generator = torch.Generator().manual_seed(0)
    information = [{n: torch.rand(v.shape, generator=generator) for n, v in base.items()} for _ in experts]
    merged = fisher(base, experts, information=information, weights=[1.0, 2.0, 1.0], floor=1e-3)
    for name in base:
        known = np.stack([w * (f[name].numpy() + 1e-3) for w, f in zip((1, 2, 1), information, strict=True)])
        tuned = np.stack([expert[name].numpy() for expert in experts])
        np.testing.assert_allclose(merged[name], (known * tuned).sum(0) / known.sum(0), rtol=1e-4, atol=1e-6)
    rows = [torch.randn(50, 6, generator=generator, dtype=torch.float64) for _ in experts]
    layer = "layers.0.up.weight"
    merged = regmean(base, experts, inputs=[{layer: x.T @ x} for x in rows], shrink=1e-9)
    stacked = np.concatenate([x.numpy() for x in rows])
    outputs = np.concatenate([(x @ e[layer].double().T).numpy() for x, e in zip(rows, experts, strict=True)])
    np.testing.assert_allclose(merged[layer], np.linalg.lstsq(stacked, outputs, rcond=None)[0].T, atol=1e-5)
    mean = torch.stack([expert["layers.1.norm"] for expert in experts]).mean(0)
    torch.testing.assert_close(merged["layers.1.norm"], mean)
    with pytest.raises(ValueError, match="must be of shape"):
        fisher(base, experts, information=[{}] * 3)
    with pytest.raises(ValueError, match="have no inverse"):
        regmean(base, experts, inputs=[{layer: torch.zeros(6, 6)}] * 3)


def test_a_base_that_is_stored_turned_is_merged():
    base = {"w": torch.arange(6.0).view(2, 3).t()}
    expert = {"w": base["w"] + torch.tensor([1.0, 2.0])}
    assert torch.equal(find("task_arithmetic")(base, [expert], scale=1.0)["w"], expert["w"])
