"""Card games from recorded games: conservative adaptation, RNR and DBR, each solved and scored exactly.

The target of a run is 0.4 of an equilibrium plus 0.6 of a player who folds too often, in seat 1. ``claimed`` is what a
method's own model of the target promises, ``certified`` what the data guarantee its plan with probability 0.95,
``true`` the value against the target, ``worst`` the value against the worst policy that plays like the target wherever
the data went (which the data alone do not tell), ``exploitability`` what the plan gives away against anyone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recipes.csp.figures import FRONTIER_TOLD, draw_policies
from recipes.csp.words import deploy, file_name, glossary, row_name
from recipes.running.environment import process_rank
from rl.exact.certificate import certified_information_sets
from rl.exact.extensive import (
    ExtensiveSolution,
    SequenceGame,
    pinned_sets,
    restricted_nash,
    solve_extensive,
    worst_answer,
)
from rl.exact.sets import Contamination, Pinned, TotalVariation, linear_confidence

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from recipes.csp.schema import Recipe
    from recipes.running.folder import RunFolder
    from recipes.running.page import Row

Plays = Mapping[Any, NDArray[np.float64]]  # by information set
SCALE = 0.4  # of the default radius SCALE / sqrt(n); see benchmarks/csp_leduc.py for how it was chosen
FOLD, CALL = 0, 1


def target_behaviour(game: SequenceGame) -> dict[Hashable, NDArray[np.float64]]:
    """The true target in seat 1."""
    equilibrium = game.behaviour(1, solve_extensive(game, seat=1).plan)
    weights = {
        key: np.array([3.0 if action == FOLD else 1.0 for action in actions])
        for key, (_, _, actions) in game.information_sets[1].items()
    }
    return {key: 0.4 * law + 0.6 * weights[key] / weights[key].sum() for key, law in equilibrium.items()}


def our_behaviour(game: SequenceGame, kind: str) -> dict[Hashable, NDArray[np.float64]]:
    """How our seat plays while the data are recorded.

    Args:
        game: The game.
        kind: uniform, or narrow: it calls with probability 0.97, so that most information sets are never seen.
    """
    if kind == "uniform":
        return {}
    found = {}
    for key, (_, _, actions) in game.information_sets[0].items():
        law = np.array([0.97 if action == CALL else 0.03 / max(len(actions) - 1, 1) for action in actions])
        found[key] = law / law.sum()
    return found


def _ball(scale: float, model: NDArray[np.float64], visits: float) -> TotalVariation:
    return TotalVariation(model, min(1.0, scale / np.sqrt(visits)))


def _contaminated(highest: float, full_at: int, model: NDArray[np.float64], visits: float) -> Contamination:
    return Contamination(model, linear_confidence(visits, highest, full_at))


def methods(game: SequenceGame, counts: Plays) -> Iterator[tuple[str, str, ExtensiveSolution]]:
    """Family, setting and solution of every method on one data set."""
    model = {key: row / row.sum() for key, row in counts.items()}
    visits = {key: float(row.sum()) for key, row in counts.items()}

    def solve(
        kind: Callable[[NDArray[np.float64], float], Pinned | TotalVariation | Contamination],
    ) -> ExtensiveSolution:
        return solve_extensive(game, {key: kind(model[key], visits[key]) for key in counts})

    for scale in (SCALE, 0.5):
        family = "csp" if scale == SCALE else "csp wide"
        yield family, f"{scale}", solve(partial(_ball, scale))
    yield "csp certified", "", solve_extensive(game, certified_information_sets(game, counts))
    yield "csp pinned", "", solve(lambda m, n: Pinned(m))
    yield "bc_first", "", restricted_nash(game, model, 1.0)
    yield "nash", "", restricted_nash(game, model, 0.0)
    for share in (0.25, 0.5, 0.75, 0.9):
        yield "rnr", f"p {share}", restricted_nash(game, model, share)
    for highest in (0.75, 0.9, 0.99):
        for full_at in (10, 40):
            name = f"P {highest} full at {full_at}"
            yield "dbr", name, solve(partial(_contaminated, highest, full_at))


def score(game: SequenceGame, target: Plays, counts: Plays) -> list[Row]:
    """Rows of all methods on one data set.

    Args:
        game: The game.
        target: The true target's behaviour.
        counts: How often it was seen to take every action, by information set.
    """
    return [row for row, _ in scored(game, target, counts)]


def scored(game: SequenceGame, target: Plays, counts: Plays) -> list[tuple[Row, NDArray[np.float64]]]:
    """Rows as of :func:`score`, each with the realisation plan of its method."""
    covered, certified = pinned_sets({key: target[key] for key in counts}), certified_information_sets(game, counts)
    plan, value = game.realisation(1, target), solve_extensive(game).value
    return [
        (
            {
                "method": family,
                "setting": setting,
                "claimed": solution.value,
                "certified": worst_answer(game, solution.plan, certified).value,
                "true": game.value(0, solution.plan, plan),
                "worst": worst_answer(game, solution.plan, covered).value,
                "exploitability": value - worst_answer(game, solution.plan).value,
            },
            solution.plan,
        )
        for family, setting, solution in methods(game, counts)
    ]


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Record, solve, score, report."""
    from rl.envs.spiel import record_counts, sequence_form

    game = sequence_form(recipe.game.name)
    target = target_behaviour(game)
    ours = our_behaviour(game, recipe.data.behaviour)
    counts = record_counts(recipe.game.name, (ours, target), recipe.data.episodes, 1, recipe.seed)
    folder.say(f"the data visit {len(counts)} of {len(game.information_sets[1])} information sets of the target")
    found = scored(game, target, counts)
    rows = [row for row, _ in found]
    save_plans(folder, recipe.game.name, game, {row_name(row): plan for row, plan in found})
    best = solve_extensive(game, pinned_sets(target))
    csp, sure = (next(row for row in rows if row["method"] == name) for name in ("csp", "csp certified"))
    ladder = [
        {"step": "Nash", "value": solve_extensive(game).value, "how": "exact"},
        {"step": "guaranteed", "value": sure["certified"], "how": "certified 95 %, of the plan csp certified"},
        {"step": "claimed", "value": csp["claimed"], "how": f"exact for radii {SCALE} / sqrt(n): no guarantee"},
        {"step": "worst", "value": csp["worst"], "how": "exact, against all who play like the target on the data"},
        {"step": "obtained", "value": csp["true"], "how": "exact"},
        {"step": "best response", "value": best.value, "how": "exact, knows the target"},
    ]
    visits = sorted((int(row.sum()) for row in counts.values()), reverse=True)
    _draw(folder, rows, visits, len(game.information_sets[1]))
    advice = deploy(rows, "certified", "")
    outcome = {
        "deploy": advice,
        "rows": rows,
        "ladder": ladder,
        "covered": len(counts),
        "sets": len(game.information_sets[1]),
    }
    summary = (
        f"CSP claims {csp['claimed']:.3f}, gets {csp['true']:.3f} against the true target, and is worth "
        f"{csp['worst']:.3f} against the worst target that agrees with it on the data (all exact); the certified plan "
        f"is guaranteed {sure['certified']:.3f} (95 %). {advice}"
    )
    tables: dict[str, Sequence[Row]] = {"Value ladder": ladder, "Methods": rows, "Glossary": glossary(rows)}
    folder.finish(outcome, tables, summary=summary)
    folder.say(summary)


def save_plans(folder: RunFolder, name: str, game: SequenceGame, plans: Mapping[str, NDArray[np.float64]]) -> None:
    """Write every plan to `policies/<method>.safetensors`, as a policy that plays `rl.envs.SpielGame`.

    Args:
        folder: Run folder.
        name: Of the game.
        game: Its sequence form.
        plans: Our realisation plans by what they are called.
    """
    if process_rank() != 0:
        return
    from rl.csp.policy_file import save_policies
    from rl.csp.tables import TablePolicy
    from rl.envs.spiel_game import SpielGame

    played = SpielGame(name)
    keys, looks, legal = played.information_states(played.seats[0])
    where = folder.path / "policies"
    policies: dict[Path, nn.Module] = {}
    where.mkdir(exist_ok=True)
    for row, plan in plans.items():
        behaviour, table = game.behaviour(0, plan), np.zeros(legal[:, 0].shape)
        for number, key in enumerate(keys):
            table[number, legal[number, 0].numpy()] = behaviour[key]
        policies[where / f"{file_name(row)}.safetensors"] = TablePolicy(looks[:, 0], table)
    save_policies(policies, played)


def _draw(folder: RunFolder, rows: Sequence[Row], visits: Sequence[int], sets: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    draw_policies(axes, [(row["method"], row_name(row), row["worst"], row["true"]) for row in rows])
    axes.set_xlabel("worst value against all who play like the target on the data")
    axes.set_ylabel("value against the true target")
    points = [[row[key] for key in ("method", "setting", "worst", "true")] for row in rows]
    folder.figure(
        "frontier",
        figure,
        points,
        ["method", "setting", "worst", "true"],
        title="The value against the true target and the worst one",
        told=FRONTIER_TOLD,
    )
    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    axes.loglog(range(1, len(visits) + 1), visits)
    axes.axvline(sets, color="black", linewidth=0.8)
    axes.set_xlabel("information sets of the target, most visited first; the line is all of them")
    axes.set_ylabel("visits in the data")
    folder.figure(
        "coverage",
        figure,
        list(enumerate(visits, 1)),
        ["rank", "visits"],
        title="How often the data visits information sets",
        told="Where the curve ends left of the black line, the data never saw the sets between the two.",
    )
