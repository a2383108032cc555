"""TSV-Merge and EMR-Merging against numpy references that follow the papers line by line, and their properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from twinmerge.functional import emr, tsv_m

SHAPES = {"tall": (9, 6), "wide": (5, 12), "bias": (6,), "kernel": (3, 2, 2)}


def states(seed, experts=3, size=0.1):
    draw = np.random.default_rng(seed)
    base = {name: draw.normal(size=shape) for name, shape in SHAPES.items()}
    tuned = [
        {name: value + size * draw.normal(size=value.shape) for name, value in base.items()} for _ in range(experts)
    ]
    tensors = lambda state: {name: torch.tensor(value).float() for name, value in state.items()}  # noqa: E731
    return tensors(base), [tensors(state) for state in tuned]


def numpy_tsv(base, experts, scale):
    """Algorithm 1 by full decompositions: the nearest orthogonal matrix of U = P D Q' is P Q'."""
    merged = {}
    for name, value in base.items():
        origin = value.double().numpy()
        changes = [expert[name].double().numpy() - origin for expert in experts]
        if origin.ndim != 2:
            merged[name] = origin + scale * np.mean(changes, 0)
            continue
        kept = max(1, min(origin.shape) // len(experts))
        parts = [np.linalg.svd(change, full_matrices=False) for change in changes]
        left, right = np.hstack([p[0][:, :kept] for p in parts]), np.hstack([p[2][:kept].T for p in parts])
        (p, _, q), (r, _, s) = (np.linalg.svd(side, full_matrices=False) for side in (left, right))
        merged[name] = origin + scale * (p @ q) @ np.diag(np.hstack([p_[1][:kept] for p_ in parts])) @ (r @ s).T
    return merged


def numpy_emr(base, experts):
    flat = lambda state: np.concatenate([state[name].double().numpy().ravel() for name in base])  # noqa: E731
    vectors = np.stack([flat(expert) for expert in experts]) - flat(base)
    sign = np.sign(vectors.sum(0))
    elected = sign * np.max(np.where(vectors * sign > 0, np.abs(vectors), 0), axis=0)
    made = []
    for vector in vectors:
        mask = vector * elected > 0
        made.append(flat(base) + np.abs(vector).sum() / np.abs(mask * elected).sum() * mask * elected)
    return made


@given(seed=st.integers(0, 2**32), scale=st.floats(0, 2), experts=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_tsv_against_numpy(seed, scale, experts):
    base, tuned = states(seed, experts)
    for name, expected in numpy_tsv(base, tuned, scale).items():
        np.testing.assert_allclose(tsv_m(base, tuned, scale=scale)[name], expected, atol=2e-5)


def test_tsv_removes_interference_between_tasks():
    """Two tasks write to nearly the same output direction: each one's own input gets its own change back."""
    draw = np.random.default_rng(0)
    inputs = np.linalg.qr(draw.normal(size=(12, 2)))[0]
    outputs = np.linalg.qr(draw.normal(size=(8, 2)))[0]
    changes = [np.outer(outputs[:, i], inputs[:, i]) * (i + 1) for i in range(2)]
    base = {"w": torch.zeros(8, 12, dtype=torch.float64)}
    merged = tsv_m(base, [{"w": torch.tensor(change)} for change in changes])["w"].numpy()
    for i, change in enumerate(changes):
        np.testing.assert_allclose(merged @ inputs[:, i], change @ inputs[:, i], atol=1e-8)


def test_tsv_returns_equal_experts_within_the_directions_kept():
    draw = torch.Generator().manual_seed(0)
    low = torch.randn(10, 2, generator=draw) @ torch.randn(2, 8, generator=draw)
    base = {"w": torch.zeros(10, 8)}
    torch.testing.assert_close(tsv_m(base, [{"w": low}] * 4)["w"], low, atol=1e-4, rtol=1e-4)  # two of eight are kept


def test_tsv_takes_an_expert_that_left_a_matrix_alone_and_more_tasks_than_directions():
    base, tuned = states(3, experts=2)
    alone = tsv_m(base, [tuned[0], {**tuned[1], "tall": base["tall"]}])["tall"]
    change = (tuned[0]["tall"] - base["tall"]).double().numpy()
    u, s, v = np.linalg.svd(change, full_matrices=False)
    np.testing.assert_allclose(alone, base["tall"].numpy() + (u[:, :3] * s[:3]) @ v[:3], atol=1e-5)
    base, tuned = states(4, experts=7)
    assert all(value.isfinite().all() for value in tsv_m(base, tuned).values())


@given(seed=st.integers(0, 2**32), experts=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_emr_against_numpy(seed, experts):
    base, tuned = states(seed, experts)
    made = emr(base, tuned)
    for index, expected in enumerate(numpy_emr(base, tuned)):
        got = torch.cat([value.flatten() for value in made.expert(base, index).values()])
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_emr_of_one_expert_is_that_expert_and_an_expert_that_is_the_base_stays_it():
    base, tuned = states(1, experts=2)
    for name, value in emr(base, tuned[:1]).expert(base, 0).items():
        torch.testing.assert_close(value, tuned[0][name])
    made = emr(base, [tuned[0], base])
    assert made.rescalers[1] == 0
    assert all(torch.equal(value, base[name]) for name, value in made.expert(base, 1).items())


def test_emr_stores_one_vector_and_a_bit_a_value_and_task_for_what_changed_alone():
    base, tuned = states(2)
    tuned = [{**expert, "tall": base["tall"]} for expert in tuned]
    base["steps"] = torch.arange(3)
    made = emr(base, [{**expert, "steps": torch.zeros(3, dtype=torch.long)} for expert in tuned])
    changed = sum(int(np.prod(shape)) for name, shape in SHAPES.items() if name != "tall")
    assert made.bytes == 4 * changed + -(-3 * changed // 8) + 3 * 4
    whole = made.expert(base, 1)
    assert torch.equal(whole["tall"], base["tall"])
    assert torch.equal(whole["steps"], base["steps"])


def test_both_refuse_what_cannot_be_merged():
    base, tuned = states(5)
    for method in (tsv_m, emr):
        with pytest.raises(ValueError, match="no expert"):
            method(base, [])
        with pytest.raises(ValueError, match="NaN"):
            method(base, [{**tuned[0], "bias": torch.full((6,), float("nan"))}])
