"""The paper's baselines against what they must equal: separate fits, exact sums, and generators with a known driver."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.linear_model import LinearRegression

from explain.functional.baselines import (
    mean_change,
    oaxaca_blinder,
    parametric_acc,
    parametric_change,
    random_forest_acc,
    wu_shift,
)


@pytest.fixture
def pair():
    """Two samples of three variables; the second variable's effect on a binary outcome changes."""
    rng = np.random.default_rng(0)
    x0, x1 = rng.normal(size=(1500, 3)), rng.normal([0, 0, 0.5], size=(1200, 3))
    y0, y1 = (
        (rng.random(len(x)) < 1 / (1 + np.exp(-x @ beta))).astype(float)
        for x, beta in ((x0, [0.5, 1.0, 0.2]), (x1, [0.5, -0.5, 0.2]))
    )
    return x0, y0, x1, y1


def logistic(x, y):
    """Maximum likelihood by a general optimiser."""
    design = np.column_stack([np.ones(len(x)), x])

    def loss(b):
        s = design @ b
        return np.logaddexp(0, s).sum() - y @ s, design.T @ (1 / (1 + np.exp(-s)) - y)

    return minimize(loss, np.zeros(design.shape[1]), jac=True, options={"gtol": 1e-6}).x


def test_mean_change_orders_by_evidence():
    rng = np.random.default_rng(0)
    x0, x1 = rng.normal(size=(2000, 3)), rng.normal([0.0, 0.05, 0.2], size=(2000, 3))
    still, little, much = mean_change(x0, x1)
    assert max(still, little) < much
    mean, var = x1.mean(0) - x0.mean(0), (x0.var(0, ddof=1) + x1.var(0, ddof=1)) / 2000

    np.testing.assert_allclose([still, little, much], 2 * norm.cdf(np.abs(mean) / np.sqrt(var)) - 1, atol=1e-3)


def test_oaxaca_blinder_sums_exactly_and_agrees_with_separate_fits(pair):
    x0, y0, x1, y1 = pair
    found = oaxaca_blinder(x0, y0, x1, y1)
    total = found.covariate.sum() + found.outcome.sum() + found.intercept
    assert total == pytest.approx(y1.mean() - y0.mean(), abs=1e-12)
    beta0, beta1 = LinearRegression().fit(x0, y0).coef_, LinearRegression().fit(x1, y1).coef_
    np.testing.assert_allclose(found.covariate, beta0 * (x1.mean(0) - x0.mean(0)), atol=1e-12)
    np.testing.assert_allclose(found.outcome, x1.mean(0) * (beta1 - beta0), atol=1e-12)


@pytest.mark.parametrize("method", [parametric_change, parametric_acc])
def test_interactions_are_differences_of_separate_fits(pair, method):
    x0, y0, x1, y1 = pair
    scale = np.array([1.0, 10.0, 0.1])
    expected = (logistic(x1, y1) - logistic(x0, y0))[1:]
    np.testing.assert_allclose(method(x0 * scale, y0, x1 * scale, y1), expected / scale, rtol=2e-2, atol=2e-3)
    assert np.abs(expected).argmax() == 1


def test_wu_shift_finds_the_mean_moved_through_each_variable():
    """Linear loss, independent variables: v is additive, so phi_j = coefficient times mean difference."""
    rng = np.random.default_rng(0)
    w0, w1 = rng.normal(size=(20_000, 1)), rng.normal(size=(20_000, 1)) + 1
    z0, z1 = rng.normal(size=(20_000, 3)), rng.normal([1.0, -0.5, 0.0], size=(20_000, 3))
    loss = w0[:, 0] + z0 @ [1.0, 2.0, 3.0] + rng.normal(size=20_000)
    shares = wu_shift(w0, z0, loss, w1, z1, LinearRegression())
    np.testing.assert_allclose(shares, [0.5, 0.5, 0.0], atol=0.03)
    assert shares.sum() == pytest.approx(1)


def test_wu_shift_by_default_needs_no_linearity():
    rng = np.random.default_rng(0)
    w0, w1 = rng.normal(size=(4000, 1)), rng.normal(size=(4000, 1))
    z0, z1 = rng.normal(size=(4000, 2)), rng.normal(size=(4000, 2)) * [1.0, 2.0]
    shares = wu_shift(w0, z0, z0[:, 1] ** 2 + z0[:, 0], w1, z1)
    assert shares.argmax() == 1
    assert shares[1] > 0.8


def test_random_forest_acc_is_seeded_and_finds_where_the_loss_is():
    rng = np.random.default_rng(0)
    x0, x1 = rng.normal(size=(400, 3)), rng.normal(size=(400, 3))
    loss0, loss1 = np.zeros(400), (x1[:, 2] > 0).astype(float)
    first = random_forest_acc(x0, loss0, x1, loss1)
    assert first.argmax() == 2
    assert first.sum() < 1  # the rest is the domain's
    assert (first == random_forest_acc(x0, loss0, x1, loss1)).all()
