"""Consistent sets: what the target may do at one state or information set, given the data seen there."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr

Array = NDArray[np.float64]
_SUM_TOLERANCE = 1e-6


class Rows(NamedTuple):
    """A polytope of distributions m with auxiliary variables t.

    ``equal [m; t] = equal_bound`` and ``least [m; t] >= least_bound``. Bounds are homogeneous: in an extensive-form
    game they are multiplied by the weight of the parent sequence, and m by it becomes the weights of the actions'
    sequences. The simplex itself is left out; every solver adds it.
    """

    equal: Array
    equal_bound: Array
    least: Array
    least_bound: Array

    @property
    def columns(self) -> int:
        """Number of actions and auxiliary variables together."""
        return int(self.equal.shape[1])


class ConsistentSet(ABC):
    """A closed convex set of distributions over the actions of the target at one state.

    A subclass gives ``n_actions`` and :meth:`worst`, and :meth:`rows` if the set is a polytope.
    """

    n_actions: int

    @abstractmethod
    def worst(self, cost: Array) -> Array:
        """The distribution of the set with the smallest expected cost.

        Args:
            cost: What every action of the target is worth to us, (B,).

        Returns:
            A minimiser of m . cost, (B,).
        """

    def rows(self) -> Rows | None:
        """The set as a polytope, or None if it is none."""
        return None


@dataclass(frozen=True)
class Free(ConsistentSet):
    """Every distribution: a state without data.

    Args:
        n_actions: Number of actions B.

    Example:
        >>> Free(3).worst(np.array([1.0, -2.0, 0.0]))
        array([0., 1., 0.])
    """

    n_actions: int

    def worst(self, cost: Array) -> Array:
        """All mass on the cheapest action."""
        return _one_hot(cost)

    def rows(self) -> Rows:
        """No row."""
        return polytope_rows(self.n_actions)


class _AroundModel(ConsistentSet):
    """A set around the empirical policy ``model`` (B,)."""

    def __init__(self, model: ArrayLike) -> None:
        array = np.asarray(model, dtype=np.float64)
        if array.ndim != 1 or not len(array) or not np.isfinite(array).all() or (array < 0).any():
            raise ValueError(f"the model of the target is {model!r}, but it must be a vector of probabilities")
        if abs(array.sum() - 1) > _SUM_TOLERANCE:
            raise ValueError(f"the model's probabilities sum to {array.sum():.6g}, but they must sum to 1")
        self.model: Array = array / array.sum()
        self.n_actions = len(array)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"


class Pinned(_AroundModel):
    """The empirical policy itself: the limit of infinite data.

    Args:
        model: Empirical policy (B,).

    Raises:
        ValueError: If the model is no distribution; so in all sets below.
    """

    def worst(self, cost: Array) -> Array:
        """The model, whatever the cost."""
        return self.model

    def rows(self) -> Rows:
        """M = model."""
        return polytope_rows(len(self.model), equal=np.eye(len(self.model)), equal_bound=self.model)


class TotalVariation(_AroundModel):
    r"""All m with :math:`\frac12 \|m - \hat\alpha\|_1 \le \delta`.

    Args:
        model: Empirical policy (B,).
        radius: :math:`\delta \ge 0`; from 1 on the set is the whole simplex.

    Example:
        >>> TotalVariation([0.5, 0.3, 0.2], 0.25).worst(np.array([1.0, 0.0, 2.0])).round(4)
        array([0.45, 0.55, 0.  ])
    """

    def __init__(self, model: ArrayLike, radius: float) -> None:
        super().__init__(model)
        self.radius = min(_radius(radius), 1.0)

    def worst(self, cost: Array) -> Array:
        """Move the radius' mass from the dearest actions to the cheapest."""
        worst, cheapest, left = self.model.copy(), int(cost.argmin()), self.radius
        for action in np.argsort(-cost):
            if action != cheapest:
                moved = min(worst[action], left)
                worst[action] -= moved
                worst[cheapest] += moved
                left -= moved
        return worst

    def rows(self) -> Rows:
        """T >= |m - model| and sum t <= 2 radius."""
        n = len(self.model)
        eye = np.eye(n)
        least = np.block([[-eye, eye], [eye, eye], [np.zeros((1, n)), -np.ones((1, n))]])
        return polytope_rows(
            2 * n, least=least, least_bound=np.concatenate([-self.model, self.model, [-2 * self.radius]])
        )


class Contamination(_AroundModel):
    r"""All :math:`m = p \hat\alpha + (1 - p) \nu` with :math:`\nu` free, as in restricted and data-biased responses.

    Args:
        model: Empirical policy (B,).
        confidence: p in [0, 1].

    Raises:
        ValueError: If the confidence is out of range.

    Reference:
        Johanson, Zinkevich and Bowling (2007), "Computing robust counter-strategies"; Johanson and Bowling (2009),
        "Data biased robust counter strategies".
    """

    def __init__(self, model: ArrayLike, confidence: float) -> None:
        super().__init__(model)
        if not 0 <= confidence <= 1:
            raise ValueError(f"the confidence in the model is {confidence}, but it must lie in [0, 1]")
        self.confidence = confidence

    def worst(self, cost: Array) -> Array:
        """The free part goes to the cheapest action."""
        return self.confidence * self.model + (1 - self.confidence) * _one_hot(cost)

    def rows(self) -> Rows:
        """M >= p model."""
        return polytope_rows(len(self.model), least=np.eye(len(self.model)), least_bound=self.confidence * self.model)


class ReverseKL(_AroundModel):
    r"""All m with :math:`KL(m \| \hat\alpha) \le \epsilon`: no action is played that was never seen.

    Args:
        model: Empirical policy (B,).
        radius: :math:`\epsilon \ge 0` in nats.
    """

    def __init__(self, model: ArrayLike, radius: float) -> None:
        super().__init__(model)
        self.radius = _radius(radius)

    def worst(self, cost: Array) -> Array:
        r""":math:`m \propto \hat\alpha e^{-c / \lambda}`, with :math:`\lambda` by bisection on the radius."""
        if self.radius == 0:
            return self.model
        seen = self.model > 0
        model, spread = self.model[seen], cost[seen] - cost[seen].min()
        scale = float(spread.max())
        worst = np.zeros_like(self.model)
        cheapest = spread <= 1e-15 * max(1.0, float(np.abs(cost).max()))
        if -np.log(model[cheapest].sum()) <= self.radius:
            worst[seen] = np.where(cheapest, model, 0) / model[cheapest].sum()
            return worst

        def tilt(temperature: float) -> Array:
            weights = model * np.exp(-spread / temperature)
            return np.asarray(weights / weights.sum())

        worst[seen] = tilt(_bisect(lambda value: float(rel_entr(tilt(value), model).sum()) - self.radius, scale))
        return worst


class ForwardKL(_AroundModel):
    r"""All m with :math:`KL(\hat\alpha \| m) \le \epsilon`: the likelihood region.

    It is what a behaviour-cloning penalty controls. Mass may leave the support of the model.

    Args:
        model: Empirical policy (B,).
        radius: :math:`\epsilon \ge 0` in nats.
    """

    def __init__(self, model: ArrayLike, radius: float) -> None:
        super().__init__(model)
        self.radius = _radius(radius)

    def worst(self, cost: Array) -> Array:
        r""":math:`m_j = \kappa \hat\alpha_j / (c_j + \nu)`, with :math:`\nu` by bisection so that the radius is met.

        If the cheapest action was never seen and the radius leaves mass over, that action gets it.
        """
        if self.radius == 0:
            return self.model
        seen = self.model > 0
        model, gap = self.model[seen], cost[seen] - cost.min()
        scale = float(gap.max())
        worst = np.zeros_like(self.model)
        if scale <= 1e-15 * max(1.0, float(np.abs(cost).max())):
            return self.model.copy()

        def divergence(shift: float) -> float:
            return float((model * np.log(gap + shift)).sum() + np.log((model / (gap + shift)).sum()))

        if gap.min() > 1e-12 * scale and divergence(0.0) <= self.radius:
            worst[seen] = np.exp((model * np.log(gap)).sum() - self.radius) * model / gap
            worst[cost.argmin()] += 1 - worst.sum()
            return worst
        shift = _bisect(lambda value: divergence(value) - self.radius, scale)
        worst[seen] = model / (gap + shift)
        return np.asarray(worst / worst.sum())


def consistent_sets(counts: ArrayLike, kind: Callable[[Array, float], ConsistentSet]) -> list[ConsistentSet]:
    """The consistent set of every state from how often the target was seen to take every action there.

    Args:
        counts: (S, B), at least 0; a state whose row is 0 is free.
        kind: Makes a set from the empirical policy (B,) and the number of visits n.

    Returns:
        S sets.

    Raises:
        ValueError: If the counts are no table of finite numbers of at least 0.

    Example:
        >>> sets = consistent_sets([[3, 1], [0, 0]], lambda model, n: TotalVariation(model, root_radius(n)))
        >>> sets[0].radius, sets[1]
        (0.25, Free(n_actions=2))
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all() or (table < 0).any():
        raise ValueError(
            f"the counts have shape {table.shape}, but they must be a table (states, actions) of finite numbers >= 0"
        )
    visits = table.sum(1)
    return [kind(row / n, float(n)) if n > 0 else Free(table.shape[1]) for row, n in zip(table, visits, strict=True)]


def root_radius(count: float) -> float:
    r"""The count-aware radius :math:`\min(1, \frac{1}{2\sqrt n})` in total variation.

    It is a likely range and no certificate: in rock, paper, scissors against a uniform target the value within it is
    above the true one in more than half of all data sets. :func:`rl.exact.certificate.certified_sets` certifies.

    Example:
        >>> root_radius(100)
        0.05
    """
    return min(1.0, 0.5 / math.sqrt(count)) if count > 0 else 1.0


def linear_confidence(count: float, highest: float = 0.99, full_at: float = 10) -> float:
    r"""The confidence :math:`P_{max} \min(1, n / 10)` of a data-biased response.

    Args:
        count: Number of visits n.
        highest: :math:`P_{max}`.
        full_at: From how many visits on the confidence is the highest.

    Returns:
        p for :class:`Contamination`.

    Reference:
        Johanson and Bowling (2009), section 5, "linear".
    """
    return highest * min(1.0, count / full_at)


def polytope_rows(
    columns: int,
    equal: Array | None = None,
    equal_bound: Array | None = None,
    least: Array | None = None,
    least_bound: Array | None = None,
) -> Rows:
    """Rows with so many columns, and no row where nothing is given."""
    nothing, no_bound = np.zeros((0, columns)), np.zeros(0)
    return Rows(
        nothing if equal is None else equal,
        no_bound if equal_bound is None else equal_bound,
        nothing if least is None else least,
        no_bound if least_bound is None else least_bound,
    )


def check_policy(policy: ArrayLike, name: str, states: int, actions: int) -> Array:
    """A table of distributions over actions, one row a state.

    Args:
        policy: (S, actions), rows of numbers of at least 0 that sum to 1.
        name: Whose it is, for the message.
        states: S.
        actions: How many actions this side has.

    Returns:
        The policy as an array.

    Raises:
        ValueError: If the shape is another one or a row is no distribution.
    """
    table = np.asarray(policy, dtype=np.float64)
    if table.shape != (states, actions):
        raise ValueError(f"the {name} has shape {table.shape}, but it must be (states, actions) = {(states, actions)}")
    good = np.isfinite(table).all(1) & (table >= -_SUM_TOLERANCE).all(1) & (np.abs(table.sum(1) - 1) <= _SUM_TOLERANCE)
    if (wrong := np.flatnonzero(~good)).size:
        raise ValueError(
            f"the {name}'s row {wrong[0]} is {table[wrong[0]].tolist()}, but it must be probabilities that sum to 1; "
            "divide it by its sum"
        )
    return table


def _one_hot(cost: Array) -> Array:
    """All mass on the smallest entry."""
    chosen = np.zeros_like(cost)
    chosen[cost.argmin()] = 1
    return chosen


def _radius(radius: float) -> float:
    """A checked radius."""
    if not radius >= 0:
        raise ValueError(f"the radius of the consistent set is {radius}, but it must be at least 0")
    return float(radius)


def _bisect(excess: Callable[[float], float], scale: float) -> float:
    """The root of a decreasing function of a positive number, over magnitudes; on the side where excess <= 0."""
    low, high = np.log(scale) - 60, np.log(scale) + 60
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(float(np.exp(middle))) > 0 else (low, middle)
    return float(np.exp(high))
