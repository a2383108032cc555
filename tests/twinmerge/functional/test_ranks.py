"""Rank policies against brute force."""

import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st

from twinmerge.functional import choose_ranks, stored_dense
from twinmerge.functional.ranks import rank_from_density, rank_from_energy, ranks_from_budget

SHAPES = {("spam", "q"): (6, 4), ("spam", "e"): (9, 3), ("toxic", "q"): (6, 4)}


def random_spectra(seed, shapes):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(min(s), generator=generator).double().sort(descending=True).values for key, s in shapes.items()
    }


def size(shape, rank):
    return min(rank * sum(shape), shape[0] * shape[1])


def test_a_number_is_cut_to_small_matrices():
    assert choose_ranks({"a": (8, 9), "types": (2, 9)}, rank=5) == {"a": 5, "types": 2}
    for rank in (0, -1, 9, True):
        with pytest.raises(
            ValueError,
            match=rf"the rank is {rank}, but the largest matrix takes a rank from 1 to 8, its smaller side: give one",
        ):
            choose_ranks({"a": (8, 9), "types": (2, 9)}, rank=rank)


@given(shape=st.tuples(st.integers(1, 500), st.integers(1, 500)), density=st.floats(0.001, 1))
def test_density(shape, density):
    rank = rank_from_density(shape, density)
    assert 1 <= rank <= min(shape)
    assert rank == max(1, int(density * min(shape)))


@given(seed=st.integers(0, 2**32), energy=st.floats(0.001, 1))
@settings(deadline=None)
def test_energy_is_the_smallest_rank_that_suffices(seed, energy):
    values = random_spectra(seed, {"a": (7, 9)})["a"]
    rank = rank_from_energy(values, energy)
    shares = values.square().cumsum(0) / values.square().sum()
    assert shares[rank - 1] >= energy - 1e-12
    assert rank == 1 or shares[rank - 2] < energy + 1e-12
    assert rank_from_energy(torch.zeros(4), energy) == 1


@given(seed=st.integers(0, 2**32), share=st.floats(0.2, 1.1))
@settings(max_examples=60, deadline=None)
def test_budget_keeps_as_much_as_any_choice_of_its_size(seed, share):
    spectra = random_spectra(seed, SHAPES)
    budget = int(share * 4 * sum(m * n for m, n in SHAPES.values()))
    ranks = choose_ranks(SHAPES, budget=budget, spectra=spectra)
    used = sum(size(SHAPES[key], rank) for key, rank in ranks.items())
    assert 4 * used <= budget
    kept = lambda choice: sum(spectra[key][:rank].square().sum().item() for key, rank in choice.items())  # noqa: E731
    most = {key: m * n // (m + n) for key, (m, n) in SHAPES.items()}
    assert all(rank <= most[key] for key, rank in ranks.items())
    for choice in itertools.product(*(range(rank + 1) for rank in most.values())):
        other = dict(zip(SHAPES, choice, strict=True))
        # Greedy buying is optimal at every size at which it stops.
        if sum(size(SHAPES[key], rank) for key, rank in other.items()) <= used:
            assert kept(other) <= kept(ranks) + 1e-9


def test_budget_edges():
    spectra = random_spectra(0, SHAPES)
    everything = 4 * sum(m * n for m, n in SHAPES.values())
    assert ranks_from_budget(SHAPES, spectra, everything) == {key: m * n // (m + n) for key, (m, n) in SHAPES.items()}
    assert ranks_from_budget({"row": (1, 6)}, {"row": torch.ones(1)}, 24) == {"row": 1}
    with pytest.raises(ValueError, match="the budget is 3 bytes, but the first direction takes 40 bytes"):
        ranks_from_budget({"q": (6, 4)}, {"q": spectra["spam", "q"]}, 3)
    zero = {key: torch.zeros(min(shape)) for key, shape in SHAPES.items()}
    assert set(ranks_from_budget(SHAPES, zero, 100).values()) == {0}


def test_exactly_one_policy():
    with pytest.raises(
        ValueError, match="the rank policy is missing: give exactly one of rank, density, energy, budget"
    ):
        choose_ranks(SHAPES)
    with pytest.raises(ValueError, match=r"the rank policy is rank=2 and energy=0.9"):
        choose_ranks(SHAPES, rank=2, energy=0.9)
    for policy in ({"energy": 0.9}, {"budget": 100}):
        with pytest.raises(ValueError, match="needs the singular values"):
            choose_ranks(SHAPES, **policy)
    for value in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="the density is"):
            choose_ranks(SHAPES, density=value)
        with pytest.raises(ValueError, match="the energy is"):
            choose_ranks(SHAPES, energy=value, spectra=random_spectra(0, SHAPES))
    with pytest.raises(ValueError, match="the budget is 0 bytes"):
        choose_ranks(SHAPES, budget=0, spectra=random_spectra(0, SHAPES))


@given(shape=st.tuples(st.integers(1, 60), st.integers(1, 60)), rank=st.integers(0, 60))
def test_break_even(shape, rank):
    m, n = shape
    assert stored_dense(shape, rank) == (rank * (m + n) > m * n)
