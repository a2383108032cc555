"""How often the certificate of the vault maze promises more than the plan gets, over 200 data sets at each of 4 sizes.

A data set is so many episodes of the guard while we go left, push and exit; the certificate is to hold with probability
0.95. A violation is a plan whose certified value exceeds its exact value against the true guard. ``max_violation_rate``
is the highest share over the sizes; beside it stands the share for plans that trust the empirical guard as it is
("pinned"), whose claim is compared with the same value. The stricter comparison, with the worst guard that agrees with
infinite data, is in the table. Takes about two minutes.
"""

import numpy as np

from benchmarks.common import write_results
from rl.envs import vault_maze
from rl.exact import Pinned, certify, consistent_sets, robust_plan, worst_case

SIZES = (30, 100, 1000, 10_000)
DATA_SETS = 200
ROUNDING = 1e-9


def recorded(rng: np.random.Generator, episodes: int) -> np.ndarray:
    """Counts (7, 2) of the guard's actions in so many episodes of the behaviour."""
    guard, table = vault_maze.true_guard(), np.zeros((7, 2))
    gate = rng.binomial(episodes, guard[1, 0])
    table[1] = gate, episodes - gate
    for node, visits in ((0, episodes), (3, gate)):
        idle = rng.binomial(visits, guard[node, 0])
        table[node] = idle, visits - idle
    return table


def main() -> None:
    """Certify, compare, print and write the figures."""
    game, guard, pinned = vault_maze.maze_game(), vault_maze.true_guard(), vault_maze.pinned_guard()
    rng, rows = np.random.default_rng(0), []
    for size in SIZES:
        found: dict[str, list[tuple[float, float, float]]] = {"certified": [], "fixed count": [], "pinned": []}
        for _ in range(DATA_SETS):
            counts = recorded(rng, size)
            solutions = {
                "certified": certify(game, counts).solution,
                "fixed count": certify(game, counts, any_count=False).solution,
                "pinned": robust_plan(game, consistent_sets(counts, lambda model, _: Pinned(model))),
            }
            for name, solution in solutions.items():
                worst = worst_case(game, solution.plan, pinned).value
                found[name].append((solution.value, game.value(solution.plan, guard), worst))
        for name, values in found.items():
            claimed, true, worst_value = np.array(values).T
            rows.append(
                {
                    "episodes": size,
                    "radii": name,
                    "mean claimed": float(claimed.mean()),
                    "mean true": float(true.mean()),
                    "violation rate": float((claimed > true + ROUNDING).mean()),
                    "above the worst consistent value": float((claimed > worst_value + ROUNDING).mean()),
                }
            )
            print(*rows[-1].values(), sep="  ", flush=True)
    figures = {
        "max_violation_rate": max(row["violation rate"] for row in rows if row["radii"] == "certified"),
        "max_violation_rate_of_the_worst_value": max(
            row["above the worst consistent value"] for row in rows if row["radii"] == "certified"
        ),
        "max_violation_rate_pinned": max(
            row["above the worst consistent value"] for row in rows if row["radii"] == "pinned"
        ),
    }
    print(figures)
    print(write_results("csp_certificate", figures, {"data sets": rows}, DATA_SETS))


if __name__ == "__main__":
    main()
