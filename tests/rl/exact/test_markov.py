"""Robust dynamic programming against plain value iteration, enumeration and the maze's table."""

import itertools

import numpy as np
import pytest

from rl.envs import vault_maze
from rl.exact import (
    Contamination,
    ForwardKL,
    Free,
    MarkovGame,
    Pinned,
    ReverseKL,
    TotalVariation,
    best_response,
    linear_confidence,
    robust_plan,
    robust_plan_by_stage,
    solve_matrix,
    worst_case,
)
from tests.rl.exact.games import random_game

MAZE, GUARD, COVERED = vault_maze.maze_game(), vault_maze.true_guard(), vault_maze.COVERED
ANYONE = [Free(2)] * 7
CORRIDOR = np.where(COVERED[:, None], GUARD, GUARD[1])
PLANS = {
    "conservative": (lambda: robust_plan(MAZE, vault_maze.pinned_guard()).plan, (0.8499, 0.73349, -0.99)),
    "equilibrium": (lambda: robust_plan(MAZE, ANYONE).plan, (0.3, 0.3, 0.3)),
    "dataset only": (vault_maze.behaviour, (0.5861, 0.5861, -0.99)),
    "model like the corridor": (lambda: best_response(MAZE, CORRIDOR).plan, (-1.7505, -1.7505, -1.9406)),
    "model uniform": (
        lambda: best_response(MAZE, np.where(COVERED[:, None], GUARD, 0.5)).plan,
        (0.8499, 0.7335, -0.99),
    ),
    "RNR 0.3": (lambda: rnr(0.3), (0.3, 0.3, 0.3)),
    "RNR 0.5": (lambda: rnr(0.5), (0.3, 0.3, 0.3)),
    "RNR 0.7": (lambda: rnr(0.7), (-0.99, -0.99, -0.99)),
    "RNR 0.9": (lambda: rnr(0.9), (-1.7505, -1.7505, -1.9406)),
    "DBR": (
        lambda: (
            robust_plan(
                MAZE,
                [
                    Contamination(row, linear_confidence(1000 * seen))
                    for row, seen in zip(CORRIDOR, COVERED, strict=True)
                ],
            ).plan
        ),
        (0.8499, 0.7335, -0.99),
    ),
}


def rnr(p):
    return robust_plan(MAZE, [Contamination(row, p) for row in CORRIDOR]).plan


@pytest.mark.parametrize("name", PLANS)
def test_the_vault_maze_table(name):
    make, expected = PLANS[name]
    plan = make()
    worst = [worst_case(MAZE, plan, sets).value for sets in (vault_maze.pinned_guard(), ANYONE)]
    np.testing.assert_allclose([MAZE.value(plan, GUARD), *worst], expected, atol=1e-4)


def sets_of(rng, states, theirs, size):
    makers = (TotalVariation, ForwardKL, ReverseKL, lambda model, _: Pinned(model), lambda model, _: Free(theirs))
    return [makers[s % len(makers)](rng.dirichlet(np.ones(theirs)), size) for s in range(states)]


def test_policy_iteration_finds_the_fixed_point_of_value_iteration():
    rng = np.random.default_rng(0)
    for _ in range(3):
        game, sets = random_game(rng, discount=0.6), sets_of(rng, 6, 3, 0.1)
        values = np.zeros(6)
        for _ in range(50):
            values = np.array([solve_matrix(M, U).value for M, U in zip(game.stage(values), sets, strict=True)])
        found = robust_plan(game, sets)
        np.testing.assert_allclose(found.values, values, atol=1e-8)
        assert found.value == pytest.approx(game.value(found.plan, found.target))


def test_worst_case_is_below_every_consistent_target():
    rng = np.random.default_rng(1)
    game, model = random_game(rng), rng.dirichlet(np.ones(3), 6)
    sets, plan = [TotalVariation(row, 0.2) for row in model], rng.dirichlet(np.ones(3), 6)
    worst = worst_case(game, plan, sets)
    assert (0.5 * np.abs(worst.target - model).sum(1) <= 0.2 + 1e-12).all()
    for _ in range(200):
        member = 0.8 * model + 0.2 * rng.dirichlet(np.ones(3), 6)
        assert game.value(plan, member) >= worst.value - 1e-9


def test_best_response_against_all_pure_plans():
    rng = np.random.default_rng(2)
    game, target = random_game(rng, states=4, ours=2), rng.dirichlet(np.ones(3), 4)
    values = [game.value(np.eye(2)[list(pure)], target) for pure in itertools.product(range(2), repeat=4)]
    assert best_response(game, target).value == pytest.approx(max(values))


def test_the_ladder_of_values():
    rng = np.random.default_rng(3)
    for _ in range(3):
        game, target = random_game(rng, discount=0.7), rng.dirichlet(np.ones(3), 6)
        last = best_response(game, target).value
        nash = robust_plan(game, [Free(3)] * 6).value
        for radius in (0.05, 0.3, 0.9):
            robust = robust_plan(game, [TotalVariation(row, radius) for row in target])
            assert nash - 1e-8 <= robust.value <= last + 1e-8
            assert robust.value <= game.value(robust.plan, target) + 1e-9
            last = robust.value


def test_finite_horizon_tends_to_the_discounted_value_of_an_episodic_game():
    undiscounted = vault_maze.maze_game(discount=0.999999)
    values, plans = robust_plan_by_stage(undiscounted, vault_maze.pinned_guard(), horizon=4)
    assert values.shape == (5, 7)
    assert plans.shape == (4, 7, 3)
    assert values[0, 0] == pytest.approx(robust_plan(undiscounted, vault_maze.pinned_guard()).value, abs=1e-5)
    assert values[0, 0] == pytest.approx(0.8 * 1.2 - 0.2)


def test_refusals():
    rng = np.random.default_rng(4)
    game = random_game(rng)
    with pytest.raises(ValueError, match="2 consistent sets for 6 states"):
        robust_plan(game, [Free(3)] * 2)
    with pytest.raises(ValueError, match="sum to 1 in every row"):
        MarkovGame(game.transition * 0.9, game.reward, 0.9, game.start)
    with pytest.raises(ValueError, match=r"must be \(S, A, B\)"):
        MarkovGame(game.transition, game.reward[0], 0.9, game.start)
    with pytest.raises(ValueError, match=r"discount, 1.0, in \[0, 1\)"):
        MarkovGame(game.transition, game.reward, 1.0, game.start)
