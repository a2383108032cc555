"""Certificate, optimality and hard cases of the truncated SVD."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

import twinmerge.functional.factorize as module
from twinmerge.functional import spectrum, truncated_svd

SPECTRA = {
    "power law": lambda i: i**-0.5,
    "fast power law": lambda i: i**-2.0,
    "exponential": lambda i: torch.exp(-0.05 * i),
    "steep": lambda i: torch.exp(-i),
    "linear": lambda i: 1 - i / (len(i) + 1),
    "repeated": torch.ones_like,
    "step": lambda i: torch.where(i <= 20, 1.0, 0.9),
    "low rank": lambda i: (i <= 12).double(),
    "low rank and noise": lambda i: torch.where(i <= 12, 1.0, 0.01),
    "low rank and fine noise": lambda i: torch.where(i <= 12, 1.0, 1e-5),
}


def matrix_of(shape, spectrum_name, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    k = min(shape)
    U, V = (torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))[0] for n in shape)
    return ((U * SPECTRA[spectrum_name](torch.arange(1, k + 1).double())) @ V.T).to(dtype)


def residuals(matrix, low, rank):
    D = matrix.double()
    S = torch.linalg.svdvals(D)
    true = torch.linalg.norm(D - low.up.double() @ low.down.double()) / torch.linalg.norm(D)
    return true.item(), (S[rank:].norm() / S.norm()).item()


@given(
    name=st.sampled_from(list(SPECTRA)),
    shape=st.sampled_from([(200, 160), (120, 260), (150, 150), (12, 20), (1, 7)]),
    part=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None, derandomize=True)  # optimality holds with high probability, not always
def test_certificate_is_the_true_residual_and_at_most_one_percent_above_the_best(name, shape, part, seed, dtype):
    matrix = matrix_of(shape, name, seed, dtype)
    rank = max(1, round(part * min(shape)))
    low = truncated_svd(matrix, rank, seed=seed)
    true, best = residuals(matrix, low, rank)
    rounding = 40 * torch.finfo(dtype).eps
    assert true <= 1.01 * best + rounding
    assert low.residual == pytest.approx(true, rel=1e-3, abs=rounding)
    assert (low.up.shape, low.down.shape) == ((shape[0], rank), (rank, shape[1]))
    assert low.up.dtype == low.down.dtype == dtype


@given(seed=st.integers(0, 2**32), name=st.sampled_from(list(SPECTRA)))
@settings(max_examples=15, deadline=None)
def test_error_falls_with_rank_and_full_rank_returns_the_input(seed, name):
    matrix = matrix_of((40, 60), name, seed)
    errors = [truncated_svd(matrix, rank).residual for rank in (1, 2, 5, 10, 20, 40)]
    assert all(later <= earlier * 1.01 + 1e-6 for earlier, later in itertools.pairwise(errors))
    torch.testing.assert_close(truncated_svd(matrix, 40).dense(), matrix, rtol=0, atol=1e-5)


def test_factors_are_balanced_orthogonal_and_sorted():
    low = truncated_svd(matrix_of((200, 160), "power law", 0), 10)
    gram_up, gram_down = low.up.T @ low.up, low.down @ low.down.T
    torch.testing.assert_close(gram_up, torch.diag(low.singular_values.float()), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gram_up, gram_down, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(low.singular_values, torch.arange(1, 11).double() ** -0.5, rtol=0.02, atol=0)
    assert (low.singular_values.diff() <= 1e-6).all()


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12, 1e12, 1e30, 1e37])
@pytest.mark.parametrize("shape", [(200, 160), (20, 30)])
def test_extreme_scales(scale, shape):
    matrix = matrix_of(shape, "power law", 3)
    low = truncated_svd(matrix * scale, 8)
    assert low.residual == pytest.approx(truncated_svd(matrix, 8).residual, rel=1e-4)
    torch.testing.assert_close(low.dense() / scale, truncated_svd(matrix, 8).dense(), rtol=1e-3, atol=1e-4)
    expected = torch.linalg.svdvals((matrix * scale).double())
    torch.testing.assert_close(spectrum(matrix * scale), expected, rtol=1e-6, atol=0)


def test_extreme_scales_of_float64():
    matrix = matrix_of((200, 160), "power law", 3, torch.float64)
    for scale in (1e-300, 1e-200, 1e200):
        low = truncated_svd(matrix * scale, 8)
        torch.testing.assert_close(low.dense() / scale, truncated_svd(matrix, 8).dense(), rtol=1e-9, atol=1e-12)


def test_zero_matrix():
    low = truncated_svd(torch.zeros(5, 3, dtype=torch.bfloat16), 2)
    assert (low.route, low.residual, low.dense().abs().sum().item()) == ("zero", 0.0, 0.0)
    assert low.up.shape == (5, 2)
    assert not spectrum(torch.zeros(5, 3)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_factorised_in_float32(dtype):
    matrix = matrix_of((200, 160), "power law", 0, dtype)
    low = truncated_svd(matrix, 16)
    assert low.up.dtype == torch.float32
    true, best = residuals(matrix, low, 16)
    assert true <= 1.01 * best


def test_same_seed_same_bits_and_the_global_generator_is_left_alone():
    matrix = matrix_of((200, 160), "power law", 0)
    before = torch.random.get_rng_state()
    first, second, other = (truncated_svd(matrix, 8, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.up, second.up)
    assert torch.equal(first.down, second.down)
    assert not torch.equal(first.up, other.up)


def test_every_route_is_taken_where_it_is_needed(monkeypatch):
    assert truncated_svd(matrix_of((300, 200), "power law", 0), 8).route == "krylov"
    assert truncated_svd(matrix_of((300, 200), "low rank", 0), 20).route == "krylov"
    assert truncated_svd(matrix_of((300, 200), "low rank and fine noise", 0), 20).route == "gram"
    fine = matrix_of((300, 200), "low rank", 0, torch.float64)
    fine += 1e-9 * matrix_of((300, 200), "repeated", 1, torch.float64)
    low = truncated_svd(fine, 20)
    true, best = residuals(fine, low, 20)
    assert low.route == "svd"
    assert true <= 1.0001 * best
    assert low.residual == pytest.approx(true, rel=1e-6)


def test_row_blocks_do_not_change_the_result(monkeypatch):
    cases = [((400, 40), 3), ((40, 400), 3), ((400, 40), 30)]
    whole = [truncated_svd(matrix_of(shape, "power law", 2), rank) for shape, rank in cases]
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 40 * 37)
    for (shape, rank), expected in zip(cases, whole, strict=True):
        low = truncated_svd(matrix_of(shape, "power law", 2), rank)
        assert low.route == expected.route
        assert low.residual == pytest.approx(expected.residual, rel=1e-4)
        torch.testing.assert_close(low.dense(), expected.dense(), rtol=0, atol=1e-3)


def test_the_matrix_is_left_alone():
    matrix = matrix_of((60, 40), "power law", 2).requires_grad_()
    before = matrix.detach().clone()
    assert not truncated_svd(matrix, 3).up.requires_grad
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(value):
    matrix = torch.ones(4, 3)
    matrix[1, 2] = value
    for function in (lambda m: truncated_svd(m, 1), spectrum):
        with pytest.raises(ValueError, match="contains NaN or infinite values"):
            function(matrix)


@pytest.mark.parametrize("rank", [0, -1, 4, True])
def test_rank_out_of_range(rank):
    with pytest.raises(ValueError, match=rf"the rank is {rank}, .* takes ranks from 1 to 3"):
        truncated_svd(torch.ones(4, 3), rank)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan")])
def test_tolerance_out_of_range(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        truncated_svd(torch.ones(4, 3), 1, tolerance=tolerance)


@pytest.mark.parametrize(
    "bad", [torch.ones(3), torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.int64), torch.ones(0, 3)]
)
def test_not_a_matrix(bad):
    with pytest.raises(ValueError, match="cannot be factorised"):
        truncated_svd(bad, 1)


@pytest.mark.parametrize("name", SPECTRA)
def test_spectrum(name):
    matrix = matrix_of((90, 150), name, 4)
    exact = torch.linalg.svdvals(matrix.double())
    torch.testing.assert_close(spectrum(matrix), exact, rtol=1e-5, atol=3e-8 * exact[0].item())
    leading = spectrum(matrix, limit=5)
    assert leading.shape == (5,)
    assert math.isclose(leading.square().sum(), exact[:5].square().sum(), rel_tol=0.05)
