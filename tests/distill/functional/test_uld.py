"""ULD and losses in pieces against numpy written from the formula, autograd, and what must hold."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.functional import LanguageHead, chunked_kd, in_pieces, top_classes, top_kd, uld


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(student, teacher, temperature):
    total = 0.0
    for a, b in zip(student / temperature, teacher / temperature, strict=True):
        p, q = np.exp(a - a.max()), np.exp(b - b.max())
        p, q = sorted(p / p.sum())[::-1], sorted(q / q.sum())[::-1]
        wide = max(len(p), len(q))
        total += sum(abs((list(p) + [0] * wide)[i] - (list(q) + [0] * wide)[i]) for i in range(wide))
    return total / len(student)


@pytest.mark.parametrize(("ours", "theirs"), [(5, 9), (9, 5), (7, 7)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_uld_is_its_formula(ours, theirs, temperature):
    s, t = 3 * draws(4, ours), 3 * draws(4, theirs, seed=1)
    found = uld(s, t, temperature=temperature)
    assert float(found) == pytest.approx(by_hand(s.numpy(), t.numpy(), temperature), rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: uld(z, t, temperature=temperature), s.requires_grad_())


def test_uld_knows_no_ids_and_is_bounded():
    z = draws(3, 6)
    assert float(uld(z, z[:, [3, 1, 5, 0, 2, 4]])) < 1e-15
    sure = torch.tensor([[80.0, 0.0, 0.0]])
    assert float(uld(sure, torch.zeros(1, 1000))) == pytest.approx(2 * (1 - 1 / 1000), abs=1e-5)
    weight = torch.tensor([0.0, 1.0, 0.0])
    assert float(uld(z, draws(3, 4, seed=2), weight=weight)) == pytest.approx(
        float(uld(z[1:2], draws(3, 4, seed=2)[1:2]))
    )
    masked = torch.tensor([[1.0, -torch.inf, 0.0]], requires_grad=True)
    uld(masked, torch.zeros(1, 2)).backward()
    assert bool(masked.grad.isfinite().all())
    empty = uld(torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 2))
    assert float(empty.detach()) == 0
    empty.backward()


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 3), "of the same rows: pair the places"),
        (torch.full((1, 3), torch.nan), torch.zeros(1, 3), "the student's logits hold NaN"),
        (torch.zeros(1, 3), torch.full((1, 3), -torch.inf), "the teacher's logits are all -inf"),
    ],
)
def test_uld_refuses_what_is_no_distribution(student, teacher, sentence):
    with pytest.raises(ValueError, match=sentence):
        uld(student, teacher)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_pieces_make_what_the_whole_makes(chunk):
    hidden, weight, bias = draws(7, 4).requires_grad_(), draws(9, 4, seed=1).requires_grad_(), draws(9, seed=2)
    head, labels = LanguageHead(weight, bias, 0.7, 5.0), torch.arange(7)
    top = top_classes(draws(7, 9, seed=3), 4)

    def compare(logits, piece):
        return top_kd(logits, type(top)(*(part[piece] for part in top)))

    whole = top_kd(head.logits(hidden), top)
    wanted = torch.autograd.grad(whole, [hidden, weight])
    found = in_pieces(hidden, head, compare, chunk=chunk)
    torch.testing.assert_close(found, whole)
    for made, known in zip(torch.autograd.grad(found, [hidden, weight]), wanted, strict=True):
        torch.testing.assert_close(made, known)
    hard = in_pieces(hidden, head, lambda z, piece: F.cross_entropy(z, labels[piece]), chunk=chunk)
    torch.testing.assert_close(hard, chunked_kd(hidden, head, hidden, head, labels, alpha=1.0).loss)
    nothing = in_pieces(hidden[:0], head, compare, chunk=chunk)
    assert [float(g.abs().sum()) for g in torch.autograd.grad(nothing, [hidden, weight])] == [0.0, 0.0]
    with pytest.raises(ValueError, match="the chunk is 0 tokens"):
        in_pieces(hidden, head, compare, chunk=0)
