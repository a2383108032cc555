"""Exact solvers against known values: the vault maze's table, Kuhn and Leduc poker, the bound that is attained.

``max_abs_error_maze`` is the largest difference between the maze's table, worked out by hand from its rewards (three
values of ten plans), and what robust dynamic programming finds. ``kuhn`` and ``leduc`` are player 0's values by the
sequence-form linear programme, and the ``nash_conv`` figures what OpenSpiel's own best responses gain on our two plans.
``coupling_bound_error`` is the distance of the performance bound from the instance that attains it. Deterministic;
takes seconds.
"""

import numpy as np

from benchmarks.common import write_results
from rl.envs import vault_maze
from rl.envs.spiel import best_response_values, sequence_form
from rl.exact import (
    Contamination,
    Free,
    MarkovGame,
    best_response,
    linear_confidence,
    robust_plan,
    solve_extensive,
    worst_case,
)
from rl.exact.bounds import coupling_bound

G = 0.99
DOOR = (0.3,) * 3
BALCONY = G**2 * 0.8  # what reaches the gate, discounted
LEFT, RIGHT = -0.2 * G, -G
# Value against the true guard, against the worst guard that agrees with infinite data, and against anyone.
TABLE = {
    "conservative": (LEFT + BALCONY * G * 1.35, LEFT + BALCONY * G * 1.2, RIGHT),
    "equilibrium": DOOR,
    "dataset only": (LEFT + BALCONY, LEFT + BALCONY, RIGHT),
    "BC-First, corridor": (LEFT - 2 * BALCONY * G, LEFT - 2 * BALCONY * G, -2 * G**3),
    "BC-First, uniform": (LEFT + BALCONY * G * 1.35, LEFT + BALCONY * G * 1.2, RIGHT),
    "RNR 0.3": DOOR,
    "RNR 0.5": DOOR,
    "RNR 0.7": (RIGHT,) * 3,
    "RNR 0.9": (LEFT - 2 * BALCONY * G, LEFT - 2 * BALCONY * G, -2 * G**3),
    "DBR 0.99": (LEFT + BALCONY * G * 1.35, LEFT + BALCONY * G * 1.2, RIGHT),
}


def maze_rows() -> list[dict[str, float | str]]:
    """The ten plans of the table with their three values, found and expected."""
    game, guard, seen = vault_maze.maze_game(), vault_maze.true_guard(), vault_maze.COVERED
    pinned, anyone = vault_maze.pinned_guard(), [Free(2)] * len(guard)
    corridor = np.where(seen[:, None], guard, guard[1])
    plans = {
        "conservative": robust_plan(game, pinned).plan,
        "equilibrium": robust_plan(game, anyone).plan,
        "dataset only": vault_maze.behaviour(),
        "BC-First, corridor": best_response(game, corridor).plan,
        "BC-First, uniform": best_response(game, np.where(seen[:, None], guard, 0.5)).plan,
        **{f"RNR {p}": robust_plan(game, [Contamination(m, p) for m in corridor]).plan for p in (0.3, 0.5, 0.7, 0.9)},
        "DBR 0.99": robust_plan(
            game, [Contamination(m, linear_confidence(1000.0 * s)) for m, s in zip(corridor, seen, strict=True)]
        ).plan,
    }
    rows: list[dict[str, float | str]] = []
    for name, plan in plans.items():
        found = (game.value(plan, guard), worst_case(game, plan, pinned).value, worst_case(game, plan, anyone).value)
        error = max(abs(a - b) for a, b in zip(found, TABLE[name], strict=True))
        rows.append(
            {"plan": name, "true": found[0], "worst consistent": found[1], "worst of anyone": found[2], "error": error}
        )
    return rows


def coupling_error() -> float:
    """The largest distance of the bound from the gap of the instance that attains it."""
    transition = np.zeros((2, 1, 2, 2))
    transition[0, 0, 0, 0] = transition[0, 0, 1, 1] = transition[1, 0, :, 1] = 1
    reward, plan = np.zeros((2, 1, 2)), np.ones((2, 1))
    reward[0, 0, 0] = 1
    errors = []
    for discount, distance in ((0.9, 0.1), (0.99, 0.05), (0.5, 0.5)):
        game = MarkovGame(transition, reward, discount, np.array([1.0, 0.0]))
        target = np.array([[1 - distance, distance], [1.0, 0.0]])
        gap = game.value(plan, np.array([[1.0, 0.0], [1.0, 0.0]])) - game.value(plan, target)
        errors.append(abs(gap - coupling_bound(1.0, distance, discount)))
    return max(errors)


def main() -> None:
    """Solve, compare, print and write the figures."""
    maze = maze_rows()
    figures = {"max_abs_error_maze": max(float(row["error"]) for row in maze), "coupling_bound_error": coupling_error()}
    for figure, name in (("kuhn", "kuhn_poker"), ("leduc", "leduc_poker")):
        game = sequence_form(name)
        plans = [solve_extensive(game, seat=seat) for seat in (0, 1)]
        behaviours = (game.behaviour(0, plans[0].plan), game.behaviour(1, plans[1].plan))
        figures[figure] = plans[0].value
        figures[f"nash_conv_{figure}"] = sum(best_response_values(name, game, behaviours))
    for row in maze:
        print(*row.values(), sep="  ")
    print(figures)
    print(write_results("csp_golden", figures, {"vault maze": maze}, 1))


if __name__ == "__main__":
    main()
