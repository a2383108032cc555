"""A value near 1 on a curved design, against quadrature of its definition: little bias, and intervals that cover."""

import numpy as np
import pandas as pd
from scipy.special import expit

from explain import GapExplainer

ROWS, BINS = 2000, 20


def risk(domain, w, a, b):
    """P(label = 1): the target bends in b and loses most of the weight of a."""
    kept = (1.1, 0.3)[domain]
    moved = domain * (0.3 - 0.6 * np.maximum(b, 0))
    return expit(0.4 * w + kept * np.tanh(1.5 * a) - 0.7 * b + 0.4 * a * b + moved)


def middle(domain, w):
    return 0.8 * np.sin(1.5 * w) + 0.7 * domain * (1 + 0.5 * w)


def table(domain, rng):
    w = rng.normal(0.3 * domain, 1, ROWS)
    a = middle(domain, w) + rng.normal(size=ROWS)
    b = 0.6 * a + 0.3 * w**2 - 0.3 + 0.8 * rng.normal(size=ROWS)
    label = (rng.random(ROWS) < risk(domain, w, a, b)).astype(int)
    return pd.DataFrame({"w": w, "a": a, "b": b, "label": label, "prediction": expit(0.4 * w + 0.9 * a - 0.6 * b)})


def value_of_a():
    """v_Y({a}) for the 0-1 loss: what stays of the shift within cells of (w, a, bin of the source risk)."""
    t, u = np.linspace(-5, 5, 61), np.linspace(-5.5, 5.5, 241)
    w = (0.3 + t)[:, None, None]
    a = middle(1, w) + u[None, :, None]
    b = 0.6 * a + 0.3 * w**2 - 0.3 + 0.8 * u[None, None, :]
    density = np.exp(-(t[:, None, None] ** 2 + u[None, :, None] ** 2 + u[None, None, :] ** 2) / 2)
    before, after = risk(0, w, a, b), risk(1, w, a, b)
    cell = np.arange(len(t) * len(u)).reshape(len(t), len(u), 1) * BINS + (before * BINS).astype(int)
    count = len(t) * len(u) * BINS
    mass = np.maximum(np.bincount(cell.ravel(), density.ravel(), count), 1e-300)
    known = (np.bincount(cell.ravel(), (density * after).ravel(), count) / mass)[cell]
    return 1 - (density * (after - known) ** 2).sum() / (density * (after - before) ** 2).sum()


def test_a_value_near_one_is_found_and_covered():
    truth = value_of_a()
    assert 0.94 < truth < 0.96
    found = []
    for seed in range(20):
        rng = np.random.default_rng([77, seed])
        frames = table(0, rng), table(1, rng)
        report = GapExplainer(["w"], learners="linear", seed=seed).fit(*frames).report_
        found.append(next(v for v in report.values if (v.kind, v.subset) == ("outcome", ("a",))))
    assert abs(np.mean([value.value for value in found]) - truth) < 0.05
    assert sum(value.low <= truth <= value.high for value in found) >= 16
    assert not any(value.status == "ok" for value in found)
