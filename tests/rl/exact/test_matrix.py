"""Matrix games against the known table of rock, paper, scissors and between independent programmes."""

import numpy as np
import pytest

from rl.exact import (
    ConsistentSet,
    Contamination,
    ForwardKL,
    Free,
    Pinned,
    ReverseKL,
    TotalVariation,
    solve_matrix,
)
from tests.rl.exact.games import ROCK_PAPER_SCISSORS

MODEL = [0.5, 0.3, 0.2]


@pytest.mark.parametrize(
    ("consistent", "value"),
    [
        *(
            (TotalVariation(MODEL, radius), value)
            for radius, value in [(0, 0.3), (0.05, 0.2), (0.1, 0.1), (0.2, 0), (1, 0)]
        ),
        *(
            (Contamination(MODEL, p), value)
            for p, value in [(1, 0.3), (0.9, 0.17), (0.8, 1 / 15), (0.7, 1 / 60), (0.6, 0)]
        ),
        (Pinned(MODEL), 0.3),
        (Free(3), 0),
    ],
)
def test_rock_paper_scissors(consistent, value):
    assert solve_matrix(ROCK_PAPER_SCISSORS, consistent).value == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("radius", "reverse", "forward"), [(0.01, 0.1882, 0.1868), (0.05, 0.0471, 0.0409), (0.2, 0.0, 0.0)]
)
def test_rock_paper_scissors_in_kl_balls(radius, reverse, forward):
    assert solve_matrix(ROCK_PAPER_SCISSORS, ReverseKL(MODEL, radius)).value == pytest.approx(reverse, abs=5e-5)
    assert solve_matrix(ROCK_PAPER_SCISSORS, ForwardKL(MODEL, radius)).value == pytest.approx(forward, abs=5e-5)


def test_the_restricted_response_at_four_fifths_gives_up_a_third():
    plan = solve_matrix(ROCK_PAPER_SCISSORS, Contamination(MODEL, 0.8)).plan
    np.testing.assert_allclose(plan, [1 / 3, 2 / 3, 0], atol=1e-9)
    assert (plan @ ROCK_PAPER_SCISSORS).min() == pytest.approx(-1 / 3)
    assert plan @ ROCK_PAPER_SCISSORS @ MODEL == pytest.approx(1 / 6)


class WithoutRows(ConsistentSet):
    """A polytope that only tells its worst member, so that cutting planes must solve it."""

    def __init__(self, inner):
        self.inner, self.n_actions = inner, inner.n_actions

    def worst(self, cost):
        return self.inner.worst(cost)


def test_cutting_planes_agree_with_the_linear_programme():
    rng = np.random.default_rng(1)
    for _ in range(40):
        A, B = rng.integers(2, 5), rng.integers(2, 6)
        M, model = rng.normal(size=(A, B)), rng.dirichlet(np.full(B, 0.7))
        for consistent in (TotalVariation(model, rng.uniform(0, 0.6)), Contamination(model, rng.uniform())):
            whole, cut = solve_matrix(M, consistent), solve_matrix(M, WithoutRows(consistent))
            assert whole.value == pytest.approx(cut.value, abs=1e-9)
            assert whole.plan @ M @ whole.answer == pytest.approx(whole.value, abs=1e-12)


def test_the_value_lies_between_equilibrium_and_best_response_and_falls_with_the_radius():
    rng = np.random.default_rng(2)
    for make in (TotalVariation, ForwardKL, ReverseKL):
        for _ in range(10):
            M, model = rng.normal(size=(3, 4)), rng.dirichlet(np.ones(4))
            values = [solve_matrix(M, make(model, radius)).value for radius in (0, 0.05, 0.1, 0.3, 0.6, 1.0)]
            assert values[0] == pytest.approx((M @ model).max(), abs=1e-9)
            assert (np.diff(values) <= 1e-9).all()
            assert values[-1] >= solve_matrix(M).value - 1e-9


def test_equilibrium_of_a_game_with_a_saddle():
    solution = solve_matrix([[1, 3], [0, 5]])
    assert (solution.plan.tolist(), solution.value) == ([1.0, 0.0], 1.0)


@pytest.mark.parametrize("payoff", [[1.0], [[float("nan")]], np.zeros((0, 3))])
def test_not_a_game(payoff):
    with pytest.raises(ValueError, match="must be a matrix"):
        solve_matrix(payoff)
