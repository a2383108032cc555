"""Sparse teachers against numpy, exact expectations over the draws, and the partitions they stand for."""

import numpy as np
import pytest
import torch

from distill.functional.kd import kd
from distill.functional.sparse import SampledClasses, sampled_classes, sampled_kd, top_classes, top_kd


def pair(rows=5, classes=7, seed=0, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("tail", ["zero", "ghost"])
def test_the_largest_classes_are_their_formula(tail, temperature):
    student, teacher = pair()
    kept = top_classes(teacher, 3, (1.0, temperature))
    p, q = (softmax(z.detach().numpy() / temperature) for z in (student, teacher))
    total = 0.0
    for row, ids in enumerate(np.argsort(-teacher.numpy(), -1)[:, :3]):
        a, b = q[row, ids], p[row, ids]
        if tail == "zero":
            a = a / a.sum()
        else:
            a, b = np.append(a, 1 - a.sum()), np.append(b, 1 - b.sum())
        total += np.sum(a * np.log(a / b))
    loss = top_kd(student, kept, column=1, temperature=temperature, tail=tail)
    assert loss.item() == pytest.approx(temperature**2 * total / 5, rel=1e-5)
    assert torch.autograd.gradcheck(
        lambda s: top_kd(s, kept, column=1, temperature=temperature, tail=tail), (student,), atol=1e-6
    )


def test_the_gradient_is_the_closed_form():
    student, teacher = pair()
    (found,) = torch.autograd.grad(top_kd(student, top_classes(teacher, 3), tail="zero"), student)
    expected = softmax(student.detach().numpy())
    for row, ids in enumerate(np.argsort(-teacher.numpy(), -1)[:, :3]):
        expected[row, ids] -= softmax(teacher.numpy()[row, ids])
    np.testing.assert_allclose(found.numpy(), expected / 5, atol=1e-7)


def test_stored_sums_give_exact_probabilities():
    _, teacher = pair(classes=50)
    kept = top_classes(teacher, 4, (1.0, 2.0, 5.0))
    for column, temperature in enumerate((1.0, 2.0, 5.0)):
        whole = torch.logaddexp((kept.logits / temperature).logsumexp(-1), kept.rest[:, column])
        torch.testing.assert_close(whole, (teacher / temperature).logsumexp(-1).float(), rtol=1e-6, atol=1e-6)


def test_a_ghost_is_a_coarser_partition_and_ends_at_the_full_loss():
    student, teacher = pair(classes=12)
    full = kd(student, teacher).item()
    losses = [top_kd(student, top_classes(teacher, k)).item() for k in (1, 3, 6, 11)]
    assert losses == sorted(losses)
    assert losses[-1] == pytest.approx(full, rel=1e-5)  # eleven classes and the twelfth alone in its bucket
    assert losses[0] < full
    agreed = top_kd(teacher, top_classes(teacher, 2))
    assert agreed.item() == pytest.approx(0, abs=1e-6)
    assert top_kd(teacher, top_classes(teacher, 2), tail="zero").item() > 0.01  # biased: agreement costs something


@pytest.mark.parametrize("exponent", [1.0, 0.6, 1.4])
@pytest.mark.parametrize("draws", [1, 3])
def test_the_expected_weights_are_the_probabilities(exponent, draws):
    """The mean over a fine grid of places is the exact expectation, up to the grid's step."""
    _, teacher = pair(rows=1)
    places = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    kept = sampled_classes(teacher.expand(20_000, -1), draws, places, temperature=2.0, exponent=exponent)
    mean = torch.zeros(7, dtype=torch.float64)
    mean.index_add_(0, kept.ids.flatten().long(), kept.weights.flatten().double() / 20_000)
    np.testing.assert_allclose(mean.numpy(), softmax(teacher.numpy()[0] / 2), atol=5e-4)


def test_the_expected_gradient_is_that_of_the_full_loss_and_the_largest_classes_are_biased():
    student, teacher = pair(rows=1, classes=9)
    (dense,) = torch.autograd.grad(kd(student, teacher, temperature=2.0), student)
    many = 20_000
    places = (torch.arange(many, dtype=torch.float64) + 0.5) / many
    kept = sampled_classes(teacher.expand(many, -1), 3, places, temperature=2.0)
    repeated = student.detach().expand(many, -1).clone().requires_grad_()
    (sampled,) = torch.autograd.grad(sampled_kd(repeated, kept, temperature=2.0), repeated)
    np.testing.assert_allclose(sampled.sum(0).numpy(), dense[0].numpy(), atol=1e-3)
    (largest,) = torch.autograd.grad(
        top_kd(student, top_classes(teacher, 3, (2.0,)), temperature=2.0, tail="zero"), student
    )
    assert (largest - dense).abs().max() > 0.05


def test_the_expected_value_is_the_full_loss_plus_the_entropy():
    student, teacher = pair(rows=1)
    places = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    kept = sampled_classes(teacher.expand(20_000, -1), 2, places)
    value = sampled_kd(student.expand(20_000, -1), kept).item()
    q = softmax(teacher.numpy()[0])
    assert value == pytest.approx(kd(student, teacher).item() - np.sum(q * np.log(q)), abs=2e-3)


def test_systematic_draws_spread_less_than_independent_ones():
    _, teacher = pair(rows=1)
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(4000, generator=generator, dtype=torch.float64)
    kept = sampled_classes(teacher.expand(4000, -1), 8, places)
    counts = torch.stack([(kept.ids == c).sum(-1) for c in range(7)], -1).double() / 8
    p = torch.softmax(teacher[0], -1)
    assert (counts.var(0) < p * (1 - p) / 8 + 1e-3).all()
    assert torch.allclose(kept.weights, torch.tensor(1 / 8))


def test_weights_mask_rows():
    student, teacher = pair()
    mask = torch.tensor([1.0, 0, 1, 0, 0])
    kept = top_classes(teacher, 2)
    alone = top_kd(student[[0, 2]], top_classes(teacher[[0, 2]], 2)).item()
    assert top_kd(student, kept, weight=mask).item() == pytest.approx(alone)
    assert sampled_kd(student, SampledClasses(kept.ids, kept.logits), weight=0 * mask).item() == 0


def test_confident_rows_give_no_nan():
    student = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    teacher = torch.tensor([[-300.0, 0.0, 300.0]])
    for tail in ("zero", "ghost"):
        loss = top_kd(student, top_classes(teacher, 1), tail=tail)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert gradient.isfinite().all()


REFUSALS = [
    (lambda s, t: top_classes(t, 7), "k is 7, but of 7 classes 1 to 6"),
    (lambda s, t: top_classes(t, 2, (0.0,)), "the temperature is 0.0"),
    (lambda s, t: top_kd(s, top_classes(t, 2), column=1), "1 temperatures are stored"),
    (lambda s, t: top_kd(s, top_classes(t, 2), tail="ghosts"), "accepted are 'zero' and 'ghost'"),
    (lambda s, t: top_kd(s[:2], top_classes(t, 2)), "of the same rows"),
    (lambda s, t: sampled_classes(t, 0, torch.zeros(5)), "at least 1 draw"),
    (lambda s, t: sampled_classes(t, 2, torch.zeros(4)), "one place a row"),
    (lambda s, t: sampled_classes(t, 2, torch.zeros(5), exponent=0.0), "an exponent above 0"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSALS)
def test_wrong_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(*pair())
