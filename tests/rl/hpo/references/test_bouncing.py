"""The bouncing point's optimum against a fine search, and its simulator against what it says."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from rl.envs.bouncing import BouncingPoint
from rl.hpo.references.bouncing import optimal_bouncing


def physics(simulator, position, speed, impulses):
    """Cost of impulses when the wall decides by itself whether there is a bounce."""
    total = 0.0
    for impulse in impulses:
        speed += impulse
        position += speed
        if position < 0:
            position, speed = -simulator.restitution * position, -simulator.restitution * speed
        total += (position - simulator.target) ** 2 + simulator.effort * impulse**2
    return total


@pytest.mark.parametrize(("position", "speed"), [(0.5, -2.0), (1.5, 0.3), (0.1, -0.5), (2.0, -3.0)])
def test_no_impulses_are_cheaper(position, speed):
    simulator = BouncingPoint(horizon=2)
    best, _ = optimal_bouncing(simulator, position, speed)
    grid = np.linspace(-4, 4, 161)
    first, second = np.meshgrid(grid, grid)
    costs = [physics(simulator, position, speed, pair) for pair in zip(first.flat, second.flat, strict=True)]
    start = [first.flat[np.argmin(costs)], second.flat[np.argmin(costs)]]
    found = minimize(lambda pair: physics(simulator, position, speed, pair), start, method="Nelder-Mead", tol=1e-10)
    assert best == pytest.approx(found.fun, abs=1e-6)


def test_the_declared_mode_is_the_true_one():
    simulator = BouncingPoint(dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = simulator.sample_noise(50, generator)
    state, total, impulses = simulator.reset(noise), 0.0, []
    for t in range(simulator.horizon):
        mode = torch.randint(2, (50,), generator=generator)
        raw = torch.randn(50, 2, 1, generator=generator, dtype=torch.float64)
        action = simulator.action_map(raw, state)[torch.arange(50), mode]
        state, cost = simulator.step(state, mode, action, noise, t)
        total = total + cost
        impulses.append(action[:, 0])
    for i in range(50):
        true = physics(
            simulator, noise["position"][i].item(), noise["speed"][i].item(), [b[i].item() for b in impulses]
        )
        assert total[i].item() == pytest.approx(true, abs=1e-9)
    assert (state["position"] >= 0).all()
