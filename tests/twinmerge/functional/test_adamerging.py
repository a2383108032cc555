"""AdaMerging against a reference in numpy with its own gradients and its own Adam."""

import numpy as np
import pytest
import torch

from twinmerge.functional.adamerging import adamerging, entropy

STEPS, RATE = 40, 0.05


def problem(seed=0):
    """A base and two experts of one linear layer, and two batches of inputs of each task."""
    draw = np.random.default_rng(seed)
    base = {"w": draw.normal(size=(4, 3)), "b": draw.normal(size=4)}
    experts = [{n: v + 0.8 * draw.normal(size=v.shape) for n, v in base.items()} for _ in range(2)]
    inputs = [[draw.normal(size=(5, 3)) for _ in range(2)] for _ in experts]
    return base, experts, inputs


def reference(base, experts, inputs, layers):
    """Coefficients after Adam on the sum of mean entropies, every derivative written out."""
    names = list(base)
    raw = np.full((len(names) if layers else 1, len(experts)), 0.3)
    first, second = np.zeros_like(raw), np.zeros_like(raw)
    for step in range(STEPS):
        cut = np.broadcast_to(np.clip(raw, 0, 1), (len(names), len(experts)))
        merged = {n: base[n] + sum(c * (e[n] - base[n]) for c, e in zip(cut[i], experts, strict=True))
                  for i, n in enumerate(names)}  # fmt: skip
        slopes = {n: np.zeros_like(v) for n, v in merged.items()}
        for batches in inputs:
            x = batches[step % len(batches)]
            z = x @ merged["w"].T + merged["b"]
            p = np.exp(z - z.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            slope = -p * (np.log(p) - (p * np.log(p)).sum(1, keepdims=True))
            slope /= len(x)
            slopes["w"] += slope.T @ x
            slopes["b"] += slope.sum(0)
        by_tensor = np.array([[(slopes[n] * (e[n] - base[n])).sum() for e in experts] for n in names])
        gradient = (by_tensor if layers else by_tensor.sum(0, keepdims=True)) * ((raw >= 0) & (raw <= 1))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        a, b = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        raw = raw - RATE * a / (np.sqrt(b) + 1e-8)
    return np.broadcast_to(np.clip(raw, 0, 1), (len(names), len(experts)))


@pytest.mark.parametrize("layers", [True, False])
def test_against_numpy(layers):
    base, experts, inputs = problem()
    torches = lambda state: {n: torch.tensor(v) for n, v in state.items()}  # noqa: E731

    def logits(weights, step):
        return [torch.tensor(b[step % 2]).float() @ weights["w"].T + weights["b"] for b in inputs]

    start = torches(base) | {"steps": torch.tensor(7)}
    made = adamerging(start, [torches(e) | {"steps": torch.tensor(9)} for e in experts], logits=logits, layers=layers,
                      steps=STEPS, rate=RATE)  # fmt: skip
    expected = reference(base, experts, inputs, layers)
    for row, name in zip(expected, base, strict=True):
        np.testing.assert_allclose(made.coefficients[name], row, atol=2e-3)
        merged = base[name] + sum(c * (e[name] - base[name]) for c, e in zip(row, experts, strict=True))
        np.testing.assert_allclose(made.weights[name], merged, atol=5e-3)
        assert made.weights[name].dtype == torch.float64
    assert int(made.weights["steps"]) == 7
    assert len(made.entropies) == STEPS
    assert made.entropies[-1] < made.entropies[1]  # of the same batches


def test_what_nothing_changed_stays_and_mistakes_are_told():
    base = {"w": torch.ones(2)}
    made = adamerging(base, [base], logits=lambda *_: pytest.fail("asked"))
    assert torch.equal(made.weights["w"], base["w"])
    assert made.coefficients == {}
    with pytest.raises(ValueError, match="initial is 2"):
        adamerging(base, [base], logits=lambda *_: [], initial=2)
    assert float(entropy(torch.zeros(3, 4))) == pytest.approx(np.log(4))
