"""Whether what is called guaranteed holds, and how much of the optimum it promises, in six small exact games.

A data set is so much play of a known target. From it come three promises for one's own best plan: within the radii
1/(2 sqrt n) in total variation, which are likely and certify nothing; within Weissman's radii, the former certificate;
and within simultaneous intervals for every action (``certified_sets``), the present one. A promise is broken where it
exceeds the exact value of its plan against the true target. ``guaranteed_overclaims`` is the largest share of broken
promises over the games, of 500 data sets each; with probability 0.95 a certificate may not be broken.

``certified_tightness`` is (certified value - value of the game) / (optimum - value of the game), averaged over data
sets and over the games that leave something to gain; the optimum is what the best plan is worth against the worst
target that plays like the true one wherever the recording can come. ``_before`` is Weissman's.

``inactive_coverage_error`` is the largest difference between the share of a target's steps in states that the data
never saw, as measured, and the same by hand over the steps that its players decide, in a game that players leave and in
one in which they wait for their turn. Cells are kept under ``runs/``, so an interrupted run goes on where it was.
Takes a few minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import write_results
from benchmarks.csp_certificate import recorded
from recipes.running.files import write_json
from rl.csp.dataset import record_target
from rl.csp.pairs import Coverage
from rl.csp.policies import ScriptedPolicy
from rl.csp.rollout import pairs_of, play
from rl.envs import vault_maze
from rl.envs.markov_game import Actions, BatchedGame, State
from rl.envs.spiel import record_counts, sequence_form
from rl.envs.spiel_game import SpielGame
from rl.exact import (
    ConsistentSet,
    Free,
    MarkovGame,
    Pinned,
    TotalVariation,
    certified_information_sets,
    certified_sets,
    consistent_sets,
    pinned_sets,
    robust_plan,
    root_radius,
    solve_extensive,
    weissman_radius,
)

Array = NDArray[np.float64]
CELLS = Path("runs/benchmarks/csp_words")
DATA_SETS, FAILURE, ROUNDING = 500, 0.05, 1e-9
NAMES = ("1/(2 sqrt n)", "weissman", "certified")


class Claim(NamedTuple):
    """What a plan is promised, and what it is worth against the true target."""

    promised: float
    true: float


class Case(NamedTuple):
    """A game with its target: the value of the game, the optimum, and the claims of one data set."""

    nash: float
    optimum: float
    claims: Callable[[np.random.Generator], Mapping[str, Claim]]


def tabular(game: MarkovGame, target: Array, record: Callable[[np.random.Generator], Array], reach: Array) -> Case:
    """A tabular game.

    Args:
        game: The game.
        target: Its target, (S, B).
        record: Draws the counts (S, B) of a data set.
        reach: Which states the recording can come to, boolean (S,).
    """
    S, _, B = game.reward.shape
    matter = (np.ptp(game.reward, axis=2) > 0).any(1) | (np.ptp(game.transition, axis=2) > 0).any((1, 2))

    def claims(rng: np.random.Generator) -> Mapping[str, Claim]:
        counts, found = record(rng), {}
        kinds: list[list[ConsistentSet]] = [
            consistent_sets(counts, lambda model, n: TotalVariation(model, root_radius(n))),
            consistent_sets(
                counts, lambda model, n: TotalVariation(model, weissman_radius(n, B, int(matter.sum()), FAILURE))
            ),
            certified_sets(game, counts, FAILURE),
        ]
        for name, sets in zip(NAMES, kinds, strict=True):
            solution = robust_plan(game, sets)
            found[name] = Claim(solution.value, game.value(solution.plan, target))
        return found

    pinned: list[ConsistentSet] = [Pinned(law) if seen else Free(B) for law, seen in zip(target, reach, strict=True)]
    return Case(robust_plan(game, [Free(B)] * S).value, robust_plan(game, pinned).value, claims)


def matrix(payoff: Array, target: Array, throws: int) -> Case:
    """A matrix game, as one state that ends after a throw."""
    A, B = payoff.shape
    transition, reward = np.zeros((2, A, B, 2)), np.zeros((2, A, B))
    transition[..., 1], reward[0] = 1, payoff
    game = MarkovGame(transition, reward, 0.5, np.array([1.0, 0.0]))

    def record(rng: np.random.Generator) -> Array:
        return np.stack([rng.multinomial(throws, target), np.zeros(B)])

    return tabular(game, np.stack([target, np.full(B, 1 / B)]), record, np.array([True, False]))


def played(game: MarkovGame, target: Array, episodes: int, steps: int) -> Callable[[np.random.Generator], Array]:
    """Counts of the target's actions in episodes against a uniform player."""
    S, A, B = game.reward.shape

    def record(rng: np.random.Generator) -> Array:
        counts, state = np.zeros((S, B)), rng.choice(S, episodes, p=game.start)
        for _ in range(steps):
            action = (target[state].cumsum(1) < rng.random((episodes, 1))).sum(1).clip(max=B - 1)
            np.add.at(counts, (state, action), 1)
            law = game.transition[state, rng.integers(A, size=episodes), action]
            state = (law.cumsum(1) < rng.random((episodes, 1))).sum(1).clip(max=S - 1)
        return counts

    return record


def throws_with_habits() -> tuple[MarkovGame, Array]:
    """Rock, paper, scissors against a target that looks at its own last throw; state 3 is the first round."""
    theirs = np.arange(3)
    transition = np.broadcast_to(np.eye(4)[theirs], (4, 3, 3, 4)).copy()
    reward = np.broadcast_to(np.array([0.0, 1.0, -1.0])[(theirs[:, None] - theirs) % 3], (4, 3, 3)).copy()
    target = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.1, 0.6], [1 / 3, 1 / 3, 1 / 3]])
    return MarkovGame(transition, reward, 0.9, np.eye(4)[3]), target


def poker(games: int) -> Case:
    """Kuhn poker against a target that calls and bets at fixed rates in seat 1."""
    game = sequence_form("kuhn_poker")
    target = {
        key: np.array([0.3, 0.7]) if key.startswith("2") else np.array([0.75, 0.25]) for key in game.information_sets[1]
    }
    plan = game.realisation(1, target)
    sets = len(game.information_sets[1])

    def claims(rng: np.random.Generator) -> Mapping[str, Claim]:
        counts = record_counts("kuhn_poker", ({}, target), games, 1, int(rng.integers(2**31)))

        def within(radius: Callable[[float], float]) -> dict[Any, ConsistentSet]:
            return {key: TotalVariation(row / row.sum(), radius(row.sum())) for key, row in counts.items()}

        kinds = [
            within(root_radius),
            within(lambda n: weissman_radius(n, 2, sets, FAILURE)),
            certified_information_sets(game, counts, FAILURE),
        ]
        solutions = [solve_extensive(game, kind) for kind in kinds]
        return {
            name: Claim(one.value, game.value(0, one.plan, plan)) for name, one in zip(NAMES, solutions, strict=True)
        }

    return Case(solve_extensive(game).value, solve_extensive(game, pinned_sets(target)).value, claims)


def cases() -> dict[str, Case]:
    """The six games."""
    rng = np.random.default_rng(1)
    rps = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    maze, guard = vault_maze.maze_game(), vault_maze.true_guard()
    habits, habitual = throws_with_habits()
    transition = rng.dirichlet(np.full(4, 0.3), (4, 3, 3))
    drawn = MarkovGame(transition, rng.uniform(-1, 1, (4, 3, 3)), 0.8, np.eye(4)[0])
    habit = rng.dirichlet(np.ones(3), 4)
    return {
        "rock, paper, scissors, uniform target, 300 throws": matrix(rps, np.full(3, 1 / 3), 300),
        "random 4 x 4 matrix, 300 throws": matrix(rng.normal(size=(4, 4)), rng.dirichlet(np.ones(4)), 300),
        "vault maze, 500 episodes": tabular(maze, guard, lambda r: recorded(r, 500), vault_maze.COVERED),
        "rock, paper, scissors with habits, 2000 rounds": tabular(
            habits, habitual, played(habits, habitual, 100, 20), np.ones(4, dtype=bool)
        ),
        "random game of 4 states, 2000 steps": tabular(
            drawn, habit, played(drawn, habit, 100, 20), np.ones(4, dtype=bool)
        ),
        "Kuhn poker, 500 games": poker(500),
    }


def cell(name: str, case: Case) -> list[dict[str, Any]]:
    """The promises of all data sets of one game, from their file when it is there."""
    path = CELLS / f"{''.join(c if c.isalnum() else '-' for c in name)}-{DATA_SETS}.json"
    if path.is_file():
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return rows
    rng = np.random.default_rng(0)
    found = [case.claims(rng) for _ in range(DATA_SETS)]
    gain, rows = case.optimum - case.nash, []
    for radii in NAMES:
        promised, true = np.array([claims[radii] for claims in found]).T
        rows.append(
            {
                "game": name,
                "radii": radii,
                "promised, mean": float(promised.mean()),
                "true, mean": float(true.mean()),
                "value of the game": case.nash,
                "optimum": case.optimum,
                "overclaims": float((promised > true + ROUNDING).mean()),
                "tightness": float((promised.mean() - case.nash) / gain) if gain > 1e-6 else None,
            }
        )
    write_json(path, rows)
    return rows


class Shrinking(BatchedGame):
    """Two players of the target for six steps; the second leaves after two. A player sees a number of eight a step."""

    seats, horizon = ("us", "them"), 6

    def __init__(self) -> None:
        self.players = {"us": 1, "them": 2}
        self.observation_dim = {"us": 2, "them": 2}
        self.n_actions, self.action_dim = {"us": 2, "them": 2}, {"us": 0, "them": 0}

    def reset(self, batch: int, generator: torch.Generator) -> State:
        """``time``, ``number`` and ``done``."""
        number = torch.randint(8, (batch, 2), generator=generator)
        return {"time": torch.zeros(batch, dtype=torch.int64), "number": number, "done": torch.zeros(batch).bool()}

    def active(self, state: State) -> dict[str, torch.Tensor]:
        """The second of them is there for two steps."""
        there = torch.ones(len(state["time"]), 2, dtype=torch.bool)
        there[:, 1] = state["time"] < 2
        return {"us": torch.ones(len(there), 1, dtype=torch.bool), "them": there}

    def observe(self, state: State) -> dict[str, torch.Tensor]:
        """Step and number, both from 1; zeros for who has left."""
        time = (1 + state["time"])[:, None].expand(-1, 2)
        seen = torch.stack([time, 1 + state["number"]], 2).float()
        return {"us": seen[:, :1], "them": seen * self.active(state)["them"][..., None]}

    def step(
        self, state: State, actions: Actions, generator: torch.Generator
    ) -> tuple[State, torch.Tensor, torch.Tensor]:
        """Draw new numbers."""
        time = state["time"] + ~state["done"]
        drawn = torch.randint(8, state["number"].shape, generator=generator)
        number = torch.where(state["done"][:, None], state["number"], drawn)
        return {"time": time, "number": number, "done": time >= 6}, torch.zeros(len(time)), time >= 6


def uniform(observations: torch.Tensor, mask: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
    """Any legal action."""
    weights = torch.ones(*observations.shape[:2], 2) if mask is None else mask.float()
    return torch.multinomial(weights.flatten(0, 1), 1, generator=generator).reshape(observations.shape[:2])


def coverage_rows() -> list[dict[str, Any]]:
    """Shares of the target's steps that the data never saw: measured, by hand, and with players that are not there."""
    rows = []
    for name, game, recorded_episodes in (("players leave", Shrinking(), 3), ("turns", SpielGame("leduc_poker"), 60)):
        seat = game.seats[1]
        data = record_target(game, uniform, uniform, recorded_episodes, torch.Generator().manual_seed(0))
        policies = (ScriptedPolicy(uniform), ScriptedPolicy(uniform))
        lived = play(game, policies, 500, torch.Generator().manual_seed(1))
        counts = Coverage(data.pairs().observations)(pairs_of(lived, seat).observations)
        # By hand, from what is seen alone: who is there never sees zeros in these games.
        known = {tuple(row) for row in data.observation.tolist() if any(row)}
        looks = [tuple(row) for row in lived.observations[seat][lived.live].flatten(0, 1).tolist()]
        there = [look for look in looks if any(look)]
        by_hand = float(np.mean([look not in known for look in there]))
        without = float(np.mean([look not in known for look in looks]))
        measured = float((counts < 1).double().mean())
        rows.append({"game": name, "measured": measured, "by hand": by_hand, "absent players counted": without})
    return rows


def main() -> None:
    """Run the cells that are missing, print, and write the figures."""
    rows = []
    for name, case in cases().items():
        rows += cell(name, case)
        for row in rows[-len(NAMES) :]:
            print(*(f"{x:.4f}" if isinstance(x, float) else x for x in row.values()), sep="  ", flush=True)
    coverage = coverage_rows()
    overclaims = {radii: max(row["overclaims"] for row in rows if row["radii"] == radii) for radii in NAMES}
    tightness = {
        radii: float(
            np.mean([row["tightness"] for row in rows if row["radii"] == radii and row["tightness"] is not None])
        )
        for radii in NAMES
    }
    figures = {
        "guaranteed_overclaims": overclaims["certified"],
        "guaranteed_overclaims_before": overclaims["1/(2 sqrt n)"],
        "certified_tightness": tightness["certified"],
        "certified_tightness_before": tightness["weissman"],
        "inactive_coverage_error": max(abs(row["measured"] - row["by hand"]) for row in coverage),
    }
    print(coverage, figures)
    print(write_results("csp_words", figures, {"promises": rows, "never seen": coverage}, DATA_SETS))


if __name__ == "__main__":
    main()
