"""Three designs of a performance gap whose every term is known by summing over a grid.

**linear**: four independent normal features, and log odds that are linear in both domains. **curved**: features that
bend and lean on each other, and an outcome that changes where one of them is positive. **binary**: two columns of zeros
and ones whose correlation shifts and whose agreement decides the risk, beside two numbers.

The truth comes from the definitions alone: densities are put on a grid and normalised there, and every expectation is a
sum. Where densities are smooth the error falls faster than any power of the grid's width; the edges of the 0-1 loss and
of the bins leave about .001.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from explain.functional import loss_table, shapley_map, subsets

Floats = Any


@dataclass(frozen=True)
class Design:
    """A design: baseline w and further columns z.

    Attributes:
        name: For tables.
        columns: Names, the baseline first.
        axes: Grid of every column.
        draw: Features of a domain, shape (rows, m), from domain, rows and a generator.
        log_density: Of every column given the ones before it, up to a constant, summed over z: arguments domain and
            features along the first axis; returns that of w and that of z given w.
        risk: P(label = 1) of a domain at features.
        model: Predicted probability of a label of 1.
    """

    name: str
    columns: tuple[str, ...]
    axes: tuple[Floats, ...]
    draw: Callable[[int, int, np.random.Generator], Floats]
    log_density: Callable[[int, Floats], tuple[Floats, Floats]]
    risk: Callable[[int, Floats], Floats]
    model: Callable[[Floats], Floats]

    def table(self, domain: int, rows: int, rng: np.random.Generator) -> pd.DataFrame:
        """Rows of a domain with labels and predictions."""
        x = self.draw(domain, rows, rng)
        label = (rng.random(rows) < self.risk(domain, x.T)).astype(int)
        return pd.DataFrame(x, columns=list(self.columns)).assign(label=label, prediction=self.model(x.T))


def truth(design: Design, loss: str, bins: int = 20) -> dict[str, float]:
    """Every term by its definition, and its name as in `explain_coverage`.

    Args:
        design: The design.
        loss: "zero_one", "brier" or "log".
        bins: Of the source risk.
    """
    shape = tuple(len(axis) for axis in design.axes)
    count = len(shape) - 1
    x = np.stack(np.meshgrid(*design.axes, indexing="ij")).reshape(len(shape), -1)
    p_w, p_z, mu, risk = [], [], [], []
    table = loss_table(loss, design.model(x), 2)  # type: ignore[arg-type]
    z_axes = tuple(range(1, 1 + count))
    for domain in (0, 1):
        w, z = (np.exp(part - part.max()).reshape(shape) for part in design.log_density(domain, x))
        flat = w[(slice(None), *[0] * count)]
        p_w.append(flat / flat.sum())
        p_z.append(z / z.sum(z_axes, keepdims=True))
        risk.append(design.risk(domain, x).reshape(shape))
        mu.append((table * np.stack([1 - risk[-1].ravel(), risk[-1].ravel()], 1)).sum(1).reshape(shape))

    def expected(a: int, b: int, c: int) -> float:
        return float(p_w[a] @ (p_z[b] * mu[c]).sum(z_axes))

    e = [expected(0, 0, 0), expected(1, 0, 0), expected(1, 1, 0), expected(1, 1, 1)]
    found = {"baseline": e[1] - e[0], "covariate": e[2] - e[1], "outcome": e[3] - e[2]}
    masks = subsets(count)

    def moved(mask: Floats) -> Floats:
        """E[loss | w] where only these columns are distributed as in the target."""
        out = tuple(axis for axis, inside in zip(z_axes, mask, strict=True) if not inside)
        here, there = (part.sum(out, keepdims=True) for part in p_z)
        return (p_z[0] / np.maximum(here, 1e-300) * there * mu[0]).sum(z_axes)

    given_w = np.array([moved(mask) for mask in masks])
    left = (given_w - given_w[-1]) ** 2 @ p_w[1]
    found |= named("covariate", design.columns[1:], 1 - left / left[0])

    weight = (p_w[1].reshape(-1, *[1] * count) * p_z[1]).ravel()
    delta = (table[:, 1] - table[:, 0]) ** 2
    before, after = risk[0].ravel(), risk[1].ravel()
    place = np.unravel_index(np.arange(len(before)), shape)
    v = []
    for mask in masks[:-1]:
        cell = place[0]
        for axis in np.flatnonzero(mask):
            cell = cell * shape[1 + axis] + place[1 + axis]
        cell = cell * bins + np.minimum((before * bins).astype(int), bins - 1)
        mass = np.maximum(np.bincount(cell, weight), 1e-300)
        known = (np.bincount(cell, weight * after) / mass)[cell]
        v.append(1 - weight @ (delta * (after - known) ** 2) / (weight @ (delta * (after - before) ** 2)))
    return found | named("outcome", design.columns[1:], np.append(v, 1.0))


def named(kind: str, names: Sequence[str], v: Floats) -> dict[str, float]:
    """Values of subsets and their Shapley shares, by name."""
    masks = subsets(len(names))
    found = {f"{kind} v({subset(names, mask)})": float(value) for mask, value in zip(masks, v, strict=True)}
    shares = shapley_map(masks) @ v
    return found | {f"{kind} share {name}": float(s) for name, s in zip(("none", *names), shares, strict=True)}


def subset(names: Sequence[str], mask: Floats) -> str:
    """The names of a subset, in one word."""
    return ",".join(itertools.compress(names, mask))


def _normal(x: Floats, mean: Floats, sd: float) -> Floats:
    return -(((x - mean) / sd) ** 2) / 2


SD = 1.5
MEANS = ((0.5, 1.0, 0.35, 1.0), (0.0, 0.0, 0.0, 0.0))
WEIGHTS = ((0.3, 0.6, 0.4, 0.6), (0.3, -0.2, 0.4, 1.0))


def _linear_draw(domain: int, rows: int, rng: np.random.Generator) -> Floats:
    return rng.normal(size=(rows, 4)) * SD + MEANS[domain]


def _linear_risk(domain: int, x: Floats) -> Floats:
    return expit(np.tensordot(WEIGHTS[domain], x, 1))


@cache
def _linear_fit() -> LogisticRegression:
    """A logistic regression on 10 000 other source rows."""
    rng = np.random.default_rng(0)
    x = _linear_draw(0, 10_000, rng)
    return LogisticRegression(C=1e6, max_iter=1000).fit(x, rng.random(len(x)) < _linear_risk(0, x.T))


def _linear_model(x: Floats) -> Floats:
    return expit(np.tensordot(_linear_fit().coef_[0], x, 1) + _linear_fit().intercept_[0])


def _linear_density(domain: int, x: Floats) -> tuple[Floats, Floats]:
    parts = [_normal(x[j], MEANS[domain][j], SD) for j in range(4)]
    return parts[0], sum(parts[1:])


def _curve(domain: int, w: Floats) -> Floats:
    return 0.8 * np.sin(1.5 * w) + 0.7 * domain * (1 + 0.5 * w)


def _bowl(w: Floats, a: Floats) -> Floats:
    return 0.6 * a + 0.3 * w**2 - 0.3


def _curved_draw(domain: int, rows: int, rng: np.random.Generator) -> Floats:
    w = rng.normal(0.3 * domain, 1, rows)
    a = _curve(domain, w) + rng.normal(size=rows)
    return np.column_stack([w, a, _bowl(w, a) + 0.8 * rng.normal(size=rows)])


def _curved_density(domain: int, x: Floats) -> tuple[Floats, Floats]:
    w, a, b = x
    return _normal(w, 0.3 * domain, 1), _normal(a, _curve(domain, w), 1) + _normal(b, _bowl(w, a), 0.8)


def _curved_risk(domain: int, x: Floats) -> Floats:
    w, a, b = x
    change = domain * (0.3 - 0.6 * np.maximum(b, 0))
    return expit(0.4 * w + (1.1, 0.3)[domain] * np.tanh(1.5 * a) - 0.7 * b + 0.4 * a * b + change)


def _curved_model(x: Floats) -> Floats:
    return expit(0.4 * x[0] + 0.9 * x[1] - 0.6 * x[2])


AGREE = (0.5, 0.8)  # P(z2 = z1)


def _binary_draw(domain: int, rows: int, rng: np.random.Generator) -> Floats:
    w, z1 = rng.normal(0.2 * domain, 1, rows), rng.integers(0, 2, rows)
    z2 = np.where(rng.random(rows) < AGREE[domain], z1, 1 - z1)
    return np.column_stack([w, z1, z2, rng.normal(0.3 * w + 0.3 * domain, 1)])


def _binary_density(domain: int, x: Floats) -> tuple[Floats, Floats]:
    w, z1, z2, z3 = x
    agree = np.where(z1 == z2, AGREE[domain], 1 - AGREE[domain])
    return _normal(w, 0.2 * domain, 1), np.log(agree) + _normal(z3, 0.3 * w + 0.3 * domain, 1)


def _binary_risk(domain: int, x: Floats) -> Floats:
    w, z1, z2, z3 = x
    return expit(0.4 * w + 1.2 * (z1 == z2) - 0.6 + (0.6, 1.2)[domain] * z3 + domain * (1.2 * z1 - 0.6))


def _binary_model(x: Floats) -> Floats:
    return expit(0.4 * x[0] + 0.3 * x[1] + 0.6 * x[3])


_BITS = np.array([0.0, 1.0])
DESIGNS = (
    Design(
        "linear",
        ("w", "z1", "z2", "z3"),
        (np.linspace(-5.5, 6, 21), np.linspace(-6, 7, 53), np.linspace(-6, 6.5, 47), np.linspace(-6, 7, 59)),
        _linear_draw,
        _linear_density,
        _linear_risk,
        _linear_model,
    ),
    Design(
        "curved",
        ("w", "a", "b"),
        (np.linspace(-4.5, 4.8, 51), np.linspace(-7, 9, 181), np.linspace(-7, 13, 201)),
        _curved_draw,
        _curved_density,
        _curved_risk,
        _curved_model,
    ),
    Design(
        "binary",
        ("w", "z1", "z2", "z3"),
        (np.linspace(-4.6, 4.8, 81), _BITS, _BITS, np.linspace(-6.5, 7, 271)),
        _binary_draw,
        _binary_density,
        _binary_risk,
        _binary_model,
    ),
)
