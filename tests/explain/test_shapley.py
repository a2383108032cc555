"""The Shapley map against brute-force averaging over orders, and sampling against exact enumeration."""

import itertools
import math

import numpy as np
import pytest

from explain.functional.shapley import sample_subsets, sampling_variance, shapley_map, subsets


def code(masks):
    return masks @ (1 << np.arange(masks.shape[1]))


def by_permutations(values, p):
    """phi_j = mean over all p! orders of what j adds to those before it; values by binary code."""
    phi = np.zeros(p)
    for order in itertools.permutations(range(p)):
        before = 0
        for j in order:
            phi[j] += values[before | 1 << j] - values[before]
            before |= 1 << j
    return phi / math.factorial(p)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_exact_map_averages_over_orders(p):
    rng = np.random.default_rng(p)
    values = rng.normal(size=2**p)
    phi = shapley_map(subsets(p)) @ values
    assert phi[0] == values[0]
    np.testing.assert_allclose(phi[1:], by_permutations(values, p), atol=1e-10)
    assert phi.sum() == pytest.approx(values[-1], abs=1e-10)


@pytest.mark.parametrize("p", [8, 10])
def test_the_exact_map_is_the_sum_over_subsets(p):
    """Paper section 2.3: phi_j = 1/p sum_s C(p-1, |s|)^-1 (v(s + j) - v(s))."""
    masks = subsets(p)
    values = np.random.default_rng(0).normal(size=2**p)
    sizes = masks.sum(1)
    expected = []
    for j in range(p):
        without = np.flatnonzero(~masks[:, j])
        weight = np.array([1 / (p * math.comb(p - 1, k)) for k in sizes[without]])
        expected.append(weight @ (values[without + (1 << j)] - values[without]))
    np.testing.assert_allclose((shapley_map(masks) @ values)[1:], expected, atol=1e-10)


def test_order_of_subsets_and_names_of_players_do_not_matter():
    rng = np.random.default_rng(1)
    masks, values = subsets(5), rng.normal(size=32)
    phi = shapley_map(masks) @ values
    rows, columns = rng.permutation(32), rng.permutation(5)
    np.testing.assert_allclose(shapley_map(masks[rows]) @ values[rows], phi, atol=1e-12)
    np.testing.assert_allclose((shapley_map(masks[:, columns]) @ values)[1:], phi[1:][columns], atol=1e-12)


def test_kernel_times_size_count_is_not_the_kernel():
    """Weighting subsets by the chance of a uniform draw within a size, as published code does, is wrong from p = 4."""
    p, masks = 4, subsets(4)
    values = np.append(0.0, np.random.default_rng(0).normal(size=15))
    z, sizes = masks[1:-1].astype(float), masks[1:-1].sum(1)
    wrong = np.array([1 / math.comb(p - 2, k - 1) / math.comb(p, k) for k in sizes])
    H, b = (z.T * wrong) @ z, (z.T * wrong) @ values[1:-1]
    # The full subset also enters H in a constrained problem with any weight; it cancels.
    ones = np.linalg.solve(H, np.ones(p))
    phi = np.linalg.solve(H, b) - ones * (ones @ b - values[-1]) / ones.sum()
    exact = by_permutations(values, p)
    np.testing.assert_allclose((shapley_map(masks) @ values)[1:], exact, atol=1e-10)
    assert np.abs(phi - exact).max() > 1e-3


@pytest.mark.parametrize("p", [2, 3, 4, 6, 12, 20])
def test_samples_are_paired_distinct_and_hold_the_forced_subsets(p):
    masks, counts = sample_subsets(p, 60, np.random.default_rng(0), batches=6)
    sizes = masks.sum(1)
    assert len(np.unique(masks, axis=0)) == len(masks)
    assert [(sizes == k).sum() for k in (0, p)] == [1, 1]
    assert (sizes == 1).sum() == p
    assert (sizes == p - 1).sum() == p
    assert counts[:, (sizes < 2) | (sizes > p - 2)].sum() == 0
    assert counts.sum() == (120 if p >= 4 else 0)
    if p >= 4:
        assert (counts.sum(1) == 20).all()
        found = {tuple(mask): count for mask, count in zip(masks, counts.sum(0), strict=True)}
        assert all(found[tuple(~np.array(mask))] == count for mask, count in found.items())


@pytest.mark.parametrize("p", [2, 3])
def test_forced_subsets_are_all_there_is_below_four_players(p):
    masks, counts = sample_subsets(p, 10, np.random.default_rng(0))
    assert len(masks) == 2**p
    np.testing.assert_allclose(shapley_map(masks, counts.sum(0)), shapley_map(masks), atol=1e-12)


@pytest.mark.parametrize("p", [6, 7, 8])
def test_sampled_normal_equations_are_unbiased_for_the_kernel(p):
    """E[weight of s] = w(s) for every subset: counted over many draws, within 5 standard errors."""
    draws = 40_000
    masks, counts = sample_subsets(p, draws, np.random.default_rng(p), batches=5)
    sizes = masks.sum(1)
    middle = (sizes > 1) & (sizes < p - 1)
    assert len(masks) == 2**p
    mass = sum(p * (p - 1) / (k * (p - k)) for k in range(2, p - 1))
    share = counts.sum(0)[middle] / (2 * draws)
    expected = np.array([1 / math.comb(p - 2, k - 1) for k in sizes[middle]]) / mass
    assert expected.sum() == pytest.approx(1, abs=1e-12)
    # A subset of half the players is its complement's pair: the two counts are one binomial variable.
    assert (np.abs(share - expected) < 5 * np.sqrt(expected / (2 * draws))).all()


@pytest.mark.parametrize("p", [6, 7, 8])
def test_the_sampled_estimate_converges_and_its_variance_is_right(p):
    rng = np.random.default_rng(p)
    values = rng.normal(size=2**p)
    exact = by_subsets = shapley_map(subsets(p)) @ values
    errors, claimed, large = [], [], []
    for seed in range(150):
        masks, counts = sample_subsets(p, 60, np.random.default_rng(seed))
        v = values[code(masks)]
        errors.append(shapley_map(masks, counts.sum(0)) @ v - exact)
        claimed.append(sampling_variance(masks, counts, v))
    for seed in range(10):
        masks, counts = sample_subsets(p, 6000, np.random.default_rng(seed))
        large.append(shapley_map(masks, counts.sum(0)) @ values[code(masks)] - by_subsets)
    errors, claimed = np.array(errors)[:, 1:], np.array(claimed)[:, 1:]
    spread = errors.std(0, ddof=1)
    assert (np.abs(errors.mean(0)) < 4 * spread / np.sqrt(150)).all()  # no bias that 150 repeats can see
    ratio = np.sqrt(claimed.mean()) / np.sqrt((spread**2).mean())
    assert 0.85 < ratio < 1.5  # batches of 6 pairs overstate a little
    assert np.array(large)[:, 1:].std() < 0.2 * spread.mean()  # 100 times the draws, a tenth of the error


def test_an_additive_game_is_recovered_by_any_draw():
    masks, counts = sample_subsets(12, 10, np.random.default_rng(0))
    worth = np.arange(12.0)
    phi = shapley_map(masks, counts.sum(0)) @ (3 + masks @ worth)
    np.testing.assert_allclose(phi, [3, *worth], atol=1e-9)


def test_the_same_seed_draws_the_same():
    one, two = (sample_subsets(9, 30, np.random.default_rng(4)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: subsets(17), "17 players cannot be enumerated"),
        (lambda: subsets(0), "0 players"),
        (lambda: sample_subsets(1, 10, np.random.default_rng(0)), "at least 2"),
        (lambda: sample_subsets(5, 3, np.random.default_rng(0)), "every one of the 10 batches"),
        (lambda: sample_subsets(5, 30, np.random.default_rng(0), batches=4), "at least 5"),
        (lambda: shapley_map(subsets(4)[:-1]), "empty and the full"),
        (lambda: shapley_map(np.delete(subsets(4), 5, 0)), "15 of the 16"),
        (lambda: shapley_map(np.repeat(subsets(2), 2, 0)), "listed twice"),
        (lambda: shapley_map(subsets(4), np.ones(3, int)), "one count"),
        (lambda: shapley_map(subsets(4), np.zeros(16, int)), "middle of the kernel"),
        (lambda: shapley_map(np.delete(subsets(4), 1, 0), np.ones(15, int)), "every single player"),
        (lambda: sampling_variance(subsets(4), np.ones((4, 16), int), np.zeros(16)), "5 batches"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()
