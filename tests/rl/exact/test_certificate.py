"""Certificates from counts: radii by hand, coverage over repeated data, and growth with the data."""

import math

import numpy as np
import pytest

from rl.envs import vault_maze
from rl.exact import (
    Free,
    Intervals,
    SequenceGame,
    TotalVariation,
    certified_information_sets,
    certify,
    confidence_intervals,
    consistent_sets,
    robust_plan,
    solve_extensive,
    solve_matrix,
    weissman_radius,
    worst_answer,
    worst_case,
)

GAME, GUARD = vault_maze.maze_game(), vault_maze.true_guard()


def counts(rng, episodes):
    aggressive = rng.binomial(episodes, GUARD[1, 1])
    gate = episodes - aggressive
    table = np.zeros((7, 2))
    for node, visits in ((0, episodes), (3, gate)):
        table[node, 1] = rng.binomial(visits, 0.5)
        table[node, 0] = visits - table[node, 1]
    table[1] = gate, aggressive
    return table


def test_radius_by_hand():
    assert weissman_radius(400, 2, 4, 0.05, any_count=False) == pytest.approx(
        0.5 * math.sqrt(2 * math.log(2 * 4 / 0.05) / 400)
    )
    assert weissman_radius(400, 4, 3, 0.1) == pytest.approx(
        0.5 * math.sqrt(2 * math.log(14 * 3 * 400 * 401 / 0.1) / 400)
    )
    assert weissman_radius(0, 2, 4, 0.05) == weissman_radius(1, 2, 4, 0.05) == 1


def test_few_certificates_are_wrong_and_they_grow_with_the_data():
    rng, means = np.random.default_rng(0), []
    for episodes in (30, 300, 3000):
        found = [certify(GAME, counts(rng, episodes)) for _ in range(40)]
        claimed = np.array([one.solution.value for one in found])
        true = np.array([GAME.value(one.solution.plan, GUARD) for one in found])
        assert (claimed > true + 1e-9).mean() <= 0.05
        means.append(claimed.mean())
    assert means[0] == pytest.approx(0.3, abs=0.02)
    assert means[0] < means[1] < means[2] < 0.7335


def test_states_without_data_are_free_and_states_where_the_target_does_not_matter_are_not_counted():
    table = counts(np.random.default_rng(1), 1000)
    certificate = certify(GAME, table, any_count=False)
    assert certificate.sets[2] == certificate.sets[4] == Free(2)
    # Both corridors, the chamber and the balcony: four states with two actions, so four intervals.
    lower, upper = confidence_intervals(table[1], 0.05 / 4, any_count=False)
    assert np.array_equal(certificate.sets[1].lower, lower)
    assert np.array_equal(certificate.sets[1].upper, upper)
    assert certificate.confidence == 0.95


def test_intervals_by_hand():
    # No success in n trials: Clopper and Pearson's upper bound solves (1 - p)^n = failure / 2.
    lower, upper = confidence_intervals([0, 50], 0.1, any_count=False)
    assert lower[0] == 0
    assert upper[0] == pytest.approx(1 - 0.05 ** (1 / 50), abs=1e-12)
    assert lower[1] == pytest.approx(0.05 ** (1 / 50), abs=1e-12)
    # The mixture of B(1/2, 1/2): one action seen once has the likelihood 1/2, so p >= failure / 2.
    lower, upper = confidence_intervals([1, 0], 0.1)
    assert lower == pytest.approx([0.05, 0], abs=1e-12)
    assert upper == pytest.approx([1, 0.95], abs=1e-12)
    lower, upper = confidence_intervals([0, 0, 0], 0.1)
    assert lower.tolist() == [0, 0, 0]
    assert upper.tolist() == [1, 1, 1]


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5])
def test_intervals_hold_at_whatever_moment_the_data_end(p):
    """The share of sequences whose interval misses p at any of 300 lengths is below the failure."""
    rng, failure = np.random.default_rng(3), 0.1
    seen = np.cumsum(rng.random((400, 300)) < p, axis=1)
    lower, upper = confidence_intervals(np.stack([seen, np.arange(1, 301) - seen], -1), failure)
    missed = ((lower[..., 0] > p) | (upper[..., 0] < p)).any(1)
    assert missed.mean() <= failure
    fixed, _ = confidence_intervals(np.stack([seen, np.arange(1, 301) - seen], -1), failure, any_count=False)
    assert (fixed[..., 0] > p).any(1).mean() > failure / 2  # which holds at one length, not at all of them


def test_certified_values_are_above_those_of_weissmans_radii():
    rng = np.random.default_rng(5)
    for episodes in (300, 1000):
        table = counts(rng, episodes)
        wide = consistent_sets(table, lambda model, n: TotalVariation(model, weissman_radius(n, 2, 4, 0.05)))
        assert certify(GAME, table).solution.value > robust_plan(GAME, wide).value + 0.03


def test_worst_answers_within_intervals_are_the_same_by_enumeration_programme_and_tree():
    rng = np.random.default_rng(6)
    for _ in range(30):
        law = rng.dirichlet(np.ones(4))
        lower, upper = confidence_intervals(rng.multinomial(30, law), 0.05)
        one, cost = Intervals(lower, upper), rng.normal(size=4)
        worst = one.worst(cost)
        assert worst.sum() == pytest.approx(1)
        assert (worst >= lower - 1e-12).all()
        assert (worst <= upper + 1e-12).all()
        # A vertex of the box on the simplex has at most one entry strictly between its bounds.
        best = np.inf
        for free in range(4):
            for which in np.ndindex(2, 2, 2):
                vertex = np.insert(np.where(which, np.delete(upper, free), np.delete(lower, free)), free, 0.0)
                vertex[free] = 1 - vertex.sum()
                if lower[free] - 1e-12 <= vertex[free] <= upper[free] + 1e-12:
                    best = min(best, float(vertex @ cost))
        assert float(worst @ cost) == pytest.approx(best, abs=1e-9)
        M = rng.normal(size=(3, 4))
        solution = solve_matrix(M, one)
        others = rng.dirichlet(np.ones(3), 200)
        assert solution.value >= max(float(row @ M @ one.worst(row @ M)) for row in others) - 1e-9


def test_information_sets_are_certified_all_at_once():
    pytest.importorskip("pyspiel")
    from rl.envs.spiel import record_counts, sequence_form

    game = sequence_form("kuhn_poker")
    assert isinstance(game, SequenceGame)
    target = {key: np.array([0.8, 0.2]) if "Q" in key else np.array([0.4, 0.6]) for key in game.information_sets[1]}
    plan = game.realisation(1, target)
    wrong = 0
    for seed in range(20):
        seen = record_counts("kuhn_poker", ({}, target), 300, 1, seed)
        sets = certified_information_sets(game, seen)
        solution = solve_extensive(game, sets)
        assert solution.value >= -1 / 18 - 1e-9
        assert worst_answer(game, solution.plan, sets).value == pytest.approx(solution.value, abs=1e-7)
        wrong += solution.value > game.value(0, solution.plan, plan) + 1e-9
    assert wrong <= 1


def test_what_is_no_plan_is_refused():
    """A plan that sums to 3 had three times the value."""
    with pytest.raises(ValueError, match=r"the plan's row 0 is \[1.0, 1.0, 1.0\], but it must be probabilities"):
        GAME.value(np.ones((7, 3)), GUARD)
    with pytest.raises(ValueError, match="the target's row 0"):
        GAME.value(vault_maze.behaviour(), 2 * GUARD)
    with pytest.raises(ValueError, match=r"the plan has shape \(3,\), but it must be \(states, actions\) = \(7, 3\)"):
        worst_case(GAME, np.ones(3), [Free(2)] * 7)
    with pytest.raises(ValueError, match="the plan's row 0"):
        worst_case(GAME, np.ones((7, 3)), [Free(2)] * 7)


def test_refusals():
    with pytest.raises(ValueError, match=r"counts have shape \(3, 2\), but the game has 7 states and 2 actions"):
        certify(GAME, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="probability of failure is 0"):
        certify(GAME, np.ones((7, 2)), failure=0)
    with pytest.raises(ValueError, match="negative or not finite"):
        certify(GAME, -np.ones((7, 2)))
    with pytest.raises(ValueError, match="1 must lie between them"):
        Intervals([0.6, 0.6], [0.7, 0.7])
    with pytest.raises(ValueError, match="0 <= lower <= upper"):
        Intervals([0.6, 0.1], [0.5, 1.0])
