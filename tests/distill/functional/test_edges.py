"""The shared tester of all losses: masked classes, NaN, infinities, soft, missing and unused labels."""

import math

import pytest
import torch

from distill import DistillError, DistillLoss, HardLoss, functional as losses
from distill.functional import LanguageHead, chunked_kd
from distill.losses import terms_by_name
from distill.terms import Outputs

ROWS, CLASSES, LIVE = 6, 9, 6
LABELS = torch.tensor([0, 3, 1, 5, 2, 0])
SOFT = 0.7 * torch.nn.functional.one_hot(LABELS, CLASSES) + 0.3 * torch.nn.functional.one_hot(
    (LABELS + 1) % LIVE, CLASSES
)
LOGIT_TERMS = {
    "kd": [{"temperature": 4.0}, {"standardised": True}],
    "binary_kd": [{}],
    "dkd": [{"beta": 8.0}, {"mixed": "partition"}],
    "dist": [{"temperature": 2.0}],
    "mlkd": [{}],
    "jsd": [{"beta": b} for b in (0.0, 0.3, 1.0)],
    "ctkd": [{}],
}
CASES = [(name, options) for name, choices in LOGIT_TERMS.items() for options in choices]
FEATURES = {"rkd": {}, "fitnet": {}, "cc": {}, "crd": {"negatives": 4}, "review": {"width": 4}}
SIZES = {
    "student_width": 5,
    "teacher_width": 5,
    "student_channels": (2, 3, 4),
    "teacher_channels": (2, 3, 4),
    "item_labels": LABELS,
}


def logits(seed):
    return 2 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(seed, broken=None):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(ROWS, 5, generator=draw)
    maps = tuple(torch.randn(ROWS, c, s, s, generator=draw) for c, s in ((2, 8), (3, 4), (4, 2)))
    if broken is not None:
        features[0, 0] = maps[2][0, 0, 0, 0] = broken
    return Outputs(torch.zeros(ROWS, CLASSES), features, maps, torch.arange(ROWS))


def value(name, options, student, teacher, labels=LABELS):
    student = student.clone().requires_grad_()
    loss = DistillLoss({name: options})(Outputs(student), Outputs(teacher), labels, epoch=3.0)[name]
    return loss, torch.autograd.grad(loss, student)[0]


def test_every_loss_is_tested_here():
    assert set(terms_by_name()) == {*LOGIT_TERMS, *FEATURES, "uld", "hint"}


def test_across_tokenizers_a_masked_token_counts_nothing_and_what_is_no_distribution_is_refused():
    student, teacher = logits(1), logits(2)[:, :LIVE]
    masked = torch.cat([student[:, :LIVE], torch.full((ROWS, CLASSES - LIVE), -math.inf).double()], 1)
    torch.testing.assert_close(losses.uld(masked, teacher), losses.uld(student[:, :LIVE], teacher))
    for broken in (math.nan, math.inf):
        for who in (0, 1):
            both = [student.clone(), teacher.clone()]
            both[who][2, 3] = broken
            with pytest.raises(ValueError, match=r"logits hold NaN or \+inf in row 2"):
                losses.uld(*both)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_features_of_a_hint_between_modules_that_are_not_finite_are_refused(broken):
    fine, worse = torch.zeros(2, 3), torch.full((2, 3), broken)
    for pair in ((worse, fine), (fine, worse)):
        with pytest.raises(ValueError, match="hold NaN or infinities"):
            losses.hint(*pair)


@pytest.mark.parametrize("fill", [-math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_masked_class_counts_nothing(name, options, fill):
    student, teacher = logits(1), logits(2)
    for labels in (LABELS, SOFT):
        loss, gradient = value(
            name, options, student[:, :LIVE], teacher[:, :LIVE], labels[..., :LIVE] if labels.ndim == 2 else labels
        )
        masked = [
            torch.cat([z[:, :LIVE], torch.full((ROWS, CLASSES - LIVE), fill).double()], 1) for z in (student, teacher)
        ]
        there, its = value(name, options, *masked, labels)
        torch.testing.assert_close(there, loss, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(its[:, :LIVE], gradient, rtol=1e-6, atol=1e-9)
        assert not its[:, LIVE:].any()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_masks_of_one_network_alone(name, options):
    student, teacher = logits(1), logits(2)
    masked_student, masked_teacher = student.clone(), teacher.clone()
    masked_student[1, 7] = masked_teacher[1, 7] = -math.inf
    reverse = options.get("beta") == 1.0 and name == "jsd"
    bounded = name == "dist" or (name == "jsd" and options["beta"] == 0.3)
    for s, t, infinite in ((masked_student, teacher, not reverse), (student, masked_teacher, reverse)):
        if infinite and not bounded:
            with pytest.raises(
                ValueError, match=r"masks class 7 of row 1, .* KL is infinite: mask the same classes in both"
            ):
                value(name, options, s, t)
            continue
        loss, gradient = value(name, options, s, t)
        near = [z.masked_fill(z == -math.inf, -200.0) for z in (s, t)]  # a probability that does not matter
        if "standardised" not in options:
            torch.testing.assert_close(loss, value(name, options, *near)[0], rtol=1e-6, atol=1e-9)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("broken", [math.nan, math.inf, "row"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_what_is_no_distribution_is_refused(name, options, broken, who):
    both = {"student": logits(1), "teacher": logits(2)}
    both[who][2] = -math.inf if broken == "row" else both[who][2]
    if broken != "row":
        both[who][2, 4] = broken
    what = "are all -inf" if broken == "row" else r"hold NaN or \+inf"
    with pytest.raises(ValueError, match=f"the {who}'s logits {what} in row 2"):
        value(name, options, **both)


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("name", FEATURES)
def test_features_that_are_not_finite_are_refused(name, broken, who):
    pair = [outputs(1), outputs(2)]
    pair[who] = outputs(3, broken)
    with pytest.raises(ValueError, match="hold NaN or infinities"):
        DistillLoss({name: FEATURES[name]}, SIZES)(*pair, LABELS)


def test_relations_of_huge_and_tiny_features_are_those_of_plain_ones():
    s, t = (torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    torch.testing.assert_close(losses.rkd(1e25 * s, 1e-25 * t), losses.rkd(s, t))


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_hard_labels_at_the_edges(kind):
    z = logits(1)
    masked = z.clone()
    masked[:, LIVE:] = -math.inf
    loss, live = HardLoss(kind, "sum_classes"), HardLoss(kind, "sum_classes")
    for labels, short in ((LABELS, LABELS), (SOFT.double(), SOFT[:, :LIVE].double())):
        torch.testing.assert_close(loss(masked, labels), live(z[:, :LIVE], short))
    masked.requires_grad_()
    assert torch.autograd.grad(loss(masked, SOFT.double()), masked)[0].isfinite().all()
    with pytest.raises(
        ValueError, match="the student masks class 7 of row 1, to which the label or its smoothing gives"
    ):
        loss(masked, torch.tensor([0, 7, 1, 1, 1, 1]))
    with pytest.raises(ValueError, match="the label or its smoothing"):
        HardLoss(kind, smoothing=0.1)(masked, LABELS)
    some = LABELS.masked_fill(torch.arange(ROWS) % 2 == 0, -100)
    torch.testing.assert_close(loss(z, some), loss(z[1::2], LABELS[1::2]))
    nothing = loss(z.requires_grad_(), torch.full((ROWS,), -100))
    assert nothing == 0
    assert not torch.autograd.grad(nothing, z)[0].any()
    for broken in (torch.full_like(z, math.nan), masked.detach().fill_(math.inf)):
        with pytest.raises(ValueError, match="the student's logits"):
            loss(broken, LABELS)


@pytest.mark.parametrize("name", [*LOGIT_TERMS, *FEATURES])
def test_a_batch_without_labels(name):
    made = DistillLoss({name: FEATURES.get(name, {})}, SIZES)
    pair = [outputs(i)._replace(logits=logits(i).float()) for i in (1, 2)]
    if name == "dkd":
        with pytest.raises(
            DistillError, match="dkd needs labels, but the batch has none; give labels, or leave dkd out"
        ):
            made(*pair, None)
    else:
        assert made(*pair, None)[name].isfinite()
    with pytest.raises(DistillError, match="hard needs labels"):
        DistillLoss({"hard": {}})(*pair, None)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_masked_ids_in_chunks(beta):
    draw = torch.Generator().manual_seed(0)
    h, ht, weight = (torch.randn(n, 4, generator=draw, dtype=torch.float64) for n in (6, 6, 9))
    mask = torch.zeros(9, dtype=torch.float64)
    mask[7:] = -math.inf
    plain, masked = LanguageHead(weight[:7], mask[:7]), LanguageHead(weight, mask)
    labels = torch.tensor([0, 1, 2, 3, -100, 5])

    def run(head, teacher, labels=labels):
        hidden = h.clone().requires_grad_()
        loss = chunked_kd(hidden, head, ht, teacher, labels, beta=beta, temperature=2.0, chunk=4).loss
        return loss, torch.autograd.grad(loss, hidden)[0]

    for mine, wanted in zip(run(masked, masked), run(plain, plain), strict=True):
        torch.testing.assert_close(mine, wanted)
    whole = LanguageHead(weight, torch.zeros_like(mask))
    for student, teacher, infinite in ((masked, whole, 0.0), (whole, masked, 1.0)):
        if beta == infinite:
            with pytest.raises(ValueError, match="KL is infinite"):
                run(student, teacher)
        else:
            assert all(part.isfinite().all() for part in run(student, teacher))
    with pytest.raises(ValueError, match="the label's KL is infinite"):
        run(masked, masked, torch.tensor([0, 8, 0, 0, 0, 0]))
    for broken in (0, 1):
        heads = [LanguageHead(weight), LanguageHead(weight)]
        heads[broken] = LanguageHead(weight.clone().fill_(math.nan))
        with pytest.raises(ValueError, match="hold NaN"):
            run(*heads)


def test_stored_classes_of_masked_logits():
    student, teacher = logits(1).float(), logits(2).float()
    student[:, LIVE:] = teacher[:, LIVE:] = -math.inf
    wanted = losses.kd(student[:, :LIVE], teacher[:, :LIVE])
    kept = losses.top_classes(teacher, 7)  # more than there are
    for tail in ("ghost", "zero"):
        z = student.clone().requires_grad_()
        loss = losses.top_kd(z, kept, tail=tail)
        torch.testing.assert_close(loss, wanted)
        assert torch.autograd.grad(loss, z)[0].isfinite().all()
    places = torch.rand(ROWS, generator=torch.Generator().manual_seed(0))
    assert losses.sampled_kd(student, losses.sampled_classes(teacher, 8, places)).isfinite()
    alone = student.clone()
    alone[0, 0] = -math.inf
    for call in (
        lambda: losses.top_kd(alone, losses.top_classes(teacher, 5)),
        lambda: losses.sampled_kd(alone, losses.sampled_classes(teacher, 500, places)),
    ):
        with pytest.raises(ValueError, match=r"the student masks class 0 of row 0|masks class . of row 0"):
            call()
    with pytest.raises(ValueError, match="the teacher's logits hold NaN"):
        losses.top_classes(torch.full((2, 4), math.nan), 2)
