"""What the estimators of values learn from: ridge regression, crossed bases, contrasts of folds, settled means."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from benchmarks.explain_designs import DESIGNS, truth
from explain import GapExplainer, design, smooth
from explain.crossfit import contrasts
from explain.design import Quadratic
from explain.functional import Rows
from explain.ridge import MomentRidge
from explain.smooth import QuadraticLogistic, QuadraticRidge


@pytest.mark.parametrize("weighted", [False, True])
def test_a_ridge_of_one_penalty_is_scikit_learns(weighted):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 5)) + 1, rng.normal(size=80)
    given = {"sample_weight": rng.uniform(0.5, 2, 80)} if weighted else {}
    other = Ridge(alpha=3.0).fit(X, y, **given)
    np.testing.assert_allclose(MomentRidge((3.0,)).fit(X, y, **given).predict(X), other.predict(X), atol=1e-10)


@pytest.mark.parametrize("signal", [0.0, 0.2, 3.0])
def test_the_penalty_has_the_least_error_of_leaving_each_row_out(signal):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 12))
    y, alphas = signal * X[:, 0] + rng.normal(size=60), (0.1, 10.0, 1000.0)
    missed = []
    for alpha in alphas:
        held = [Ridge(alpha=alpha).fit(np.delete(X, i, 0), np.delete(y, i)).predict(X[[i]])[0] for i in range(60)]
        missed.append(((held - y) ** 2).sum())
    assert MomentRidge(alphas).fit(X, y).alpha_ == alphas[int(np.argmin(missed))]


def test_several_outcomes_are_learnt_at_once_as_each_alone():
    rng = np.random.default_rng(4)
    X, weight = rng.normal(size=(90, 6)), rng.uniform(0.5, 2, 90)
    Y = np.column_stack([3 * X[:, 0], X[:, 1], np.zeros(90)]) + rng.normal(size=(90, 3))
    together = MomentRidge().fit(X, Y, sample_weight=weight)
    for k, y in enumerate(Y.T):
        alone = MomentRidge().fit(X, y, sample_weight=weight)
        assert together.alpha_[k] == alone.alpha_
        np.testing.assert_allclose(together.predict(X)[:, k], alone.predict(X), rtol=1e-12)
    assert len(set(together.alpha_)) > 1


def test_a_crossed_basis_follows_what_the_risk_means_at_every_value():
    """Given a risk and a bit, the hidden number is the one or the other: three columns at once decide."""
    rng = np.random.default_rng(2)
    X = np.column_stack([rng.normal(size=1500), rng.integers(0, 2, 1500), rng.normal(size=1500)])
    target = X[:, 0] * X[:, 1] * X[:, 2]
    left = {}
    for crossed in ((), (2,)):
        basis = Quadratic(crossed).fit(X)
        left[crossed] = np.var(target - MomentRidge().fit(basis.transform(X), target).predict(basis.transform(X)))
    assert left[2,] < 0.01 * left[()]


def test_a_crossed_basis_has_room_or_does_without():
    X = np.random.default_rng(3).normal(size=(2000, 3))
    plain = Quadratic().fit(X[:30]).transform(X).shape[1]
    assert Quadratic((2,)).fit(X[:30]).transform(X).shape[1] == plain
    # 3 columns, squares and pairs and 5 bends each; 7 terms of the risk times the others' 2 + 2 + 10 + 1, or times 2.
    assert Quadratic((2,)).fit(X).transform(X).shape[1] == 24 + 7 * 15
    assert Quadratic((2,)).fit(X[:600]).transform(X).shape[1] == 24 + 7 * 2


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_contrasts_of_folds_tell_the_variance_of_a_mean(folds):
    rng, found = np.random.default_rng(4), []
    for _ in range(1500):
        values, fold = rng.normal(size=60), np.arange(60) % folds
        left = [values[fold != k].mean() for k in range(folds)]
        fits = [SimpleNamespace(p_1=None, mu_1=Rows(np.zeros(1), np.array([mean]))) for mean in left]
        found.append(np.mean([contrast.item() ** 2 for contrast in contrasts(fits)]))
    assert np.mean(found) == pytest.approx(1 / (60 * (1 - 1 / folds)), rel=0.1)


def test_a_product_of_three_columns_that_the_basis_lacks_is_not_missed_in_a_covariate_value():
    """What two bits explain depends on w: a regression without that product found a value of 1 with every seed."""
    design = next(design for design in DESIGNS if design.name == "binary")
    rng = np.random.default_rng([9, 1])
    tables = design.table(0, 8000, rng), design.table(1, 8000, rng)
    groups = {"bits": ["z1", "z2"], "z3": "z3"}
    report = GapExplainer(["w"], groups, learners="linear", folds=3).fit(*tables).report_
    value = next(value for value in report.values if (value.kind, value.subset) == ("covariate", ("bits",)))
    assert value.value < 0.97
    assert value.low <= 0.863 <= value.high


@pytest.mark.slow
@pytest.mark.parametrize("learners", ["linear", "hist_gb"])
def test_estimates_average_to_the_truth(learners):
    """Bits whose agreement decides the risk: no bias beyond half a standard error, next to what chance leaves."""
    design = next(design for design in DESIGNS if design.name == "binary")
    true, found = truth(design, "zero_one"), []
    for seed in range(16):
        rng = np.random.default_rng([9, seed])
        tables = design.table(0, 4000, rng), design.table(1, 4000, rng)
        report = GapExplainer(["w"], learners=learners, seed=seed, min_shift_z=0.0).fit(*tables).report_
        shares = [("covariate", term) for term in report.covariate] + [("outcome", term) for term in report.outcome]
        found.append(
            {
                f"{kind} share {term.name.replace('recalibration', 'none')}": (term.value, term.se)
                for kind, term in shares
            }
        )
    for name in found[0]:
        values, errors = np.array([one[name] for one in found]).T
        allowed = 0.5 * errors.mean() + 2 * values.std(ddof=1) / len(found) ** 0.5
        assert abs(values.mean() - true[name]) < allowed, name


@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_of_rows_are_what_all_rows_at_once_are(monkeypatch, weighted):
    """The basis of many rows is made block by block; the logistic regression is then Newton's own."""
    rng = np.random.default_rng(4)
    X = np.column_stack([rng.normal(size=(700, 3)), rng.integers(0, 2, 700)])
    weight = rng.uniform(0.5, 2, 700) if weighted else None
    y = X[:, 0] + X[:, 1] * X[:, 2] + rng.normal(size=700)
    label = np.array(["a", "b"])[(rng.random(700) < 1 / (1 + np.exp(-2 * X[:, 0] - X[:, 3]))).astype(int)]
    whole = QuadraticRidge().fit(X, y, weight), QuadraticLogistic().fit(X, label, weight)
    for module in (design, smooth):
        monkeypatch.setattr(module, "BLOCK", 150)
    monkeypatch.setattr(design, "PIECE", 60)
    parts = QuadraticRidge().fit(X, y, weight), QuadraticLogistic().fit(X, label, weight)
    np.testing.assert_allclose(parts[0].predict(X), whole[0].predict(X), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(parts[1].predict_proba(X), whole[1].predict_proba(X), atol=2e-4)  # sklearn stops earlier
    tight = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-10)
    tight.fit(whole[1].quadratic_.transform(X), label, sample_weight=weight)
    expected = tight.predict_proba(whole[1].quadratic_.transform(X))
    np.testing.assert_allclose(parts[1].predict_proba(X), expected, atol=1e-6)
    assert set(parts[1].predict(X)) == {"a", "b"}
