"""The chunked loss against the eager one, and both against numpy in float64 written from the formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from distill.functional import LanguageHead, align_vocabularies, chunked_kd, generalised_jsd

TOKENS, WIDTH, TEACHER_WIDTH = 13, 6, 4


def problem(ids=11, teacher_ids=11, dtype=torch.float64, seed=0, bias=True, **shape):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    student = LanguageHead(
        draw(ids, WIDTH).requires_grad_(), draw(ids).requires_grad_() if bias else None, **shape.get("student", {})
    )
    teacher = LanguageHead(draw(teacher_ids, TEACHER_WIDTH), draw(teacher_ids), **shape.get("teacher", {}))
    labels = torch.randint(min(ids, teacher_ids), (TOKENS,), generator=generator)
    return [draw(TOKENS, WIDTH).requires_grad_(), student, draw(TOKENS, TEACHER_WIDTH), teacher, labels]


def gradients(loss, case):
    hidden, head = case[0], case[1]
    return torch.autograd.grad(loss, [t for t in (hidden, head.weight, head.bias) if t is not None])


def eager(case, *, alpha=0.5, beta=0.0, temperature=1.0, weight=None, vocabulary="mask"):
    hidden, head, teacher_hidden, teacher_head, labels = case
    logits, teacher = head.logits(hidden), teacher_head.logits(teacher_hidden)
    weight = torch.ones(TOKENS, dtype=torch.float64) if weight is None else weight
    weight = torch.where(labels == -100, 0.0, weight)
    if vocabulary == "truncate":
        logits = logits[:, : teacher.shape[1]]
    hard = F.cross_entropy(logits, labels, reduction="none")
    hard = (hard * weight).sum() / weight.sum()
    aligned = align_vocabularies(logits, teacher, vocabulary=vocabulary, beta=beta)
    return alpha * hard + (1 - alpha) * generalised_jsd(*aligned, beta=beta, temperature=temperature, weight=weight)


def oracle(case, *, alpha=0.5, beta=0.0, temperature=1.0, weight=None, vocabulary="mask"):
    """Loss in numpy, one token at a time, over the union of the ids."""
    hidden, head, teacher_hidden, teacher_head, labels = case
    total = count = 0.0
    for i, label in enumerate(labels.tolist()):
        if label == -100:
            continue
        z, t = (
            np_logits(side, states[i].detach().double().numpy())
            for side, states in ((head, hidden), (teacher_head, teacher_hidden))
        )
        common = min(len(z), len(t))
        z = z[:common] if vocabulary == "truncate" else z
        hard = np.log(np.exp(z).sum()) - z[label]
        p, q = (np.exp(v / temperature) for v in (z, t))
        if vocabulary != "zero_mass":
            p, q = p[:common], q[:common]
        p, q = (np.append(v, np.zeros(max(len(p), len(q)) - len(v))) / v.sum() for v in (p, q))
        if beta == 0:
            soft = np_kl(q, p)
        elif beta == 1:
            soft = np_kl(p, q)
        else:
            m = beta * q + (1 - beta) * p
            soft = beta * np_kl(q, m) + (1 - beta) * np_kl(p, m)
        w = 1.0 if weight is None else float(weight[i])
        total += w * (alpha * hard + (1 - alpha) * temperature**2 * soft)
        count += w
    return total / count


def np_logits(head, state):
    weight, bias = head.weight.detach().double().numpy(), head.bias
    u = head.scale * (weight @ state + (0 if bias is None else bias.detach().double().numpy()))
    return u if head.soft_cap is None else head.soft_cap * np.tanh(u / head.soft_cap)


def np_kl(a, b):
    return sum(x * np.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


CAPPED = {"student": {"scale": 0.7, "soft_cap": 3.0}, "teacher": {"scale": 1.3, "soft_cap": 5.0}}
CASES = {
    "forward": ({}, {"beta": 0.0, "temperature": 2.0}),
    "reverse": ({}, {"beta": 1.0, "temperature": 3.0, "alpha": 0.2}),
    "jsd": ({}, {"beta": 0.3, "temperature": 0.7}),
    "teacher alone": ({}, {"alpha": 0.0, "beta": 0.5}),
    "labels alone": ({}, {"alpha": 1.0}),
    "capped": (CAPPED, {"beta": 0.5, "temperature": 2.0}),
    "no bias": ({"bias": False}, {"beta": 0.1}),
    "masked, wider student": ({"ids": 14}, {"temperature": 2.0}),
    "masked, wider teacher": ({"teacher_ids": 14}, {"beta": 1.0}),
    "truncated": ({"ids": 14}, {"vocabulary": "truncate", "beta": 0.5}),
    "no mass at a wider student": ({"ids": 14}, {"vocabulary": "zero_mass", "temperature": 2.0}),
    "no mass at a wider teacher": ({"teacher_ids": 14}, {"vocabulary": "zero_mass", "beta": 1.0}),
    "no mass, mixture": ({"ids": 14}, {"vocabulary": "zero_mass", "beta": 0.4}),
    "no mass, mixture, wider teacher": ({"teacher_ids": 14} | CAPPED, {"vocabulary": "zero_mass", "beta": 0.4}),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_eager_loss_and_the_formula(name):
    shape, options = CASES[name]
    case = problem(**shape)
    case[4][[2, 7]] = -100
    options = {"weight": torch.rand(TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(9)), **options}
    ours = chunked_kd(*case, chunk=5, **options)
    theirs = eager(case, **options)
    assert ours.loss.item() == pytest.approx(oracle(case, **options), rel=1e-11)
    assert theirs.item() == pytest.approx(ours.loss.item(), rel=1e-12)
    alpha = options.get("alpha", 0.5)
    assert float(alpha * ours.hard + (1 - alpha) * ours.soft) == pytest.approx(ours.loss.item(), rel=1e-12)
    for mine, other in zip(gradients(ours.loss, case), gradients(theirs, case), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_its_gradient_is_the_finite_difference_of_the_formula(name):
    shape, options = CASES[name]
    case = problem(**shape)
    head = case[1]
    inputs = [t for t in (case[0], head.weight, head.bias) if t is not None]
    found = gradients(chunked_kd(*case, chunk=4, **options).loss, case)
    generator = torch.Generator().manual_seed(3)
    for tensor, gradient in zip(inputs, found, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        values = []
        for step in (1e-5, -1e-5):
            tensor.detach().add_(step * direction)
            values.append(oracle(case, **options))
            tensor.detach().sub_(step * direction)
        assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), beta=st.floats(0, 1), temperature=st.floats(0.5, 6), chunk=st.integers(1, 20))
def test_chunks_do_not_matter(seed, beta, temperature, chunk):
    case = problem(seed=seed, dtype=torch.float32)
    losses = [chunked_kd(*case, beta=beta, temperature=temperature, chunk=size).loss for size in (chunk, TOKENS)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    for parts in zip(*(gradients(loss, case) for loss in losses), strict=True):
        torch.testing.assert_close(*parts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_input_costs_no_more_than_its_own_rounding(beta, autocast):
    ids = 3000
    half = problem(ids, ids, torch.bfloat16, seed=4)
    with torch.no_grad():  # a student near its teacher, where rounded logits would drown the difference
        half[1].weight[:, :TEACHER_WIDTH] = half[3].weight + 0.1 * half[1].weight[:, :TEACHER_WIDTH]
        half[0][:, :TEACHER_WIDTH] = half[2]
        half[0][:, TEACHER_WIDTH:] = 0
        half[1].bias.copy_(half[3].bias)
    exact = [
        half[0].detach().double().requires_grad_(),
        LanguageHead(*(t.detach().double().requires_grad_() for t in half[1][:2])),
        half[2].double(),
        LanguageHead(*(t.double() for t in half[3][:2])),
        half[4],
    ]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = chunked_kd(*half, beta=beta, alpha=0.0).loss
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(oracle(exact, beta=beta, alpha=0.0), rel=1e-4)
    for mine, true in zip(gradients(ours, half), gradients(eager(exact, beta=beta, alpha=0.0), exact), strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - true).norm() < 3e-3 * true.norm()  # bfloat16 has 8 bits: the result's rounding alone


def test_float32_gradients_are_right_to_five_digits():
    case = problem(2000, 2000, torch.float32, seed=5)
    exact = [
        case[0].detach().double().requires_grad_(),
        LanguageHead(*(t.detach().double().requires_grad_() for t in case[1][:2])),
        case[2].double(),
        LanguageHead(*(t.double() for t in case[3][:2])),
        case[4],
    ]
    for beta in (0.0, 0.5, 1.0):
        ours = gradients(chunked_kd(*case, beta=beta, temperature=2.0).loss, case)
        true = gradients(eager(exact, beta=beta, temperature=2.0), exact)
        for mine, other in zip(ours, true, strict=True):
            assert (mine.double() - other).norm() < 1e-5 * other.norm()


def test_ignored_tokens_do_not_count_whatever_they_hold():
    case = problem()
    case[4][[0, 5]] = -100
    with torch.no_grad():
        case[0][0], case[2][5] = torch.nan, torch.inf
    loss = chunked_kd(*case).loss
    found = gradients(loss, case)
    assert loss.isfinite()
    assert not found[0][[0, 5]].any()
    rest = [i for i in range(TOKENS) if i not in (0, 5)]
    short = [case[0][rest], case[1], case[2][rest], case[3], case[4][rest]]
    assert loss.item() == chunked_kd(*short).loss.item()
    assert all(g.isfinite().all() for g in found)


@pytest.mark.parametrize("how", ["labels", "weights"])
def test_a_batch_without_tokens_gives_zero_and_a_graph(how):
    case = problem()
    options = {}
    if how == "labels":
        case[4][:] = -100
    else:
        options["weight"] = torch.zeros(TOKENS)
    loss = chunked_kd(*case, **options).loss
    assert loss.item() == 0
    assert not any(g.any() for g in gradients(loss, case))


def test_it_computes_only_the_gradients_that_are_wanted():
    case = problem()
    with torch.no_grad():
        assert not chunked_kd(*case).loss.requires_grad
    frozen = [case[0], LanguageHead(case[1].weight.detach()), *case[2:]]
    loss = 3 * chunked_kd(*frozen).loss
    (alone,) = torch.autograd.grad(loss, frozen[0])
    unfrozen = [case[0], LanguageHead(case[1].weight), *case[2:]]
    torch.testing.assert_close(alone, 3 * gradients(chunked_kd(*unfrozen).loss, unfrozen)[0], rtol=1e-12, atol=1e-15)
    head_only = [case[0].detach(), LanguageHead(case[1].weight), *case[2:]]
    (of_head,) = torch.autograd.grad(chunked_kd(*head_only).loss, case[1].weight)
    torch.testing.assert_close(of_head, gradients(chunked_kd(*unfrozen).loss, unfrozen)[1])


def test_padded_ids_do_not_change_a_masked_divergence():
    student, teacher = torch.randn(2, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    padded = F.pad(student, (0, 3), value=4.0)
    for how in ("mask", "truncate"):
        aligned = align_vocabularies(padded, teacher, vocabulary=how)
        assert generalised_jsd(*aligned) == generalised_jsd(student, teacher)
    spent = torch.softmax(padded, -1)[:, 9:].sum(-1)  # the forward KL counts the mass that the student spends there
    more = generalised_jsd(*align_vocabularies(padded, teacher, vocabulary="zero_mass"), beta=0.0)
    expected = generalised_jsd(student, teacher, beta=0.0) - torch.log1p(-spent).mean()
    assert more.item() == pytest.approx(expected.item(), rel=1e-12)


def test_labels_beyond_the_common_ids_keep_their_place_only_under_a_mask():
    case = problem(ids=14, teacher_ids=11)
    case[4][3] = 13
    assert chunked_kd(*case).loss.isfinite()
    with pytest.raises(ValueError, match="the ids 0 to 10"):
        chunked_kd(*case, vocabulary="truncate")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_finds_the_same(dtype):
    case = problem(300, 310, dtype)
    there = [
        case[0].detach().cuda().requires_grad_(),
        LanguageHead(*(t.detach().cuda().requires_grad_() for t in case[1][:2])),
        case[2].cuda(),
        LanguageHead(*(t.cuda() for t in case[3][:2])),
        case[4].cuda(),
    ]
    here, far = chunked_kd(*case).loss, chunked_kd(*there).loss
    torch.testing.assert_close(far.cpu(), here, rtol=1e-4, atol=1e-5)
    for mine, other in zip(gradients(here, case), gradients(far, there), strict=True):
        torch.testing.assert_close(other.cpu(), mine, rtol=1e-2, atol=1e-4)


def changed(**options):
    case = problem()
    places = {"hidden": 0, "head": 1, "teacher_hidden": 2, "labels": 4}
    for key, place in places.items():
        if key in options:
            case[place] = options.pop(key)
    return chunked_kd(*case, **options)


REFUSALS = [
    (lambda: changed(hidden=torch.zeros(13, 5)), r"hidden states have shape \(13, 5\)"),
    (lambda: changed(hidden=torch.zeros(13, 6).long()), "must be floating"),
    (lambda: changed(teacher_hidden=torch.zeros(12, 4)), "13 tokens, but 12 come from the teacher"),
    (lambda: changed(head=LanguageHead(torch.zeros(11, 6), torch.zeros(10))), "bias has shape"),
    (lambda: changed(head=LanguageHead(torch.zeros(11, 6), soft_cap=0.0)), "soft cap is 0.0"),
    (lambda: changed(labels=torch.full((13,), 11)), "labels run from 11 to 11"),
    (lambda: changed(labels=None), "there are no labels"),
    (lambda: changed(alpha=1.5), "alpha is 1.5"),
    (lambda: changed(beta=-0.5), "beta is -0.5"),
    (lambda: changed(temperature=0.0), "the temperature is 0.0"),
    (lambda: changed(weight=-torch.ones(13)), "at least 0"),
    (lambda: changed(chunk=0), "the chunk is 0"),
    (lambda: changed(vocabulary="pad"), "accepted are 'mask', 'truncate' and 'zero_mass'"),
    (lambda: chunked_kd(*problem(teacher_ids=14), vocabulary="zero_mass"), "forward KL is infinite .* use 'mask'"),
    (lambda: chunked_kd(*problem(ids=14), vocabulary="zero_mass", beta=1.0), "reverse KL is infinite"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSALS)
def test_wrong_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
