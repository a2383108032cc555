"""Exact optimum of the bouncing point: for every word of modes a bounded least-squares problem."""

import itertools

import numpy as np
from scipy.optimize import lsq_linear

from rl.envs.bouncing import BouncingPoint


def optimal_bouncing(simulator: BouncingPoint, position: float, speed: float) -> tuple[float, tuple[int, ...]]:
    r"""The least total cost from a first position and speed, and the modes that reach it.

    In the touch points :math:`z_t = p_t + v_t + b_t` everything is linear for a given word of modes, the regions are
    :math:`z_t \ge 0` (fly) or :math:`z_t \le 0` (bounce), and the cost is a sum of squares.

    Args:
        simulator: For its constants and its horizon T; 2^T problems are solved.
        position: First position, at least 0.
        speed: First speed.

    Returns:
        The cost and the word of modes.

    Example:
        >>> cost, word = optimal_bouncing(BouncingPoint(horizon=1), position=0.5, speed=-2.0)
        >>> round(cost, 4), word
        (0.0175, (1,))
    """
    words = itertools.product(range(2), repeat=simulator.horizon)
    return min((_least_squares(simulator, position, speed, word), word) for word in words)


def _least_squares(simulator: BouncingPoint, position: float, speed: float, word: tuple[int, ...]) -> float:
    steps = len(word)
    # A number that is linear in z is kept as its coefficients, the constant last.
    at, moving = np.zeros(steps + 1), np.zeros(steps + 1)
    at[-1], moving[-1] = position, speed
    rows = []
    for t, mode in enumerate(word):
        touch = np.eye(steps + 1)[t]
        rows.append(np.sqrt(simulator.effort) * (touch - at - moving))
        factor = -simulator.restitution if mode == 1 else 1.0
        at, moving = factor * touch, factor * (touch - at)
        rows.append(at - simulator.target * np.eye(steps + 1)[-1])
    system = np.array(rows)
    fly = np.array(word) == 0
    bounds = (np.where(fly, 0.0, -np.inf), np.where(fly, np.inf, 0.0))
    return float(2 * lsq_linear(system[:, :-1], -system[:, -1], bounds, tol=1e-12).cost)
