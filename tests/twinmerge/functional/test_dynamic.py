"""TSV-Compress, SMILE and Arrow against numpy references that follow the papers."""

import numpy as np
import pytest
import torch

from twinmerge.functional.arrow import arrow_gates, prototype_of
from twinmerge.functional.smile import low_rank_sum, smile_gates
from twinmerge.functional.tsv_c import tsv_c

EXPERTS = 3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [None, 2, 50])
def test_tsv_c_keeps_the_leading_directions(rank):
    base = {"w": draw(9, 6), "b": draw(4, seed=1), "same": draw(3, 3), "steps": torch.tensor(1)}
    experts = [{**base, "w": base["w"] + draw(9, 6, seed=t + 2), "b": base["b"] + t} for t in range(EXPERTS)]
    made = tsv_c(base, experts, rank=rank)
    kept = min(6, 2 if rank is None else rank)  # six directions of three tasks
    for index, expert in enumerate(experts):
        U, S, Vh = np.linalg.svd((expert["w"] - base["w"]).double().numpy(), full_matrices=False)
        found = made.expert(base, index)
        wanted = base["w"].double().numpy() + (U[:, :kept] * S[:kept]) @ Vh[:kept]
        np.testing.assert_allclose(found["w"], wanted, atol=2e-3 if kept < 6 else 1e-5)
        torch.testing.assert_close(found["b"], expert["b"])
        assert torch.equal(found["same"], base["same"])
        assert int(found["steps"]) == 1
    changed = [index for index in range(EXPERTS) if index]  # the first left the vector as it was
    assert made.bytes == 4 * (EXPERTS * kept * (9 + 6) + len(changed) * 4)
    with pytest.raises(ValueError, match="rank is 0"):
        tsv_c(base, experts, rank=0)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_smile_and_what_experts_add(top_k):
    inputs, outer = draw(2, 4, 7), draw(EXPERTS, 7, 2, seed=1)
    directions = torch.linalg.qr(outer)[0].mT
    gates = smile_gates(inputs, directions, top_k=top_k)
    ups, downs = draw(EXPERTS, 5, 2, seed=2), draw(EXPERTS, 2, 7, seed=3)
    added = low_rank_sum(inputs, gates, ups, downs)
    for place in np.ndindex(2, 4):
        x = inputs[place].double().numpy()
        sizes = np.array([np.sqrt(sum((v @ x) ** 2 for v in d)) for d in directions.double().numpy()])
        shares = np.exp(sizes) / np.exp(sizes).sum()
        shares[np.argsort(-shares)[top_k:]] = 0
        shares /= shares.sum()
        np.testing.assert_allclose(gates[place], shares, atol=1e-5)
        wanted = sum(
            g * u @ (d @ x) for g, u, d in zip(shares, ups.double().numpy(), downs.double().numpy(), strict=True)
        )
        np.testing.assert_allclose(added[place], wanted, atol=1e-4)
    with pytest.raises(ValueError, match="top_k is 4"):
        smile_gates(inputs, directions, top_k=4)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_arrow(top_k):
    inputs, ups, downs = draw(6, 7), draw(EXPERTS, 5, 2, seed=2), draw(EXPERTS, 2, 7, seed=3)
    prototypes = torch.stack([prototype_of(up, down) for up, down in zip(ups, downs, strict=True)])
    first = [np.linalg.svd((u @ d).double().numpy())[2][0] for u, d in zip(ups, downs, strict=True)]
    for found, wanted in zip(prototypes, first, strict=True):
        assert abs(float(found.double() @ torch.tensor(wanted))) == pytest.approx(1, abs=1e-5)
    gates = arrow_gates(inputs, prototypes, top_k=top_k)
    for row, x in zip(gates, inputs.double().numpy(), strict=True):
        logits = np.abs([v @ x for v in first])
        best = np.argsort(-logits)[:top_k]
        wanted = np.zeros(EXPERTS)
        wanted[best] = np.exp(logits[best]) / np.exp(logits[best]).sum()
        np.testing.assert_allclose(row, wanted, atol=1e-5)
    torch.testing.assert_close(arrow_gates(inputs, -prototypes, top_k=top_k), gates)
    with pytest.raises(ValueError, match="top_k is 0"):
        arrow_gates(inputs, prototypes, top_k=0)
