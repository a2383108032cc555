"""How far the value under a proxy can be from that under the true target: bounds by their distance.

P0 to P6 are the numbers of ``docs/background.md``, which has the proofs. They stand in for the paper's proposition 4.2,
whose text was not at hand: constants and form are ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from rl.exact.markov import MarkovGame

Array = NDArray[np.float64]


def total_variation(first: Array, second: Array) -> Array:
    r"""Distance :math:`\frac12 \|m - \alpha\|_1` of policies (S, B) at every state, (S,), in [0, 1].

    Example:
        >>> total_variation(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]))
        array([0.5])
    """
    return np.asarray(0.5 * np.abs(first - second).sum(-1))


def simulation_bound(span: float, distance: float, discount: float) -> float:
    r"""P1: :math:`\|V^{\pi,m} - V^{\pi,\alpha}\|_\infty \le \Delta r \tau / (1 - g)^2`.

    Args:
        span: Largest minus smallest reward, at least 0.
        distance: Largest total variation over states, in [0, 1].
        discount: g in [0, 1).

    Returns:
        The bound.
    """
    return span * distance / (1 - discount) ** 2


def coupling_bound(span: float, distance: float, discount: float) -> float:
    r"""P2, which is attained: :math:`\Delta r \tau / ((1 - g)(1 - g (1 - \tau)))`.

    Two runs can be coupled so that their actions agree with probability :math:`1 - \tau` at every step; before they
    first differ, rewards are equal. Never more than :math:`\Delta r / (1 - g)`.

    Args:
        span: Largest minus smallest reward, at least 0.
        distance: Largest total variation over states, in [0, 1].
        discount: g in [0, 1).

    Returns:
        The bound.

    Example:
        >>> round(coupling_bound(1.0, 0.1, 0.9), 10)
        5.2631578947
    """
    return span * distance / ((1 - discount) * (1 - discount * (1 - distance)))


def pinsker_bound(span: float, target: Array, proxy: Array, discount: float) -> float:
    r"""P3: P1 with :math:`\tau \le \sqrt{\min(\max_s KL(\alpha\|m), \max_s KL(m\|\alpha)) / 2}`.

    Args:
        span: Largest minus smallest reward, at least 0.
        target: (S, B).
        proxy: (S, B).
        discount: g in [0, 1).

    Returns:
        The bound; infinite where both divergences are.
    """
    divergence = min(rel_entr(target, proxy).sum(1).max(), rel_entr(proxy, target).sum(1).max())
    return simulation_bound(span, float(np.sqrt(divergence / 2)), discount)


def occupancy_bound(span: float, occupancy: Array, distance: Array, discount: float) -> float:
    r"""P4: :math:`|J(\pi,m) - J(\pi,\alpha)| \le \Delta r\, E_{s \sim d^{\pi,m}} \tau_s / (1 - g)^2`.

    Args:
        span: Largest minus smallest reward, at least 0.
        occupancy: Discounted share of time in every state under the proxy, (S,).
        distance: Total variation at every state, (S,).
        discount: g in [0, 1).

    Returns:
        The bound.
    """
    return span * float(occupancy @ distance) / (1 - discount) ** 2


def advantage_bound(occupancy: Array, distance: Array, action_values: Array, discount: float) -> float:
    r"""P5: :math:`E_{s \sim d^{\pi,m}} [\tau_s\, span_b\, Q^{\pi,\alpha}(s, b)] / (1 - g)`, sharper than P4.

    Args:
        occupancy: Discounted share of time in every state under the proxy, (S,).
        distance: Total variation at every state, (S,).
        action_values: Values of the target's actions under the true target, (S, B); see :func:`target_action_values`.
        discount: g in [0, 1).

    Returns:
        The bound.
    """
    return float(occupancy @ (distance * np.ptp(action_values, axis=1))) / (1 - discount)


def horizon_bound(span: float, distance: float, horizon: int) -> float:
    r"""P6, without discount: :math:`\Delta r \sum_{t=1}^T (1 - (1 - \tau)^t)`.

    Args:
        span: Largest minus smallest reward, at least 0.
        distance: Largest total variation over states, in [0, 1].
        horizon: Number of steps T.

    Returns:
        The bound.
    """
    return span * float((1 - (1 - distance) ** np.arange(1, horizon + 1)).sum())


def target_action_values(game: MarkovGame, plan: Array, target: Array) -> Array:
    r""":math:`Q^{\pi,\alpha}(s, b)`: our value if the target plays b once at s and then its policy, (S, B)."""
    return np.asarray(np.einsum("sa,sab->sb", plan, game.stage(game.values(plan, target))))


def value_difference(game: MarkovGame, plan: Array, proxy: Array, target: Array) -> float:
    r"""P0, an identity for the difference of the values under proxy and target.

    :math:`J(\pi,m) - J(\pi,\alpha) = E_{s \sim d^{\pi,m}} \sum_b (m - \alpha)(b|s) Q^{\pi,\alpha}(s,b) / (1 - g)`.

    Args:
        game: The game.
        plan: Ours, (S, A).
        proxy: m, (S, B).
        target: :math:`\alpha`, (S, B).

    Returns:
        The difference of values from the start.

    Reference:
        Kakade and Langford (2002), lemma 6.1, with the target as the player who changes.
    """
    moved = ((proxy - target) * target_action_values(game, plan, target)).sum(1)
    return float(game.occupancy(plan, proxy) @ moved) / (1 - game.discount)
