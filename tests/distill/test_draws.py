"""Addressed draws against numpy's generator, their distributions, and their independence of order."""

import numpy as np
import pytest
from scipy import stats

from distill.draws import Draws


def test_raw_words_are_those_of_philox():
    generator = np.random.Philox(key=np.array([5, 0], np.uint64), counter=np.array([0, 1, 2, 3], np.uint64))
    expected = (generator.random_raw(7) >> np.uint64(12)) * 2.0**-52 + 2.0**-53
    assert np.array_equal(Draws(5, 1, 2, 3).uniforms(7), expected)
    # fixed values: a change of them would make every stored cache stale without a word
    assert Draws(0, 0, 0, 0).uniforms(2).tolist() == [0.011546754286331562, 0.24154919656271823]


def test_draws_are_uniform_and_streams_independent():
    table = np.stack([Draws(3, 1, 2, index).uniforms(8) for index in range(4000)])
    assert stats.kstest(table.ravel(), "uniform").pvalue > 1e-3
    correlation = np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]
    assert abs(correlation) < 0.02
    neighbours = np.stack([Draws(seed, 1, 2, 3).uniforms(8) for seed in range(4000)])
    assert stats.kstest(neighbours.ravel(), "uniform").pvalue > 1e-3
    assert len(np.unique(np.concatenate([table, neighbours]))) > 63_990


def test_one_by_one_is_all_at_once():
    draws = Draws(1, 2)
    assert [draws.uniform() for _ in range(32)] == Draws(1, 2).uniforms(32).tolist()


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0])
def test_distributions(alpha):
    draws = [Draws(0, index) for index in range(3000)]
    assert stats.kstest([d.normal(7, 0.5) for d in draws], "norm", args=(7, 0.5)).pvalue > 1e-3
    assert stats.kstest([d.beta(alpha) for d in draws], "beta", args=(alpha, alpha)).pvalue > 1e-3
    counts = np.bincount([d.integer(5) for d in draws], minlength=5)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert np.mean([d.chance(0.3) for d in draws]) == pytest.approx(0.3, abs=0.03)


def test_an_address_of_other_numbers_is_refused():
    for address in ((-1,), (1, 2, 3, 4), (2**64,)):
        with pytest.raises(ValueError, match="up to three numbers"):
            Draws(0, *address)
