"""Regressions made block by block, against scikit-learn's on the whole basis and against leaving rows out."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge

from explain import design
from explain.blocks import BlockLogistic, BlockRidge
from explain.design import Quadratic


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(design, "_BLOCK", 64)
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(300, 2)), rng.integers(0, 2, 300)])
    y = X[:, 0] - X[:, 1] * X[:, 2] + rng.normal(size=300)
    return X, y, rng.uniform(0.5, 2, 300)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_ridge_of_one_penalty_is_scikit_learns(rows, weighted):
    X, y, weight = rows
    given = {"sample_weight": weight} if weighted else {}
    basis = Quadratic(0.1).fit(X, **given)
    other = Ridge(alpha=3.0).fit(basis.transform(X), y, **given).predict(basis.transform(X))
    np.testing.assert_allclose(BlockRidge(0.1, (3.0,)).fit(X, y, **given).predict(X), other, atol=1e-9)


def test_the_penalty_has_the_least_error_of_leaving_each_row_out(rows):
    X, y, _ = rows
    basis = Quadratic().fit(X).transform(X)
    alphas, missed = (0.1, 10.0, 1000.0), []
    for alpha in alphas:
        held = [
            Ridge(alpha=alpha).fit(np.delete(basis, i, 0), np.delete(y, i)).predict(basis[i : i + 1])
            for i in range(300)
        ]
        missed.append(((np.concatenate(held) - y) ** 2).sum())
    assert BlockRidge(alphas=alphas).fit(X, y).alpha_ == alphas[int(np.argmin(missed))]


@pytest.mark.parametrize("weighted", [False, True])
def test_a_logistic_regression_is_scikit_learns(rows, weighted):
    X, y, weight = rows
    label = (np.random.default_rng(1).random(300) < expit(2 * y)).astype(int)
    given = {"sample_weight": weight} if weighted else {}
    basis = Quadratic(0.1).fit(X, **given).transform(X)
    other = LogisticRegression(C=1.0, tol=1e-10, solver="newton-cholesky").fit(basis, label, **given)
    ours = BlockLogistic(0.1).fit(X, label, **given)
    np.testing.assert_allclose(ours.predict_proba(X), other.predict_proba(basis), atol=1e-6)
    assert (ours.predict(X) == other.predict(basis)).all()


def test_labels_that_features_separate_have_finite_coefficients(rows):
    X, _, _ = rows
    chances = BlockLogistic().fit(X, (X[:, 0] > 0).astype(int)).predict_proba(X)
    assert np.isfinite(chances).all()
    assert ((chances[:, 1] > 0.5) == (X[:, 0] > 0)).mean() > 0.98
