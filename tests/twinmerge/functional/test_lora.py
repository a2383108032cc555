"""The product form of LoRA merging: equal to the dense path, unlike merging the factors apart."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from twinmerge.functional import lora_low_rank, truncated_svd


def random_terms(seed, shape, ranks, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return [(draw(1).item(), draw(shape[0], r), draw(r, shape[1])) for r in ranks]


def dense_sum(terms):
    return sum(coefficient * B.double() @ A.double() for coefficient, B, A in terms)


@given(
    seed=st.integers(0, 2**32),
    shape=st.sampled_from([(30, 20), (20, 30), (9, 40), (5, 5)]),
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    rank=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_dense_path_for_unequal_ranks(seed, shape, ranks, rank):
    terms = random_terms(seed, shape, ranks)
    dense, low = dense_sum(terms), lora_low_rank(terms, rank)
    S = torch.linalg.svdvals(dense)
    best = (S[rank:].norm() / S.norm()).item()
    assert low.residual == pytest.approx(best, rel=1e-6, abs=1e-12)
    error = torch.linalg.norm(dense - low.dense()) / torch.linalg.norm(dense)
    assert error.item() == pytest.approx(best, rel=1e-6, abs=1e-12)
    assert low.up.shape[1] == min(rank, sum(ranks), *shape)
    torch.testing.assert_close(low.singular_values, S[: low.up.shape[1]], rtol=1e-6, atol=1e-9)
    assert truncated_svd(dense, low.up.shape[1]).residual == pytest.approx(best, rel=0.011, abs=1e-7)


def test_exclusive_expert_against_the_dense_path():
    pairs = [(B, A) for _, B, A in random_terms(1, (48, 64), [4, 8, 2, 4], torch.float32)]
    scale, task = 0.3, 1
    terms = [((1.0 if j == task else 0.0) - scale, B, A) for j, (B, A) in enumerate(pairs)]
    exclusive = pairs[task][0] @ pairs[task][1] - scale * sum(B @ A for B, A in pairs)
    low = lora_low_rank(terms, 18)
    torch.testing.assert_close(low.dense(), exclusive, rtol=0, atol=1e-4)
    assert low.up.dtype == torch.float32
    assert low.residual < 1e-12


def test_merging_the_factors_apart_is_another_matrix():
    terms = random_terms(2, (48, 64), [4, 4, 4, 4])
    apart = sum(c * B for c, B, _ in terms) @ sum(c * A for c, _, A in terms)
    dense = dense_sum(terms)
    assert torch.linalg.norm(apart - dense) > 0.5 * torch.linalg.norm(dense)
    assert torch.linalg.norm(lora_low_rank(terms, 16).dense() - dense) < 1e-10 * torch.linalg.norm(dense)


def test_terms_that_cancel():
    _, B, A = random_terms(3, (8, 6), [2])[0]
    low = lora_low_rank([(0.5, B, A), (-0.5, B, A)], 2)
    assert low.dense().abs().max() < 1e-12
    assert math.isfinite(low.residual)
    assert lora_low_rank([(0.0, B, A)], 2).residual == 0.0


def test_refusals():
    B, A = torch.ones(4, 2), torch.ones(2, 3)
    with pytest.raises(ValueError, match="no LoRA term"):
        lora_low_rank([], 1)
    for bad in [(1.0, B, torch.ones(3, 3)), (1.0, torch.ones(5, 2), A), (1.0, B, torch.ones(2, 4)), (1.0, B[0], A)]:
        with pytest.raises(ValueError, match="LoRA term 1 has B of shape"):
            lora_low_rank([(1.0, B, A), bad], 1)
    for bad in [(float("nan"), B, A), (1.0, B * float("inf"), A), (1.0, B, A * float("nan"))]:
        with pytest.raises(ValueError, match="LoRA term 0 contains NaN"):
            lora_low_rank([bad], 1)
    for rank in (0, 4, True):
        with pytest.raises(ValueError, match=r"the rank is .* from 1 to 3"):
            lora_low_rank([(1.0, B, A)], rank)
