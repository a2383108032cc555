"""Small problems against dynamic programming: a thermostat of three modes, a gearbox of five, lot sizing of two items.

Each has an optimum that is found on a grid and played on the same test episodes. ``worst_gap`` is the largest, over the
problems, of the mean gap over 3 seeds of what `rl.hpo.advise` advises; ``<problem>_hpo`` and ``<problem>_score`` are
the gaps of HPO and of hybrid PPO in as many simulator steps. Every training is a cell under runs/benchmarks;
``--only PART`` runs the cells whose name contains PART and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import poisson
from torch import Tensor

from benchmarks.common import write_results
from benchmarks.hpo_cells import cell, rows_of
from recipes.running.intervals import interval
from rl.envs.hybrid import Decide, HybridSimulator, Noise, State, play, reported_cost
from rl.envs.lot_sizing import LotSizing
from rl.hpo.advice import SCORE, advise
from rl.hpo.known_optima import BestKnown

SEEDS = 3
UPDATES, BATCH = 1600, 256
PARTS = 81  # of the continuous action, on the grid
POINTS = 401  # of the state
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(9)  # for normal noise
WEIGHTS = WEIGHTS / WEIGHTS.sum()


class OneNumber(HybridSimulator):
    """A state of one number and the last mode, and an action of one number in [0, 1]; the noise is normal."""

    action_dim, report = 1, "total"
    reach: tuple[float, float]
    start: tuple[float, float]

    def move(self, x: Tensor, last: Tensor, mode: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The next state and the cost, of any shape."""
        raise NotImplementedError

    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """A normal number a step, and where an episode starts."""
        low, high = self.start
        return {
            "noise": torch.randn(batch, self.horizon, generator=generator).to(self.device, self.dtype),
            "start": (low + (high - low) * torch.rand(batch, generator=generator)).to(self.device, self.dtype),
        }

    def reset(self, noise: Noise) -> State:
        """Mode 0 was the last."""
        return {"x": noise["start"], "last": torch.zeros_like(noise["start"], dtype=torch.long)}

    def observe(self, state: State, t: int) -> Tensor:
        """Where in its reach the state is, the last mode one-hot, and the time."""
        low, high = self.reach
        place = (2 * (state["x"] - low) / (high - low) - 1)[:, None]
        modes = torch.nn.functional.one_hot(state["last"], self.n_modes).to(place)
        return torch.cat([2 * place, modes, torch.full_like(place, 2 * t / self.horizon - 1)], 1)

    def action_map(self, raw: Tensor, state: State) -> Tensor:
        """Between 0 and 1, both of which are reached: with a sigmoid the heating is never quite off."""
        return (torch.nn.functional.softplus(8 * raw) / 8).clamp(max=1)

    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """One step of :meth:`move`."""
        following, cost = self.move(state["x"], state["last"], mode, action[:, 0], noise["noise"][:, t])
        return {"x": following, "last": mode}, cost


class Thermostat(OneNumber):
    """Off, heat or cool, and how hard; a change of the mode costs, and the outside is cold."""

    n_modes, observation_dim, horizon, reach, start = 3, 5, 12, (-6.0, 6.0), (-2.0, 2.0)

    def move(self, x: Tensor, last: Tensor, mode: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Degrees from what is wanted."""
        sign = x.new_tensor([0.0, 1.0, -1.0])[mode]
        power = 3 * action * sign
        following = 0.9 * x - 0.4 + power + 0.4 * noise
        return following, x.square() + 0.5 * power.abs() + 0.8 * (mode != last)


class Gearbox(OneNumber):
    """Five gears and a throttle, to reach a speed against hills; torque falls off the best engine speed."""

    n_modes, observation_dim, horizon, reach, start = 5, 7, 15, (-5.0, 45.0), (0.0, 10.0)

    def move(self, x: Tensor, last: Tensor, mode: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Metres a second."""
        ratio = x.new_tensor([3.8, 2.4, 1.6, 1.2, 0.9])[mode]
        turns = ratio * x / 28
        force = 2.2 * ratio * action * torch.exp(-((turns - 1) / 0.5).square())
        following = x + force - 0.012 * x - 0.0005 * x.abs() * x + 0.3 * noise
        return following, ((following - 28) / 10).square() + 0.2 * action * turns.abs() + 0.3 * (mode != last)


class TwoItems(LotSizing):
    """Two items on one machine for eight periods, of which the last is the last; the policy sees the time."""

    endless, discount, report = False, 1.0, "total"

    def __init__(self) -> None:
        super().__init__([4.0, 3.0], 12.0, [1.0, 1.2], [6.0, 7.0], setup_cost=8.0, setup_time=1.0, horizon=8)
        self.report_from, self.buffer, self.observation_dim = 0, 0, 3

    def observe(self, state: State, t: int) -> Tensor:
        """Stock in mean demands, and the time."""
        seen = super().observe(state, t)
        return torch.cat([seen, torch.full_like(seen[:, :1], 2 * t / self.horizon - 1)], 1)

    def seen_state(self, observation: Tensor) -> State:
        """The stock."""
        return super().seen_state(observation[:, :-1])


def one_number_optimum(simulator: OneNumber) -> Decide:
    """Backward induction over a grid of states, decided by one step of lookahead at the states themselves."""
    states = torch.linspace(*simulator.reach, POINTS, dtype=torch.float64)
    nodes, weights = torch.tensor(NODES), torch.tensor(WEIGHTS)
    parts = torch.linspace(0, 1, PARTS, dtype=torch.float64)

    def values(x: Tensor, last: Tensor, later: Tensor) -> Tensor:
        """Value of every mode and part of it, (batch, J, PARTS), with the table of what follows (J, POINTS)."""
        mode = torch.arange(simulator.n_modes)[None, :, None, None]
        shape = (len(x), simulator.n_modes, PARTS, len(nodes))
        wide = (x[:, None, None, None], last[:, None, None, None], mode, parts[None, None, :, None], nodes)
        following, cost = simulator.move(*(each.expand(shape) for each in wide))
        low, high = simulator.reach
        place = ((following - low) / (high - low) * (POINTS - 1)).clamp(0, POINTS - 1 - 1e-9)
        left = place.long()
        table = later.flatten()
        index = mode * POINTS + left
        value = table[index] + (place - left) * (table[index + 1] - table[index])
        return ((cost + value) * weights).sum(-1)

    tables = [torch.zeros(simulator.n_modes, POINTS, dtype=torch.float64)]
    for _ in range(simulator.horizon):
        rows = [
            values(states, torch.full((POINTS,), last), tables[0]).flatten(1).amin(1)
            for last in range(simulator.n_modes)
        ]
        tables.insert(0, torch.stack(rows))

    def decide(state: State, t: int) -> tuple[Tensor, Tensor]:
        chunks = zip(state["x"].double().split(256), state["last"].split(256), strict=True)
        best = torch.cat([values(x, last, tables[t + 1]).flatten(1).argmin(1) for x, last in chunks])
        return best // PARTS, parts[best % PARTS].to(state["x"])[:, None]

    return decide


def lots_optimum(simulator: LotSizing, low: int = -40, high: int = 40) -> Decide:
    """Backward induction over whole stocks of both items and whole quantities, which is where the kinks are."""
    levels = np.arange(low, high + 1)
    size = len(levels)
    means, capacity = simulator.mean.tolist(), int(simulator.capacity)
    pmfs = [poisson.pmf(np.arange(31), mean) for mean in means]
    rates = zip(simulator.holding.tolist(), simulator.shortage.tolist(), strict=True)
    carry = [h * levels.clip(0) + b * (-levels).clip(0) for h, b in rates]
    setup, times = simulator.setup_cost.tolist(), simulator.setup_time.tolist()
    plans = []
    for on in itertools.product((0, 1), repeat=2):
        room = capacity - int(sum(time * x for time, x in zip(times, on, strict=True)))
        for first, second in itertools.product(range(room * on[0] + 1), range(room * on[1] + 1)):
            if first + second <= room:
                plans.append((on, first, second, sum(k * x for k, x in zip(setup, on, strict=True))))

    def expected(table: np.ndarray) -> np.ndarray:
        """Of the table after demand, by the stock before it; stocks below the grid are at its edge."""
        for axis, pmf in enumerate(pmfs):
            index = np.clip(np.arange(size)[:, None] - np.arange(31), 0, size - 1)
            table = np.moveaxis((np.moveaxis(table, axis, 0)[index] * pmf[:, None]).sum(1), 0, axis)
        return table

    later, policies = np.zeros((size, size)), []
    for _ in range(simulator.horizon):
        ahead = expected(later + carry[0][:, None] + carry[1][None])
        best, chosen = np.full((size, size), np.inf), np.zeros((size, size), dtype=int)
        for number, (_, first, second, fixed) in enumerate(plans):
            rows, columns = (
                np.clip(np.arange(size) + first, 0, size - 1),
                np.clip(np.arange(size) + second, 0, size - 1),
            )
            value = fixed + ahead[rows][:, columns]
            better = value < best
            best, chosen = np.where(better, value, best), np.where(better, number, chosen)
        later = best
        policies.insert(0, torch.from_numpy(chosen))
    modes = torch.tensor([plan[0] for plan in plans])
    amounts = torch.tensor([plan[1:3] for plan in plans], dtype=torch.float64)

    def decide(state: State, t: int) -> tuple[Tensor, Tensor]:
        place = (state["stock"].round().long() - low).clamp(0, size - 1)
        plan = policies[t][place[:, 0], place[:, 1]]
        return modes[plan], amounts[plan].to(state["stock"])

    return decide


PROBLEMS: dict[str, tuple[type[HybridSimulator], Callable[[Any], Decide]]] = {
    "thermostat": (Thermostat, one_number_optimum),
    "gearbox": (Gearbox, one_number_optimum),
    "lots": (TwoItems, lots_optimum),
}
Method = Literal["hpo", "score"]
TRAINING: dict[Method, dict[str, Any]] = {"hpo": {"entropy_start": 0.1, "max_norm": 0.5}, "score": dict(SCORE)}


def train(name: str, method: Method, seed: int, updates: int) -> dict[str, Any]:
    """The row of one cell."""
    kind, solve = PROBLEMS[name]

    def optimum(simulator: HybridSimulator, noise: Noise) -> BestKnown:
        with torch.no_grad():
            cost = float(reported_cost(simulator, play(simulator, solve(simulator), noise)).double().mean())
        return BestKnown("optimum", cost, {})

    training = TRAINING[method]
    path = f"benchmarks.hpo_small.{kind.__name__}"
    row = cell(
        "hpo_small", f"{name} {method}", path, {}, training, seed=seed, updates=updates, batch=BATCH, known=optimum
    )
    return {**row, "problem": name, "method": method}


def main() -> None:
    """Train what is missing, then write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run only the cells whose name contains this")
    parser.add_argument("--updates", type=int, default=UPDATES, help="other than the full number: a trial")
    options = parser.parse_args()
    methods: tuple[Method, ...] = ("hpo", "score")
    rows = [
        train(name, method, seed, options.updates)
        for name in PROBLEMS
        for method in methods
        for seed in range(SEEDS)
        if options.only in f"{name} {method}"
    ]
    if options.only or options.updates != UPDATES:
        return
    figures: dict[str, Any] = {}
    advised = {}
    for name, (kind, _) in PROBLEMS.items():
        for method in methods:
            mine = [row["gap"] for row in rows if (row["problem"], row["method"]) == (name, method)]
            figures[f"{name}_{method}"] = interval(mine)
        method = "score" if advise(kind()).options["estimator"] == "score" else "hpo"
        advised[name] = figures[f"{name}_{method}"]["value"]
    figures["worst_gap"] = max(advised.values())
    print(write_results("hpo_small", figures, {"cells": rows_of(rows)}, SEEDS))


if __name__ == "__main__":
    main()
