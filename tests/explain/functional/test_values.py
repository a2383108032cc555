"""Influence values of aggregate terms and value functions against enumeration, brute force and printed numbers."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from benchmarks.explain_fixture import LOSSES, definitions, estimates
from explain.functional import (
    Rows,
    aggregate_terms,
    covariate_rows,
    curvature,
    expectation_rows,
    loss_table,
    mean,
    observed_loss,
    outcome_denominator_rows,
    outcome_rows,
    probability_bins,
    quantile_bins,
    risk_coefficient,
    risk_rows,
    squared_error,
)

# terms of the discrete population, computed once by a separate script: 0-1 loss, Brier score, log loss
PRINTED = {
    "baseline": (0.013520, 0.004248, 0.009967),
    "covariate": (-0.016580, -0.005984, -0.013512),
    "outcome": (0.055960, 0.016066, 0.035791),
    "covariate size": (0.002029, 0.000450, 0.002325),
    "covariate v(z1)": (0.965504, 0.918266, 0.918397),
    "covariate v(z2)": (0.267872, 0.524598, 0.531460),
    "outcome size": (0.016684, 0.001391, 0.006525),
    "outcome v(none)": (-0.622104, -2.836536, -3.516338),
    "outcome v(z1)": (-0.598493, -3.194044, -4.020654),
    "outcome v(z2)": (0.930238, 0.870218, 0.830107),
    "covariate share z1": (0.848816, 0.696834, 0.693469),
    "outcome share z1": (0.046686, -0.113863, -0.167211),
    "outcome share z2": (1.575417, 3.950399, 4.683549),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_estimators_reproduce_a_discrete_population_exactly(kind):
    exact, found = definitions(kind), estimates(kind)
    assert exact.keys() == found.keys()
    for term, value in exact.items():
        assert found[term] == pytest.approx(value, abs=1e-9), term
    for term, values in PRINTED.items():
        assert exact[term] == pytest.approx(values[LOSSES.index(kind)], abs=6e-7), term


def random_rows(rng, sizes=(40, 30)):
    return Rows(*(rng.normal(size=size) for size in sizes))


@given(seed=st.integers(0, 2**32 - 1))
def test_aggregate_terms_telescope_whatever_the_nuisances(seed):
    rng = np.random.default_rng(seed)
    loss, mu_x, mu_w = (random_rows(rng) for _ in range(3))
    rows = expectation_rows(loss, mu_x, mu_w, rng.exponential(size=40), rng.exponential(size=40))
    terms = aggregate_terms(mean(rows))
    assert terms.sum() == pytest.approx(loss.target.mean() - loss.source.mean(), abs=1e-12)


def test_aggregate_rows_are_those_of_the_paper():
    rng = np.random.default_rng(0)
    loss, mu_x, mu_w = (random_rows(rng) for _ in range(3))
    pi, pi_w = rng.exponential(size=40), rng.exponential(size=40)
    source, target = (aggregate_terms(part) for part in expectation_rows(loss, mu_x, mu_w, pi, pi_w))
    np.testing.assert_allclose(source[0], (loss.source - mu_w.source) * pi_w - loss.source)
    np.testing.assert_allclose(source[1], (loss.source - mu_x.source) * pi - (loss.source - mu_w.source) * pi_w)
    np.testing.assert_allclose(source[2], -(loss.source - mu_x.source) * pi)
    np.testing.assert_allclose(target, [mu_w.target, mu_x.target - mu_w.target, loss.target - mu_x.target])


def test_the_covariate_numerator_of_everything_is_zero():
    rng = np.random.default_rng(1)
    loss, mu_x, mu_xw = (random_rows(rng) for _ in range(3))
    pi = rng.exponential(size=40)
    rows = covariate_rows(loss, mu_x, mu_xw, pi, mu_x, mu_xw, pi)
    assert not rows.source.any()
    assert not rows.target.any()


def test_the_outcome_denominator_is_the_one_of_the_paper():
    rng = np.random.default_rng(2)
    loss, mu_0, mu_1 = (random_rows(rng) for _ in range(3))
    pi = rng.exponential(size=40)
    rows = outcome_denominator_rows(loss, mu_0, mu_1, pi)
    shift = mu_1.target - mu_0.target
    np.testing.assert_allclose(rows.target, shift**2 + 2 * shift * (loss.target - mu_1.target))
    np.testing.assert_allclose(rows.source, -2 * (mu_1.source - mu_0.source) * (loss.source - mu_0.source) * pi)


def test_two_classes_agree_with_the_binary_formula():
    rng = np.random.default_rng(3)
    f, p_1, p_s, g = (rng.random(50) for _ in range(4))
    y = rng.integers(0, 2, 50)
    table = loss_table("brier", f, 2)
    delta = table[:, 1] - table[:, 0]
    mu_1, mu_s = table[:, 0] + delta * p_1, table[:, 0] + delta * p_s
    xi, loss = mu_1 - mu_s, observed_loss(table, y)
    found = outcome_rows(table, y, mu_1, np.stack([1 - p_s, p_s], 1), np.stack([np.zeros(50), g], 1))
    np.testing.assert_allclose(found, xi**2 + 2 * xi * (loss - mu_1) - 2 * g * (y - p_s))
    # up to a constant in y, as g is regressed
    shifted = outcome_rows(table, y, mu_1, np.stack([1 - p_s, p_s], 1), np.stack([g, 2 * g], 1))
    np.testing.assert_allclose(found, shifted)


def test_for_the_zero_one_loss_the_model_does_not_matter():
    rng = np.random.default_rng(4)
    p_0, p_1, p_s, pi = (rng.random(60) for _ in range(4))
    y = rng.integers(0, 2, 60)

    def both(f):
        table = loss_table("zero_one", f, 2)
        mu_0, mu_1 = ((table * np.stack([1 - p, p], 1)).sum(1) for p in (p_0, p_1))
        loss = observed_loss(table, y)
        below = outcome_denominator_rows(Rows(loss, loss), Rows(mu_0, mu_0), Rows(mu_1, mu_1), pi)
        p = np.stack([1 - p_s, p_s], 1)
        slope = np.stack([-p_1, p_1], 1)
        c = risk_coefficient(table, mu_1, np.stack([1 - p_1, p_1], 1), p, slope)
        return np.concatenate([outcome_rows(table, y, mu_1, p), below.source, below.target, c])

    np.testing.assert_allclose(both(rng.random(60)), both(rng.random(60)), atol=1e-12)


@pytest.mark.parametrize("kind", ["zero_one", "brier"])
def test_risk_coefficient_is_the_derivative_of_the_numerator(kind):
    """Bend the risk by a small function h and compare the change of E[xi^2], by a fine grid, with E[c h]."""
    side = 400
    a, b = (part.ravel() for part in np.meshgrid((np.arange(side) + 0.5) / side, (np.arange(side) + 0.5) / side))
    q0 = (a + b) / 2  # the risk; given it, a varies and b = 2 q - a
    f, p_1 = 0.1 + 0.4 * b**2, 0.1 + 0.8 * a * b
    h = a**2 * q0
    table = loss_table(kind, f, 2)
    delta = table[:, 1] - table[:, 0]

    def fitted(values, q):  # a smooth regression on q alone
        basis = np.polynomial.legendre.legvander(2 * q - 1, 8)
        weights = np.linalg.lstsq(basis, values, rcond=None)[0]
        step = 1e-5
        slope = np.polynomial.legendre.legvander(2 * (q + step) - 1, 8) - np.polynomial.legendre.legvander(
            2 * (q - step) - 1, 8
        )
        return basis @ weights, slope @ weights / (2 * step)

    def numerator(q):
        p_s, _ = fitted(p_1, q)
        return np.mean(delta**2 * (p_1 - p_s) ** 2)

    p_s, slope = fitted(p_1, q0)
    gain, gain_slope = fitted(delta**2 * (p_1 - p_s), q0)

    def two(value):
        return np.stack([np.zeros_like(value), value], 1)

    mu_1 = table[:, 0] + delta * p_1
    c = risk_coefficient(
        table,
        mu_1,
        np.stack([1 - p_1, p_1], 1),
        np.stack([1 - p_s, p_s], 1),
        np.stack([-slope, slope], 1),
        two(gain),
        two(gain_slope),
    )
    step = 1e-4
    derivative = (numerator(q0 + step * h) - numerator(q0 - step * h)) / (2 * step)
    assert abs(derivative) > 1e-4
    assert np.mean(c * h) == pytest.approx(derivative, rel=0.03)


def test_a_few_rows_do_not_carry_the_risk_correction():
    weight = np.ones(1000)
    weight[:5] = 1e6
    rows = risk_rows(weight, np.ones(1000), np.ones(1000))
    assert rows.max() == 1.0


def test_curvature_estimates_the_error_of_a_mean():
    """Estimates d + fold error, where leaving out one of K groups makes the error of a mean of n normal values."""
    rng = np.random.default_rng(5)
    found, true = [], []
    for _ in range(2000):
        values = rng.normal(size=50)
        fold = np.arange(50) % 5
        left = np.array([values[fold != k].mean() for k in range(5)])
        found.append(curvature(left[:, None]))
        true.append(np.mean(left**2))
    assert np.mean(found) == pytest.approx(np.mean(true), rel=0.05)


def test_losses():
    f = np.array([0.2, 0.9])
    np.testing.assert_allclose(loss_table("zero_one", f, 2), [[0, 1], [1, 0]])
    np.testing.assert_allclose(loss_table("brier", f, 2), np.stack([f**2, (1 - f) ** 2], 1))
    np.testing.assert_allclose(loss_table("log", f, 2), -np.log(np.stack([1 - f, f], 1)))
    three = np.array([[0.2, 0.5, 0.3]])
    np.testing.assert_allclose(loss_table("zero_one", three, 3), [[1, 0, 1]])
    np.testing.assert_allclose(
        loss_table("brier", three, 3)[0],
        [0.5 * np.sum((three[0] - np.eye(3)[y]) ** 2) for y in range(3)],
    )
    np.testing.assert_allclose(squared_error(np.array([1.0]), np.array([3.0])), [4.0])


@pytest.mark.parametrize(
    ("predictions", "kind", "message"),
    [
        (np.array([0.5, 1.5]), "brier", "must be probabilities"),
        (np.array([[0.5, 0.2, 0.1]]), "brier", "need \\(n, 2\\)"),
        (np.array([[0.5, 0.2]]), "brier", "miss a sum of 1"),
        (np.array([0.0, 0.5]), "log", "clip predictions"),
        (np.array([0.5]), "hinge", "zero_one, brier, log"),
    ],
)
def test_losses_refuse(predictions, kind, message):
    with pytest.raises(ValueError, match=message):
        loss_table(kind, predictions, 2)


def test_bins():
    bins = probability_bins(4)
    np.testing.assert_allclose(bins(np.array([0.0, 0.25, 0.6, 1.0])), np.log([1 / 7, 3 / 5, 5 / 3, 7]))
    score = np.array([0.1, 0.6])
    below, above = bins(score, -1), bins(score, 1)
    np.testing.assert_allclose(
        bins.slope(score, below, above), [(above[0] - below[0]) / 0.25, (above[1] - below[1]) / 0.5]
    )
    sample = np.repeat([0.0, 1.0, 2.0, 3.0], [50, 1, 1, 48])
    quantile = quantile_bins(sample, 10)
    assert (np.bincount(np.searchsorted(quantile.edges, sample, side="right")) > 0).all()
    single = quantile_bins(np.ones(5), 10)
    assert single.centres.tolist() == [1.0]
    np.testing.assert_allclose(single.slope(np.ones(2), np.zeros(2), np.ones(2)), 0)
