"""Worst distributions of consistent sets against general-purpose optimisers and random members."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import linprog, minimize
from scipy.special import rel_entr

from rl.exact import (
    Contamination,
    ForwardKL,
    Free,
    Pinned,
    ReverseKL,
    TotalVariation,
    consistent_sets,
    linear_confidence,
    root_radius,
)

MAKERS = {
    "free": lambda model, size: Free(len(model)),
    "pinned": lambda model, size: Pinned(model),
    "tv": TotalVariation,
    "contamination": lambda model, size: Contamination(model, 1 - min(size, 1)),
    "reverse": ReverseKL,
    "forward": ForwardKL,
}
INSIDE = {
    "free": lambda m, model, size: True,
    "pinned": lambda m, model, size: np.allclose(m, model, rtol=0, atol=1e-15),
    "tv": lambda m, model, size: 0.5 * np.abs(m - model).sum() <= size + 1e-9,
    "contamination": lambda m, model, size: (m >= (1 - min(size, 1)) * model - 1e-9).all(),
    "reverse": lambda m, model, size: rel_entr(m, model).sum() <= size + 1e-9,
    "forward": lambda m, model, size: rel_entr(model, m).sum() <= size + 1e-9,
}


def case(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 6))
    model = rng.dirichlet(np.full(n, rng.choice([0.3, 1.0, 5.0])))
    if n > 2 and rng.random() < 0.5:
        model[rng.integers(n)] = 0
        model /= model.sum()
    cost = rng.normal(size=n) * rng.choice([1e-3, 1.0, 1e3])
    if rng.random() < 0.2:
        cost = cost.round()
    return rng, model, cost, float(rng.choice([0.0, 0.01, 0.1, 0.5, 2.0]))


@given(kind=st.sampled_from(list(MAKERS)), seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_worst_is_a_member_and_no_member_is_worse(kind, seed):
    rng, model, cost, size = case(seed)
    worst = MAKERS[kind](model, size).worst(cost)
    assert worst.min() >= 0
    assert worst.sum() == pytest.approx(1)
    assert INSIDE[kind](worst, model, size)
    others = rng.dirichlet(np.ones(len(model)), 200)
    weights = rng.uniform(0, 1, (200, 1)) ** 3
    members = [m for m in weights * others + (1 - weights) * model if INSIDE[kind](m, model, size - 1e-9)]
    assert all(cost @ m >= cost @ worst - 1e-8 * np.abs(cost).max() for m in members)


@pytest.mark.parametrize("kind", ["free", "pinned", "tv", "contamination"])
def test_rows_describe_the_same_set(kind):
    for seed in range(40):
        _, model, cost, size = case(seed)
        consistent = MAKERS[kind](model, size)
        rows, n = consistent.rows(), len(model)
        padded = np.concatenate([cost, np.zeros(rows.columns - n)])
        simplex = np.concatenate([np.ones(n), np.zeros(rows.columns - n)])[None]
        result = linprog(
            padded, -rows.least, -rows.least_bound, np.vstack([rows.equal, simplex]), [*rows.equal_bound, 1.0]
        )
        assert result.fun == pytest.approx(cost @ consistent.worst(cost), rel=1e-7, abs=1e-9)


@pytest.mark.filterwarnings("ignore:Values in x were outside bounds:RuntimeWarning")  # of the peer
@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_kl_balls_against_a_convex_solver(kind):
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(2, 5))
        model, cost, size = rng.dirichlet(np.ones(n)), rng.normal(size=n), rng.uniform(0.01, 0.8)

        def spare(m, model=model, size=size):
            first, second = (model, m) if kind == "forward" else (m, model)
            return size - rel_entr(first, second).sum()

        found = minimize(
            lambda m, cost=cost: cost @ m,
            model,
            bounds=[(1e-12, 1)] * n,
            constraints=[{"type": "eq", "fun": lambda m: m.sum() - 1}, {"type": "ineq", "fun": spare}],
            options={"ftol": 1e-13, "maxiter": 500},
        )
        ours = cost @ MAKERS[kind](model, size).worst(cost)
        assert ours <= found.fun + 1e-6
        if found.success:
            assert ours == pytest.approx(found.fun, abs=1e-5)


def test_forward_kl_lets_mass_leave_the_support_and_reverse_does_not():
    model, cost = [0.5, 0.5, 0.0], np.array([1.0, 2.0, 0.0])
    assert ForwardKL(model, 0.5).worst(cost)[2] > 0.3
    assert ReverseKL(model, 0.5).worst(cost)[2] == 0


def test_count_aware_sizes():
    assert (root_radius(0), root_radius(1), root_radius(25)) == (1.0, 0.5, 0.1)
    assert (linear_confidence(0), linear_confidence(5, 0.8), linear_confidence(1000)) == (0, 0.4, 0.99)
    sets = consistent_sets(np.array([[2, 2], [0, 0]]), lambda model, n: Pinned(model))
    assert sets[0].model.tolist() == [0.5, 0.5]
    assert sets[1] == Free(2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Pinned([0.5, 0.6]), "sum to 1.1, but they must sum to 1"),
        (lambda: Pinned([-0.5, 1.5]), "must be a vector of probabilities"),
        (lambda: Pinned([[1.0]]), "must be a vector of probabilities"),
        (lambda: Pinned([float("nan"), 1.0]), "must be a vector of probabilities"),
        (lambda: TotalVariation([1.0], -0.1), "radius of the consistent set is -0.1"),
        (lambda: ForwardKL([1.0], float("nan")), "radius of the consistent set is nan"),
        (lambda: Contamination([1.0], 1.5), "confidence in the model is 1.5"),
        (lambda: consistent_sets([[1, -1]], lambda model, n: Pinned(model)), "finite numbers >= 0"),
        (lambda: consistent_sets([1, 1], lambda model, n: Pinned(model)), "must be a table"),
    ],
)
def test_refusals(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
