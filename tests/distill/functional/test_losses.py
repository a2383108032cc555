"""Every loss against numpy written from its formula, gradients against finite differences, and the known identities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from distill import functional as losses


def logits(batch=4, classes=5, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def pearson(a, b):
    return np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])


def np_kd(s, t, temperature=1.0):
    p, q = softmax(s / temperature), softmax(t / temperature)
    return temperature**2 * np.mean(np.sum(q * np.log(q / p), -1))


def np_binary_kd(s, t, temperature=1.0):
    q, p = softmax(t / temperature), 1 / (1 + np.exp(-s / temperature))
    return temperature**2 * np.mean(np.sum(q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)), -1))


def np_dkd(s, t, labels, alpha=1.0, beta=2.0, temperature=1.0):
    total = 0.0
    for a, b, y in zip(softmax(s / temperature), softmax(t / temperature), labels, strict=True):
        rest = [c for c in range(len(a)) if c != y]
        total += alpha * (b[y] * np.log(b[y] / a[y]) + (1 - b[y]) * np.log((1 - b[y]) / (1 - a[y])))
        total += beta * sum(b[c] / (1 - b[y]) * np.log(b[c] / (1 - b[y]) / (a[c] / (1 - a[y]))) for c in rest)
    return temperature**2 * total / len(labels)


def np_dist(s, t, beta=1.0, gamma=1.0, temperature=1.0):
    p, q = softmax(s / temperature), softmax(t / temperature)
    return temperature**2 * (beta * (1 - pearson(p, q)) + gamma * (1 - pearson(p.T, q.T)))


def np_huber(a, b):
    d = np.abs(a - b)
    return np.mean(np.where(d < 1, d**2 / 2, d - 0.5))


def np_rkd(s, t, distance=25.0, angle=50.0):
    tables, cosines = [], []
    for x in (s, t):
        n = len(x)
        d = np.array([[np.linalg.norm(x[i] - x[j]) for j in range(n)] for i in range(n)])
        tables.append(d / (d.sum() / (n * (n - 1))))
        c = np.zeros((n, n, n))
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    a, b = x[j] - x[i], x[k] - x[i]
                    if i not in (j, k):
                        c[i, j, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        cosines.append(c)
    return distance * np_huber(*tables) + angle * np_huber(*cosines)


def np_jsd(s, t, beta, temperature=1.0):
    p, q = softmax(s / temperature), softmax(t / temperature)
    m = beta * q + (1 - beta) * p
    ends = {0: (q, p), 1: (p, q)}
    if beta in ends:
        a, b = ends[beta]
        rows = np.sum(a * np.log(a / b), -1)
    else:
        rows = beta * np.sum(q * np.log(q / m), -1) + (1 - beta) * np.sum(p * np.log(p / m), -1)
    return temperature**2 * np.mean(rows)


def np_multi(s, t, temperatures=(2, 3, 4, 5, 6)):
    values = []
    for temperature in temperatures:
        p, q = softmax(s / temperature), softmax(t / temperature)
        values.append(
            np_kd(s, t, temperature)
            + np.sum((p @ p.T - q @ q.T) ** 2) / len(s)
            + np.sum((p.T @ p - q.T @ q) ** 2) / s.shape[1]
        )
    return np.mean(values)


LABELS = torch.tensor([0, 3, 1, 4])
CASES = {
    "kd": (lambda s, t: losses.kd(s, t, temperature=3.0), lambda s, t: np_kd(s, t, 3.0)),
    "binary_kd": (lambda s, t: losses.binary_kd(s, t, temperature=2.0), lambda s, t: np_binary_kd(s, t, 2.0)),
    "dkd": (
        lambda s, t: losses.dkd(s, t, LABELS, alpha=0.7, beta=1.5, temperature=2.0),
        lambda s, t: np_dkd(s, t, LABELS.numpy(), 0.7, 1.5, 2.0),
    ),
    "dist": (
        lambda s, t: losses.dist(s, t, beta=0.5, gamma=2.0, temperature=2.0),
        lambda s, t: np_dist(s, t, 0.5, 2.0, 2.0),
    ),
    "rkd": (losses.rkd, np_rkd),
    "multi_temperature": (losses.multi_temperature, np_multi),
    "jsd_0": (lambda s, t: losses.generalised_jsd(s, t, beta=0.0), lambda s, t: np_jsd(s, t, 0)),
    "jsd_0.3": (
        lambda s, t: losses.generalised_jsd(s, t, beta=0.3, temperature=2.0),
        lambda s, t: np_jsd(s, t, 0.3, 2.0),
    ),
    "jsd_1": (lambda s, t: losses.generalised_jsd(s, t, beta=1.0), lambda s, t: np_jsd(s, t, 1)),
    "correlation": (
        lambda s, t: losses.correlation(s, t, weight=1.0),
        lambda s, t: np.mean(np.sum(np.abs(s - t)[:-1] * np.abs(s - t)[1:], -1)),
    ),
    "hint": (losses.hint, lambda s, t: np.mean((s - t) ** 2)),
    "standardised kd": (
        lambda s, t: losses.kd(losses.standardise(s), losses.standardise(t), temperature=2.0),
        lambda s, t: np_kd(*((z - z.mean(-1, keepdims=True)) / z.std(-1, keepdims=True, ddof=1) for z in (s, t)), 2.0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_its_formula(name):
    ours, reference = CASES[name]
    student, teacher = logits()
    assert float(ours(student, teacher)) == pytest.approx(reference(student.numpy(), teacher.numpy()), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_the_finite_difference(name):
    student, teacher = logits(seed=1)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: CASES[name][0](s, teacher), (student,), atol=1e-6)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("correlation", "hint")])
def test_a_student_like_its_teacher_has_no_loss(name):
    student, _ = logits(seed=2)
    expected = 0.0
    if name == "binary_kd":  # its student answers by sigmoids: agreement is another logit
        probability = torch.softmax(student / 2, -1)
        assert losses.binary_kd(2 * torch.logit(probability), student, temperature=2.0) == pytest.approx(0, abs=1e-12)
        return
    assert float(CASES[name][0](student, student)) == pytest.approx(expected, abs=1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.5, 8.0), classes=st.integers(2, 7))
def test_kd_is_target_and_rest_by_the_chain_rule(seed, temperature, classes):
    student, teacher = logits(classes=classes, seed=seed)
    labels = torch.randint(classes, (4,), generator=torch.Generator().manual_seed(seed))
    total = 0.0
    for row in range(4):  # the factor of the second part differs from row to row
        s, t, y = student[row : row + 1], teacher[row : row + 1], labels[row : row + 1]
        rest = 1 - torch.softmax(t / temperature, -1)[0, y].item()
        total += float(losses.dkd(s, t, y, alpha=1.0, beta=rest, temperature=temperature)) / 4
    assert total == pytest.approx(float(losses.kd(student, teacher, temperature=temperature)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_chain_rule_holds_for_mixed_labels_too(classes):
    student, teacher = logits(batch=1, classes=classes, seed=3)
    mixed = torch.full((1, classes), 0.02, dtype=torch.float64)
    mixed[0, 0], mixed[0, 1] = 0.6, 0.3
    rest = float(torch.softmax(teacher, -1)[0, 2:].sum())
    parts = losses.dkd(student, teacher, mixed, alpha=1.0, beta=rest, mixed="partition")
    assert float(parts) == pytest.approx(float(losses.kd(student, teacher)), rel=1e-9)
    official = losses.dkd(student, teacher, mixed)
    assert float(official) == float(losses.dkd(student, teacher, torch.tensor([0])))


def test_a_label_distribution_of_one_class_is_its_index():
    student, teacher = logits()
    one_hot = torch.nn.functional.one_hot(LABELS, 5).double()
    for mixed in ("argmax", "partition"):
        assert losses.dkd(student, teacher, one_hot, mixed=mixed) == losses.dkd(student, teacher, LABELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dkd_survives_confident_logits(dtype):
    student = torch.tensor([[300.0, 0.0, -300.0], [-300.0, 300.0, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-300.0, 0.0, 300.0], [0.0, 300.0, -300.0]], dtype=dtype)
    for labels in (torch.tensor([0, 1]), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.4, 0.6]])):
        loss = losses.dkd(student, teacher, labels, mixed="partition")
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_with_two_classes_the_rest_says_nothing():
    student, teacher = logits(classes=2)
    labels = torch.tensor([0, 1, 1, 0])
    assert losses.dkd(student, teacher, labels, alpha=0.0).abs() < 1e-12
    assert losses.dkd(student, teacher, labels, beta=7.0) == pytest.approx(float(losses.kd(student, teacher)))


def test_kd_is_cross_entropy_to_the_teacher_less_its_entropy():
    student, teacher = logits()
    target = torch.softmax(teacher, -1)
    entropy = -(target * target.log()).sum(-1).mean()
    assert float(losses.kd(student, teacher)) == pytest.approx(
        float(torch.nn.functional.cross_entropy(student, target) - entropy), rel=1e-12
    )


def test_the_squared_temperature_keeps_the_gradient_scale():
    norms = []
    for temperature in (1.0, 4.0, 16.0):
        student, teacher = logits(scale=1e-3)
        student.requires_grad_()
        (gradient,) = torch.autograd.grad(losses.kd(student, teacher, temperature=temperature), student)
        norms.append(float(gradient.norm()))
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-3)


def test_the_binary_gradient_is_that_of_a_binary_cross_entropy():
    student, teacher = logits()
    student.requires_grad_()
    (ours,) = torch.autograd.grad(losses.binary_kd(student, teacher), student)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(student, torch.softmax(teacher, -1), reduction="sum") / 4
    (theirs,) = torch.autograd.grad(bce, student)
    torch.testing.assert_close(ours, theirs)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), shift=st.floats(-3, 3))
def test_relations_ignore_affine_maps_of_rows(seed, scale, shift):
    first, second = logits(seed=seed)
    before = losses.relation_distance(first, second)
    assert float(losses.relation_distance(scale * first + shift, second)) == pytest.approx(float(before), abs=1e-9)
    moved = losses.standardise(scale * first + shift)
    torch.testing.assert_close(moved, losses.standardise(first), atol=1e-5, rtol=1e-5)


def test_constant_columns_and_rows_give_no_nan():
    student = torch.zeros(2, 40, requires_grad=True)  # fewer rows than classes, and all alike
    for loss in (losses.dist(student, torch.zeros(2, 40)), losses.standardise(student).sum()):
        (gradient,) = torch.autograd.grad(loss, student)
        assert gradient.isfinite().all()
    features = torch.ones(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.rkd(features, torch.randn(3, 2)), features)
    assert gradient.isfinite().all()


def test_rkd_ignores_place_scale_and_rotation():
    features = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    assert losses.rkd(5 * features @ turn - 2, features) < 1e-20


def test_the_ends_of_the_jsd_are_its_limits():
    student, teacher = logits()
    forward = losses.generalised_jsd(student, teacher, beta=0.0)
    assert float(losses.generalised_jsd(student, teacher, beta=1e-6) / 1e-6) == pytest.approx(float(forward), rel=1e-4)
    assert float(losses.kd(student, teacher)) == pytest.approx(float(forward), rel=1e-12)
    backward = losses.generalised_jsd(student, teacher, beta=1.0)
    near = losses.generalised_jsd(student, teacher, beta=1 - 1e-6) / 1e-6
    assert float(near) == pytest.approx(float(backward), rel=1e-4)
    assert losses.generalised_jsd(1000 * student, -1000 * student, beta=0.5) <= math.log(2) + 1e-9


def test_masked_tokens_do_not_count():
    student, teacher = logits(batch=6)
    mask = torch.tensor([1.0, 0, 1, 1, 0, 0])
    ours = losses.generalised_jsd(student, teacher, weight=mask)
    assert float(ours) == pytest.approx(float(losses.generalised_jsd(student[[0, 2, 3]], teacher[[0, 2, 3]])))
    student.requires_grad_()
    nothing = losses.generalised_jsd(student, teacher, weight=torch.zeros(6))
    (gradient,) = torch.autograd.grad(nothing, student)
    assert nothing == 0
    assert not gradient.any()


def test_crd_is_its_formula_and_stable():
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(3, dtype=torch.float64, generator=generator).requires_grad_()
    negative = torch.randn(3, 7, dtype=torch.float64, generator=generator).requires_grad_()
    h, g, noise = positive.detach().exp().numpy(), negative.detach().exp().numpy(), 7 / 50
    expected = -np.mean(np.log(h / (h + noise)) + np.log(noise / (g + noise)).sum(-1))
    assert losses.crd(positive, negative, 50).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda p, n: losses.crd(p, n, 50), (positive, negative))
    assert losses.crd(torch.tensor([1e4]), torch.tensor([[-1e4]]), 9).isfinite()


def test_the_context_loss_is_its_formula():
    student, teacher = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    difference = (student - teacher).numpy()
    expected, total = np.mean(difference**2), 1.0
    for weight, grid in ((0.5, 4), (0.25, 2), (0.125, 1)):
        side = 8 // grid
        pooled = difference.reshape(2, 3, grid, side, grid, side).mean((3, 5))
        expected, total = expected + weight * np.mean(pooled**2), total + weight
    assert float(losses.hierarchical_context(student, teacher)) == pytest.approx(expected / total)
    small = losses.hierarchical_context(student[..., :2, :2], teacher[..., :2, :2])
    assert small > 0  # grids of 4 and 2 are left out
    maps = student[:1, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: losses.hierarchical_context(s, teacher[:1, :1]), (maps,))


def test_the_reversed_gradient_trains_the_temperature_against_the_student():
    student, teacher = logits()
    parameter = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def loss(strength):
        temperature = losses.reverse_gradient(losses.bounded_temperature(parameter), strength)
        p, q = torch.log_softmax(student / temperature, -1), torch.softmax(teacher / temperature, -1)
        return temperature**2 * torch.nn.functional.kl_div(p, q, reduction="batchmean")

    plain = loss(-1.0)  # strength -1 is the identity
    (usual,) = torch.autograd.grad(plain, parameter)
    (reversed_gradient,) = torch.autograd.grad(loss(0.5), parameter)
    assert float(reversed_gradient) == pytest.approx(-0.5 * float(usual))
    assert losses.curriculum_strength(0.25) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype):
    student, teacher = logits()
    for name in ("kd", "dkd", "dist", "jsd_0.3"):
        half = CASES[name][0](student.to(dtype), teacher.to(dtype))
        assert float(half) == pytest.approx(float(CASES[name][0](student, teacher)), rel=0.1)


REFUSALS = [
    (lambda: losses.kd(torch.zeros(2, 3), torch.zeros(2, 4)), "flatten tokens, and align different vocabularies"),
    (lambda: losses.kd(torch.zeros(2, 1), torch.zeros(2, 1)), "two classes or more"),
    (lambda: losses.kd(torch.zeros(2, 3).long(), torch.zeros(2, 3)), "must be floating"),
    (lambda: losses.kd(torch.zeros(2, 3), torch.zeros(2, 3), temperature=-1.0), "the temperature is -1.0"),
    (lambda: losses.kd(torch.zeros(2, 3), torch.zeros(2, 3), temperature=math.nan), "the temperature is nan"),
    (lambda: losses.dkd(*logits(), torch.tensor([0, 1, 2, 5])), "labels must be from 0 to 4, got 0 to 5"),
    (lambda: losses.dkd(*logits(), torch.zeros(3).long()), "give class indices"),
    (lambda: losses.dkd(*logits(), LABELS, mixed="both"), "accepted are 'argmax' and 'partition'"),
    (lambda: losses.rkd(torch.zeros(2, 3), torch.zeros(2, 3)), "at least 3 rows"),
    (lambda: losses.rkd(torch.zeros(3, 3), torch.zeros(4, 3)), "the same batch"),
    (lambda: losses.correlation(torch.zeros(3, 3), torch.zeros(3, 4)), "the same width"),
    (lambda: losses.crd(torch.zeros(3), torch.zeros(3, 0), 3), "at least one of each"),
    (lambda: losses.crd(torch.zeros(3), torch.zeros(3, 1), 0), "needs at least 1"),
    (lambda: losses.hint(torch.zeros(3), torch.zeros(4)), "map the student's"),
    (lambda: losses.hierarchical_context(torch.zeros(3), torch.zeros(3)), "height, width"),
    (lambda: losses.generalised_jsd(*logits(), beta=1.5), "beta is 1.5"),
    (lambda: losses.generalised_jsd(*logits(), weight=-torch.ones(4)), "at least 0"),
    (lambda: losses.multi_temperature(*logits(), temperatures=()), "temperatures is empty"),
    (lambda: losses.curriculum_strength(-0.1), "the progress is -0.1"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSALS)
def test_wrong_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
