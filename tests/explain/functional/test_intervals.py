"""Standard errors and intervals against resampling, closed forms and each other."""

import numpy as np
import pytest

from explain.functional import (
    Rows,
    at_most_one,
    covariance,
    density_ratio,
    fieller,
    overlap,
    ratio_terms,
    shapley_map,
    statuses,
    subsets,
    wald,
)


def test_covariance_is_that_of_the_means():
    rng = np.random.default_rng(0)
    rows = Rows(rng.normal(size=(3, 50)), rng.normal(size=(3, 80)))
    expected = np.cov(rows.source) / 50 + np.cov(rows.target) / 80
    np.testing.assert_allclose(covariance(rows), expected)
    alone = np.arange(50), 50 + np.arange(80)
    np.testing.assert_allclose(covariance(rows, alone), expected, rtol=0.03)  # every row its own cluster


def test_clusters_count_once():
    """Every row ten times: naive errors are too small by sqrt(10), cluster-robust ones are not."""
    rng = np.random.default_rng(1)
    one = Rows(rng.normal(size=(1, 60)), rng.normal(size=(1, 60)))
    ten = Rows(*(np.repeat(part, 10, axis=1) for part in one))
    clusters = tuple(np.repeat(np.arange(60) + 60 * side, 10) for side in (0, 1))
    robust = covariance(ten, clusters)[0, 0]
    assert robust == pytest.approx(covariance(one)[0, 0], rel=0.02)
    assert covariance(ten)[0, 0] == pytest.approx(robust / 10, rel=0.05)


def test_a_cluster_in_both_domains_is_summed_over_both():
    values = np.random.default_rng(2).normal(size=(1, 100))
    clusters = np.arange(100), np.arange(100)
    assert covariance(Rows(values, -values), clusters)[0, 0] == pytest.approx(0, abs=1e-15)


def test_ratio_terms_have_the_delta_method_error_of_the_mapped_rows():
    rng = np.random.default_rng(3)
    rows = Rows(rng.normal(size=(5, 200)), rng.normal(size=(5, 300)) + 3)
    value, spread = np.array([2.0, 1.0, 0.5, 0.0, 2.5]), covariance(rows)
    maps = shapley_map(subsets(2))
    found = ratio_terms(maps, value[:4], value[4], spread)
    ratio = value[:4] / value[4]
    influence = Rows(*((part[:4] - ratio[:, None] * part[4]) / value[4] for part in rows))
    np.testing.assert_allclose(found.value, maps @ (1 - ratio))
    np.testing.assert_allclose(found.variance, np.diag(maps @ covariance(influence) @ maps.T))


def test_fieller_covers_a_ratio_with_a_weak_denominator_and_approaches_wald():
    rng = np.random.default_rng(4)
    spread = np.array([[0.04, 0.01], [0.01, 0.04]])
    hits = 0
    for _ in range(2000):
        top, bottom = rng.multivariate_normal([0.2, 0.5], spread)
        low, high = fieller(ratio_terms(np.eye(1), np.array([top]), bottom, spread), 0.9)
        a = bottom**2 - 1.6449**2 * 0.04
        hits += (low[0] <= 0.6 <= high[0]) or a <= 0
    assert hits / 2000 >= 0.9 - 0.02
    sharp = ratio_terms(np.eye(1), np.array([0.2]), 0.5, spread * 1e-6)
    np.testing.assert_allclose(fieller(sharp, 0.9), wald(sharp.value, sharp.variance, 0.9), rtol=1e-3)
    none = ratio_terms(np.eye(1), np.array([0.2]), 0.1, spread)
    assert np.isinf(fieller(none, 0.9)).all()


def test_statuses():
    assert statuses(np.array([0.2, 1.0]), np.array([0.01, 0.01]), "low-overlap") == ["low-overlap"] * 2
    assert statuses(np.array([0.2, 0.9, 1.0]), np.array([0.01, 0.01, 0.0])) == ["ok", "near-one", "ok"]


def test_a_value_that_cannot_be_told_from_one_may_be_one():
    value, se = np.array([0.80, 0.90, 0.975, 1.3]), np.array([0.1, 0.02, 0.01, 0.2])
    low, high = wald(value, se**2, 0.9)
    bounded, lower, upper = at_most_one(value, se**2, low, high)
    np.testing.assert_allclose(bounded, [0.80, 0.90, 0.975, 1.0])
    np.testing.assert_allclose(lower, np.minimum(low, 1))
    np.testing.assert_allclose(upper, [high[0], high[1], 1.0, 1.0])  # 0.9 is five standard errors away


def test_density_ratio_is_finite_and_averages_one():
    p = np.concatenate([np.full(995, 0.4), np.ones(5)])
    ratio = density_ratio(p, (800, 400))
    assert np.isfinite(ratio).all()
    assert ratio.mean() == pytest.approx(1)
    assert ratio.max() / ratio.min() <= 50 / (0.4 / 0.6 * 2) + 1e-9
    weights = np.array([0.9, 0.1])
    weighted = density_ratio(np.array([0.5, 0.75]), (10, 10), weights)
    assert weights @ weighted == pytest.approx(1)


def test_overlap_has_the_area_under_the_curve():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(5)
    source, target = rng.normal(size=300).round(1), (rng.normal(size=200) + 1).round(1)
    found = overlap(np.ones(300), source, target)
    assert found.auc == pytest.approx(roc_auc_score(np.repeat([0, 1], [300, 200]), np.concatenate([source, target])))
    assert found.effective == pytest.approx(300)
    assert found.share == pytest.approx(1)
