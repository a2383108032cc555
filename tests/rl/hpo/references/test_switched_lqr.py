"""Switched Riccati references against brute force over all words of modes, known values and each other."""

import itertools

import numpy as np
import pytest
import torch

from rl.envs.hybrid import play
from rl.envs.switched_lqr import SwitchedLQR, switched_lqr, textbook_switched_lqr
from rl.hpo.references.switched_lqr import best_word, decide_stages, lower_bound, solve_exact, solve_pruned


def spread(simulator):
    """States on which the mean of x'Px is its expectation over the first states, for every P."""
    n = simulator.observation_dim
    return torch.eye(n, dtype=torch.float64) * simulator.initial * (n / 3) ** 0.5


def first_states(simulator, batch, seed):
    return simulator.sample_noise(batch, torch.Generator().manual_seed(seed))


def by_brute_force(simulator, x0):
    """Least squares in all inputs at once, for every word of modes."""
    T, m = simulator.horizon, simulator.action_dim
    A, B, Q, R = (getattr(simulator, name).double().numpy() for name in "ABQR")
    root_q, root_r = np.linalg.cholesky(Q).T, np.linalg.cholesky(R).T
    best = np.inf
    for word in itertools.product(range(simulator.n_modes), repeat=T):
        constant, linear, rows, targets = x0, np.zeros((len(x0), T * m)), [], []
        for t, mode in enumerate(word):
            rows.append(root_q @ linear)
            targets.append(-root_q @ constant)
            pick = np.zeros((m, T * m))
            pick[:, t * m : (t + 1) * m] = np.eye(m)
            rows.append(root_r @ pick)
            targets.append(np.zeros(m))
            constant, linear = A[mode] @ constant, A[mode] @ linear + B[mode] @ pick
        system, target = np.concatenate(rows), np.concatenate(targets)
        u = np.linalg.lstsq(system, target, rcond=None)[0]
        best = min(best, ((system @ u - target) ** 2).sum())
    return best


def short(dimension, modes, horizon):
    full = switched_lqr(dimension, modes, dtype=torch.float64)
    return SwitchedLQR(full.A, full.B, full.Q, full.R, initial=full.initial, horizon=horizon, dtype=torch.float64)


@pytest.mark.parametrize(
    "simulator", [textbook_switched_lqr(5, torch.float64), short(2, 2, 6), short(3, 3, 4)], ids=["textbook", "2", "3"]
)
def test_the_exact_set_is_the_best_of_all_words(simulator):
    noise = first_states(simulator, 5, 0)
    stages = solve_exact(simulator)
    values = stages[0].values(noise["initial"]).min(1).values
    brute = [by_brute_force(simulator, x0) for x0 in noise["initial"].numpy()]
    np.testing.assert_allclose(values, brute, rtol=1e-9)
    np.testing.assert_allclose(play(simulator, decide_stages(simulator, stages), noise).sum(1), brute, rtol=1e-9)


@pytest.mark.parametrize(
    ("dimension", "bound", "single", "word", "size", "optimum"),
    [
        (2, 37.20, 75.79, 54.10, 122, 45.95),
        (3, 36.91, 58.48, 47.06, 147, 44.75),
        pytest.param(5, 37.05, 67.36, 50.40, 165, 47.15, marks=pytest.mark.slow),
    ],
)
def test_two_modes_in_few_dimensions(dimension, bound, single, word, size, optimum):
    simulator = switched_lqr(dimension, 2, dtype=torch.float64)
    x = spread(simulator)
    assert lower_bound(simulator, x).mean().item() == pytest.approx(bound, abs=6e-3)
    assert best_word(simulator, x, 1)[1].mean().item() == pytest.approx(single, abs=6e-3)
    assert best_word(simulator, x)[0] == (0, 1, 1)
    assert best_word(simulator, x)[1].mean().item() == pytest.approx(word, abs=6e-3)
    exact = solve_exact(simulator)
    assert len(exact[0].P) == size
    noise = first_states(simulator, 4000, 1)
    values = exact[0].values(noise["initial"]).min(1).values
    assert values.mean().item() == pytest.approx(optimum, abs=4 * values.std().item() / 4000**0.5)
    pruned = play(simulator, decide_stages(simulator, solve_pruned(simulator, noise["initial"][:500])), noise).sum(1)
    assert (pruned > values - 1e-6).all()
    assert pruned.mean().item() == pytest.approx(values.mean().item(), rel=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dimension", "modes", "bound", "single", "word", "pruned"),
    [
        (10, 2, 37.062, 73.6, 53.3, 49.9),
        (16, 2, 37.048, 73.4, 53.3, 50.7),
        (24, 2, 37.076, 73.6, 53.4, 50.7),
        (10, 4, 37.062, 88.1, 70.7, 63.6),
    ],
)
def test_more_dimensions(dimension, modes, bound, single, word, pruned):
    simulator = switched_lqr(dimension, modes, dtype=torch.float64)
    assert lower_bound(simulator, spread(simulator)).mean().item() == pytest.approx(bound, abs=1e-3)
    assert best_word(simulator, spread(simulator), 1)[1].mean().item() == pytest.approx(single, abs=0.06)
    assert best_word(simulator, spread(simulator))[1].mean().item() == pytest.approx(word, abs=0.06)
    noise = first_states(simulator, 4000, 1)
    stages = solve_pruned(simulator, first_states(simulator, 1000, 2)["initial"])
    costs = play(simulator, decide_stages(simulator, stages), noise).sum(1)
    assert costs.mean().item() == pytest.approx(pruned, abs=4 * costs.std().item() / 4000**0.5 + 0.05)


def test_one_mode_is_the_plain_regulator():
    simulator = switched_lqr(4, 1, dtype=torch.float64)
    x = first_states(simulator, 20, 0)["initial"]
    exact = solve_exact(simulator)
    assert len(exact[0].P) == 1
    torch.testing.assert_close(exact[0].values(x)[:, 0], lower_bound(simulator, x))
    torch.testing.assert_close(exact[0].values(x)[:, 0], best_word(simulator, x, 1)[1])


def test_what_cannot_be_bounded_or_solved_is_refused():
    simulator = textbook_switched_lqr()
    with pytest.raises(ValueError, match="compare with solve_exact"):
        lower_bound(simulator, torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="use solve_pruned"):
        solve_exact(switched_lqr(5, 4), limit=10)
