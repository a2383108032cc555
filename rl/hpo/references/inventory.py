"""Exact optimum, lower bound and heuristics of inventory with a fixed ordering cost, Poisson demand and backlog."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.stats import poisson

Array = NDArray[np.float64]


class SS(NamedTuple):
    """An (s, S) policy: at a position of ``reorder`` or below, order up to ``up_to``."""

    reorder: int
    up_to: int
    cost: float
    """Average cost a period."""
    frequency: float
    """Orders a period."""


class PeriodicPolicy(NamedTuple):
    """(R, S): every ``review`` periods order every item up to its level; ``cost`` is per item and period."""

    review: int
    levels: NDArray[np.int64]
    cost: float


class QuantityPolicy(NamedTuple):
    """(Q, S): when ``quantity`` in all has been demanded since the last order, order every item up to its level."""

    quantity: float
    levels: NDArray[np.int64]
    cost: float
    """Per item and period."""


@dataclass(frozen=True)
class Item:
    """One item with Poisson demand and backlog.

    Attributes:
        mean: Mean demand in a period, above 0.
        holding: Cost of a unit left over, for a period.
        shortage: Cost of a missing unit, for a period.
        fixed_cost: Cost of an order.
        lead_time: Periods after which an order can serve demand.
    """

    mean: float
    holding: float
    shortage: float
    fixed_cost: float
    lead_time: int = 0

    def period_cost(self, position: NDArray[np.int64] | int) -> Array:
        r"""Expected cost of the period a lead time later.

        .. math:: G(y) = E[h (y - D)^+ + b (D - y)^+], \qquad D \sim Poisson((L + 1) \mu)

        Args:
            position: y, whole numbers of any sign.

        Returns:
            G at every position.
        """
        return expected_cost(self, self.lead_time + 1, position)


def expected_cost(item: Item, periods: int, level: NDArray[np.int64] | int) -> Array:
    r"""Expected holding and shortage cost when ``level`` has met the demand of some periods.

    With :math:`\lambda` the mean demand of those periods, :math:`E (y - D)^+ = y F(y) - \lambda F(y - 1)`.

    Args:
        item: The item.
        periods: How many periods of demand.
        level: y, whole numbers.

    Returns:
        :math:`E[h (y - D)^+ + b (D - y)^+]` at every level.
    """
    mean = item.mean * periods
    left = level * poisson.cdf(level, mean) - mean * poisson.cdf(level - 1, mean)
    cost: Array = item.holding * left + item.shortage * (left + mean - level)
    return cost


class _Renewal:
    """Expected visits of the positions below S between two orders, and with them the cost of any (s, S)."""

    def __init__(self, item: Item, lowest: int, highest: int) -> None:
        self.fixed_cost, self.lowest, size = item.fixed_cost, lowest, highest - lowest
        demand = poisson.pmf(np.arange(size + 1), item.mean)
        self.costs = item.period_cost(np.arange(lowest, highest + 1))
        self.visits = np.zeros(size)
        self.visits[0] = 1 / (1 - demand[0])
        for j in range(1, size):
            self.visits[j] = demand[1 : j + 1] @ self.visits[:j][::-1] / (1 - demand[0])
        self.length = np.concatenate([[0], np.cumsum(self.visits)])

    def cost(self, position: int) -> float:
        return float(self.costs[position - self.lowest])

    def policy(self, reorder: int, up_to: int) -> SS:
        size = up_to - reorder
        costs = self.costs[reorder + 1 - self.lowest : up_to + 1 - self.lowest][::-1]
        cost = (self.fixed_cost + self.visits[:size] @ costs) / self.length[size]
        return SS(reorder, up_to, float(cost), float(1 / self.length[size]))


def evaluate_ss(item: Item, reorder: int, up_to: int) -> SS:
    r"""Average cost of an (s, S) policy by renewal theory.

    .. math:: c(s, S) = \frac{K + \sum_{j=0}^{S - s - 1} m(j)\, G(S - j)}{\sum_{j=0}^{S - s - 1} m(j)}

    with :math:`m(j)` the expected periods in which the position is :math:`S - j` between two orders.

    Args:
        item: The item.
        reorder: s.
        up_to: S, above s.

    Returns:
        The policy with its cost and its frequency of orders.

    Raises:
        ValueError: If S is not above s.
    """
    if up_to <= reorder:
        raise ValueError(f"the level is {up_to} and the reorder point {reorder}, but the level must be the higher one")
    return _Renewal(item, reorder, up_to).policy(reorder, up_to)


def optimal_ss(item: Item) -> SS:
    """The best policy of all, which is an (s, S) policy, by the search of Zheng and Federgruen.

    Args:
        item: The item.

    Returns:
        The policy with its cost and its frequency of orders.

    Example:
        >>> policy = optimal_ss(Item(mean=10, holding=1, shortage=9, fixed_cost=64, lead_time=2))
        >>> policy.reorder, policy.up_to, round(policy.cost, 4)
        (26, 62, 37.0644)

    Reference:
        Zheng and Federgruen (1991), "Finding optimal (s, S) policies is about as simple as evaluating a single policy",
        Operations Research 39(4).
    """
    cheapest = int(poisson.ppf(item.shortage / (item.shortage + item.holding), item.mean * (item.lead_time + 1)))
    reach = 8  # beyond it, either way, a period costs more than ordering in every period
    while item.period_cost(cheapest + reach * np.array([-1, 1])).min() <= item.period_cost(cheapest) + item.fixed_cost:
        reach *= 2
    renewal = _Renewal(item, cheapest - reach - 1, cheapest + reach)
    reorder = cheapest - 1
    while renewal.policy(reorder, cheapest).cost > renewal.cost(reorder):
        reorder -= 1
    best = renewal.policy(reorder, cheapest)
    level = cheapest + 1
    while renewal.cost(level) <= best.cost:
        if renewal.policy(reorder, level).cost < best.cost:
            while renewal.policy(reorder, level).cost <= renewal.cost(reorder + 1):
                reorder += 1
            best = renewal.policy(reorder, level)
        level += 1
    return best


def value_iteration(item: Item, tolerance: float = 1e-7, max_iterations: int = 100_000) -> SS:
    r"""The best policy by relative value iteration, with orders of any size: a check of :func:`optimal_ss`.

    On the position y after ordering,

    .. math:: v(y) = \min\big( w(y),\, K + \min_{y' > y} w(y') \big), \qquad w(y) = G(y) + E\, v(y - D)

    Args:
        item: The item.
        tolerance: Span of the last change of v.
        max_iterations: Sweeps before it gives up.

    Returns:
        The highest position that orders, the level it orders up to, and the average cost; the frequency is of that
        (s, S) policy.

    Raises:
        RuntimeError: If it has not converged.
    """
    demand = poisson.pmf(np.arange(int(poisson.isf(1e-13, item.mean)) + 1), item.mean)
    middle, spread = item.mean * (item.lead_time + 1), len(demand)
    positions = np.arange(int(middle - 3 * spread), int(middle + item.fixed_cost / item.holding + 3 * spread))
    cost, value = item.period_cost(positions), np.zeros(len(positions))
    for _ in range(max_iterations):
        padded = np.concatenate([np.full(len(demand) - 1, value[0]), value])
        waiting = cost + np.convolve(padded, demand, mode="valid")
        above = np.concatenate([np.minimum.accumulate(waiting[::-1])[::-1][1:], [np.inf]])
        change = np.minimum(waiting, item.fixed_cost + above) - value
        value = value + change - change[0]
        if np.ptp(change) < tolerance:
            orders = item.fixed_cost + above < waiting - 1e-9
            reorder, up_to = int(positions[orders].max()), int(positions[waiting.argmin()])
            average = float(change.max() + change.min()) / 2
            return SS(reorder, up_to, average, evaluate_ss(item, reorder, up_to).frequency)
    raise RuntimeError(f"value iteration has not converged to {tolerance} in {max_iterations} sweeps; allow more")


def joint_lower_bound(items: Sequence[Item], fixed_cost: float, tolerance: float = 1e-4) -> float:
    r"""A cost that no joint replenishment policy can beat, per item and period.

    If the fixed costs :math:`k_i \ge 0` of separate items sum to K, then
    :math:`K 1\{any\} \ge \sum_i k_i 1\{i\}`, so that :math:`\sum_i c_i^*(k_i)` is a lower bound for every split. Each
    :math:`c_i^*` is concave with slope the frequency of orders; cutting planes find the best split.

    Args:
        items: The items; their own ``fixed_cost`` is ignored.
        fixed_cost: K, of any order, whatever is in it.
        tolerance: How much higher, per item, the bound of a better split may be.

    Returns:
        The bound, per item and period.

    Reference:
        Atkins and Iyogun (1988), "Periodic versus can-order policies for coordinated multi-item inventory systems",
        Management Science 34(6).
    """
    count = len(items)
    split = np.full(count, fixed_cost / count)
    best, rows, limits = -math.inf, [], []
    for _ in range(100):
        policies = [
            optimal_ss(Item(item.mean, item.holding, item.shortage, float(share), item.lead_time))
            for item, share in zip(items, split, strict=True)
        ]
        best = max(best, sum(policy.cost for policy in policies))
        for i, policy in enumerate(policies):  # value_i - frequency * k_i <= cost - frequency * split_i
            row = np.zeros(2 * count)
            row[i], row[count + i] = 1.0, -policy.frequency
            rows.append(row)
            limits.append(policy.cost - policy.frequency * split[i])
        total = np.concatenate([np.zeros(count), np.ones(count)])[None]
        objective = np.concatenate([-np.ones(count), np.zeros(count)])
        plan = linprog(objective, np.array(rows), np.array(limits), total, [fixed_cost], bounds=(0, None))
        if -plan.fun - best < tolerance * count:
            break
        split = plan.x[count:]
    return best / count


def periodic_policy(items: Sequence[Item], fixed_cost: float, reviews: Sequence[int] = range(1, 16)) -> PeriodicPolicy:
    """The best (R, S) policy, exactly: an order that arrives serves the next R periods.

    Args:
        items: The items, of one lead time.
        fixed_cost: Of any order.
        reviews: The R to try.

    Returns:
        The policy; its cost is per item and period.
    """
    best: PeriodicPolicy | None = None
    for review in reviews:
        cost, levels = fixed_cost / review / len(items), []
        for item in items:
            waits = range(item.lead_time + 1, item.lead_time + 1 + review)
            grid = np.arange(int(poisson.isf(1e-9, item.mean * waits[-1])) + 1)
            means = np.mean([expected_cost(item, wait, grid) for wait in waits], axis=0)
            levels.append(int(grid[means.argmin()]))
            cost += float(means.min()) / len(items)
        if best is None or cost < best.cost:
            best = PeriodicPolicy(review, np.array(levels), cost)
    if best is None:
        raise ValueError(
            "reviews is empty, but at least one period of review must be tried; give a few, as in range(1, 16)"
        )
    return best


def quantity_policy(
    items: Sequence[Item],
    fixed_cost: float,
    ratios: Sequence[float] = tuple(np.arange(2, 9.01, 0.5)),
    episodes: int = 400,
    periods: int = 400,
    warm_up: int = 50,
    seed: int = 0,
) -> QuantityPolicy:
    """The best (Q, S) policy by simulation, with the level of an item the right quantile of what it must cover.

    Args:
        items: The items, of one lead time.
        fixed_cost: Of any order.
        ratios: The Q to try, in mean demands of a period.
        episodes: Simulated in parallel, with the same demand for every Q.
        periods: Of an episode.
        warm_up: First periods that do not count.
        seed: Of the demand.

    Returns:
        The policy; its cost is per item and period.
    """
    means = np.array([item.mean for item in items])
    wait = items[0].lead_time + 1
    rng = np.random.default_rng(seed)
    demand = rng.poisson(means, size=(episodes, periods + wait, len(items)))
    total = np.concatenate([np.zeros((episodes, 1, len(items))), demand.cumsum(1)], axis=1)
    everything, episode = total.sum(2), np.arange(episodes)
    best: QuantityPolicy | None = None
    for quantity in np.array(ratios) * means.sum():
        last, governing, orders = np.zeros(episodes, int), np.zeros((episodes, periods), int), 0
        for t in range(periods):
            due = everything[:, t] - everything[episode, last] >= quantity
            last = np.where(due, t, last)
            governing[:, t] = last
            orders += int(due.sum()) if t >= warm_up else 0
        counted = np.arange(warm_up, periods)
        cost = fixed_cost * orders / (episodes * len(counted)) / len(items)
        levels = []
        for i, item in enumerate(items):  # what was demanded since the order that governs the stock of t + lead time
            covered = total[:, counted + wait, i] - total[episode[:, None], governing[:, warm_up:], i]
            level = round(float(np.quantile(covered, item.shortage / (item.shortage + item.holding))))
            levels.append(level)
            left = level - covered
            cost += float(np.mean(np.maximum(item.holding * left, -item.shortage * left))) / len(items)
        if best is None or cost < best.cost:
            best = QuantityPolicy(float(quantity), np.array(levels), cost)
    if best is None:
        raise ValueError("ratios is empty, but at least one quantity must be tried; give a few, as in (3.0, 3.5, 4.0)")
    return best
