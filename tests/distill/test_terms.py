"""Terms as modules: the contract, hints against formulas written anew, sampled negatives against what is allowed."""

import math

import pytest
import torch
import torch.nn.functional as F

from distill import DistillError, DistillLoss, HardLoss, Outputs, functional as losses
from distill.hints import CorrelationHint, CRDHint, CurriculumTemperature, FitNetHint, ReviewHint
from distill.losses import DIST, DKD, JSD, KD, RKD, BinaryKD, MultiTemperature

LABELS = torch.tensor([0, 1, 2, 0])


def outputs(seed=0, batch=4, classes=5, width=6, dtype=torch.float32, **more):
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, generator=draw).to(dtype)
    features = torch.randn(batch, width, generator=draw).to(dtype)
    maps = tuple(torch.randn(batch, c, s, s, generator=draw).to(dtype) for c, s in ((2, 8), (3, 4), (4, 2)))
    return Outputs(logits.requires_grad_(), features.requires_grad_(), maps, **more)


S, T = outputs(0), outputs(1)


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (KD(3.0), losses.kd(S.logits, T.logits, temperature=3.0)),
        (BinaryKD(2.0), losses.binary_kd(S.logits, T.logits, temperature=2.0)),
        (DKD(0.5, 3.0, 2.0), losses.dkd(S.logits, T.logits, LABELS, alpha=0.5, beta=3.0, temperature=2.0)),
        (DIST(2.0, 0.5, 2.0), losses.dist(S.logits, T.logits, beta=2.0, gamma=0.5, temperature=2.0)),
        (MultiTemperature((2.0,)), losses.multi_temperature(S.logits, T.logits, temperatures=(2.0,))),
        (JSD(0.3, 2.0), losses.generalised_jsd(S.logits, T.logits, beta=0.3, temperature=2.0)),
        (RKD(1.0, 2.0), losses.rkd(S.features, T.features, distance=1.0, angle=2.0)),
        (KD(2.0, True), losses.kd(losses.standardise(S.logits), losses.standardise(T.logits), temperature=2.0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_terms_are_their_functions(term, expected):
    torch.testing.assert_close(term(S, T, LABELS), expected)


def test_half_precision_logits_are_compared_in_float32():
    s, t = outputs(0, dtype=torch.bfloat16), outputs(1, dtype=torch.bfloat16)
    exact = losses.kd(s.logits.double(), t.logits.double())
    assert KD()(s, t, LABELS).dtype == torch.float32
    torch.testing.assert_close(KD()(s, t, LABELS).double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum_classes"])
def test_hard_losses(reduction):
    soft = torch.tensor([[0.7, 0.3, 0, 0, 0]]).expand(4, 5)
    z = S.logits
    elements = -(soft * z.sigmoid().log() + (1 - soft) * (-z).sigmoid().log())
    expected = elements.mean() if reduction == "mean" else elements.sum(-1).mean()
    torch.testing.assert_close(HardLoss("bce", reduction)(z, soft), expected)
    smoothed = F.one_hot(LABELS, 5) * 0.9 + 0.1 / 5
    torch.testing.assert_close(HardLoss("bce", reduction, 0.1)(z, LABELS), HardLoss("bce", reduction)(z, smoothed))
    torch.testing.assert_close(HardLoss("ce", smoothing=0.1)(z, LABELS), -(smoothed * z.log_softmax(-1)).sum(-1).mean())


def test_mean_bce_pulls_fifty_times_less_than_cross_entropy():
    z = torch.zeros(256, 1000, requires_grad=True)
    labels = torch.arange(256)
    pulls = {}
    for kind, reduction in (("ce", "mean"), ("bce", "mean"), ("bce", "sum_classes")):
        pulls[kind, reduction] = torch.autograd.grad(HardLoss(kind, reduction)(z, labels), z)[0].norm().item()
    assert pulls["ce", "mean"] == pytest.approx(0.0625, rel=0.01)
    assert pulls["bce", "mean"] == pytest.approx(0.001, rel=0.05)
    assert pulls["bce", "sum_classes"] / pulls["bce", "mean"] == pytest.approx(1000, rel=1e-3)


def test_weights_and_ramps():
    loss = DistillLoss({"hard": {"weight": 0.5, "kind": "ce"}, "kd": {"weight": 4.0, "ramp": 10}})
    made = loss(S, T, LABELS, epoch=2.5)
    torch.testing.assert_close(made["hard"], 0.5 * F.cross_entropy(S.logits, LABELS))
    torch.testing.assert_close(made["kd"], losses.kd(S.logits, T.logits))
    torch.testing.assert_close(loss(S, T, LABELS, epoch=99.0)["kd"], 4 * losses.kd(S.logits, T.logits))
    with pytest.raises(DistillError, match="need a teacher, got none"):
        loss(S, None, LABELS)


def test_fitnet_maps_one_level():
    term = FitNetHint((2, 3, 4), (5, 6, 7), level=1)
    teacher = outputs(1)._replace(maps=tuple(torch.randn(4, c, 4, 4) for c in (5, 6, 7)))
    weight, bias = term.regressor.weight[:, :, 0, 0], term.regressor.bias
    mapped = torch.einsum("oc,bchw->bohw", weight, S.maps[1]) + bias[:, None, None]
    torch.testing.assert_close(term(S, teacher, LABELS), (mapped - teacher.maps[1]).square().mean())
    with pytest.raises(DistillError, match="level is 3, but the networks share 3 maps"):
        FitNetHint((2, 3, 4), (5, 6, 7), level=3)


def test_correlation_maps_both():
    term = CorrelationHint(6, 6, width=3, factor=2.0)
    error = (term.of_student(S.features) - term.of_teacher(T.features)).abs()
    torch.testing.assert_close(term(S, T, LABELS), 2 * (error[:-1] * error[1:]).sum(-1).mean())


def test_review_fuses_from_coarse_to_fine():
    term = ReviewHint((2, 3, 4), (5, 6, 7), width=3).eval()
    teacher = outputs(1)._replace(maps=tuple(torch.randn(4, c, s, s) for c, s in ((5, 8), (6, 4), (7, 2))))
    fused, total = term.narrow[2](S.maps[2]), 0.0
    for level in (2, 1, 0):
        if level < 2:
            own, above = term.narrow[level](S.maps[level]), fused.repeat_interleave(2, -1).repeat_interleave(2, -2)
            weights = term.attention[level](torch.cat([own, above], 1)).sigmoid()
            fused = own * weights[:, :1] + above * weights[:, 1:]
        total = total + losses.hierarchical_context(term.widen[level](fused), teacher.maps[level])
    torch.testing.assert_close(term(S, teacher, LABELS), total)


def test_negatives_are_uniform_over_the_items_of_other_classes():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 1, 0])
    term = CRDHint(6, 6, labels, negatives=24_000)
    drawn = term.draw(torch.arange(8))
    for row, label in enumerate(labels):
        counts = drawn[row].bincount(minlength=8)
        others = labels != label
        assert not counts[~others].any()
        expected = 24_000 / int(others.sum())
        assert (counts[others] - expected).abs().max() < 5 * math.sqrt(expected)
    with pytest.raises(DistillError, match="all items are of one class"):
        CRDHint(6, 6, torch.zeros(5, dtype=torch.long))


def test_crd_against_its_equations_and_its_memory():
    labels = torch.arange(8) % 3
    term = CRDHint(6, 6, labels, width=3, negatives=4, temperature=0.5)
    rows = torch.tensor([1, 4, 6, 0])
    memory, drawn = term.memory.clone(), term.draw(rows)
    made = term(S._replace(rows=rows), T, LABELS)
    fresh = [F.normalize(layer(z.features), dim=-1) for layer, z in ((term.of_student, S), (term.of_teacher, T))]
    total = 0.0
    for mine, other in ((0, 1), (1, 0)):
        scores = torch.stack(
            [(fresh[mine] @ memory[other].T / 0.5).exp()[b, [r, *drawn[b]]] for b, r in enumerate(rows)]
        )
        h = scores / (8 * scores.mean().detach())
        noise = 4 / 8
        total = total - (h[:, 0] / (h[:, 0] + noise)).log().mean() - (noise / (h[:, 1:] + noise)).log().sum(-1).mean()
    torch.testing.assert_close(made, total, rtol=1e-5, atol=1e-5)
    for bank, new in enumerate(fresh):
        expected = F.normalize(0.5 * memory[bank][rows] + 0.5 * new, dim=-1)
        torch.testing.assert_close(term.memory[bank][rows], expected)
    assert not torch.equal(term.draw(rows), drawn)  # the step has moved on
    with pytest.raises(DistillError, match="needs the position of every row"):
        term(S, T, LABELS)


def test_the_curriculum_temperature_climbs_the_loss():
    term = CurriculumTemperature(ramp_epochs=4.0)
    term.epoch = 0.0
    term(S, T, LABELS).backward()
    assert float(term.parameter.grad) == 0
    term.epoch = 2.0  # half of the reversal
    term(S, T, LABELS).backward()
    step = 1e-3

    def at(value):
        temperature = 1 + 20 / (1 + math.exp(-value))
        return float(losses.kd(S.logits.detach().double(), T.logits.detach().double(), temperature=temperature))

    slope = (at(step) - at(-step)) / (2 * step)
    assert float(term.parameter.grad) == pytest.approx(-0.5 * slope, rel=1e-3)
