"""What a csp run reports: the value ladder, the coverage, the consistency of the proxies, the frontier, replays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from recipes.csp.figures import (
    draw_coverage,
    draw_frontier,
    draw_histories,
    draw_ladder,
    replay,
)
from recipes.csp.words import deploy, file_name, glossary
from recipes.running.environment import process_rank

if TYPE_CHECKING:
    from torch import nn

    from recipes.csp.games import Scenario
    from recipes.csp.schema import Recipe
    from recipes.running.folder import RunFolder
    from recipes.running.page import Row
    from rl.csp.module import CSPModule
    from rl.csp.worst_case import WorstCase
    from rl.envs.markov_game import BatchedGame
    from rl.envs.tabular import TabularGame

OFTEN_OFF = 0.2  # a share of visits off the data that deserves a warning
RARE = 5  # visits of a state below which its counts say little


class Exact(NamedTuple):
    """A tabular game's exact reference: the sets the data leave, and the ends of the ladder."""

    game: Any
    counts: Any
    likely: Any
    certified: Any
    nash: float
    best: float | None
    truth: Any
    plan: Any


def finish(
    recipe: Recipe,
    scenario: Scenario,
    problem: CSPModule,
    agents: Mapping[str, nn.Module],
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    folder: RunFolder,
) -> None:
    """Evaluate every policy, draw, warn, and write the report.

    Args:
        recipe: The recipe.
        scenario: Its game.
        problem: The module that CSP was trained in: data, fitted model, proxy.
        agents: Every policy by the name of its row.
        histories: What the trainings logged.
        folder: Run folder.
    """
    exact = _exact(scenario, problem)
    rows: list[dict[str, object]] = []
    search = _search(recipe, problem, agents["csp"])
    with folder.phase("evaluate", len(agents)) as progress:
        for row, agent in agents.items():
            found = search if row == "csp" else None
            if found is None and recipe.attack.baselines and " " not in row:  # the sweep's rows have a space
                found = _search(recipe, problem, agent)
            rows.append(_values(recipe, scenario, problem, row, agent, found, exact))
            progress.update(progress.done + 1, row)
    ours = next(row for row in rows if row["policy"] == "csp")
    ladder = _ladder(rows, ours, exact)
    adversaries = _adversaries(search)
    coverage = _coverage(recipe, problem, agents, scenario)
    warnings = _warnings(recipe, problem, coverage, histories["csp"], ours, search)
    _draw(recipe, folder, ladder, coverage, histories, rows)
    replays = replay(folder, scenario, problem, search)
    save_policies(agents, problem.game, folder, exact)
    advice = deploy(
        rows, "certified 95 %", "worst estimated (optimistic)", plan=None if exact is None else exact.plan.value
    )
    outcome = {
        "deploy": advice,
        "certified plan": None if exact is None else exact.plan.value,
        "rows": rows,
        "ladder": ladder,
        "adversaries": adversaries,
        "coverage": coverage,
        "replays": list(replays.values()),
        "warnings": [row["warning"] for row in warnings],
    }
    if exact is not None:
        summary = f"CSP is guaranteed {ours['certified 95 %']:.3f} (certified 95 %, for a target that does not change)"
    else:
        summary = f"CSP is worth {ours['worst estimated (optimistic)']:.3f} against the worst target found that agrees "
        summary += "with the data (estimated, optimistic: no guarantee)"
    summary += "." if ours["obtained"] is None else f", and gets {ours['obtained']:.3f} against the true one."
    summary += f" {advice}"
    tables: dict[str, Sequence[Row]] = {
        "Policies": rows,
        "Value ladder": ladder,
        "Adversaries of CSP": adversaries,
        "Coverage of visited states": coverage,
        "Warnings": warnings,
        "Glossary": glossary(rows),
    }
    shown = {name: replays[name] for name in (search.worst, "true target", "fitted model") if name in replays}
    told = "It is played from its first step to its last, over and over."
    animations = {f"An episode against the {name}. {told}": path for name, path in list(shown.items())[:2]}
    folder.finish(outcome, tables, summary=summary, animations=animations)
    folder.say(summary)


def save_policies(agents: Mapping[str, nn.Module], game: BatchedGame, folder: RunFolder, exact: Exact | None) -> None:
    """Write every policy to `policies/<row>.safetensors`, and the exact plan where there is one.

    Args:
        agents: Every policy by the name of its row.
        game: What they play.
        folder: Run folder.
        exact: The exact reference of a tabular game.
    """
    if process_rank() != 0:
        return
    from rl.csp.policy_file import save_policies as save
    from rl.csp.tables import TablePolicy

    files = {file_name(row): agent for row, agent in agents.items()}
    if exact is not None:
        files["certified-plan"] = TablePolicy(cast("TabularGame", game).observations, exact.plan.plan)
    (folder.path / "policies").mkdir(exist_ok=True)
    save({folder.path / "policies" / f"{name}.safetensors": policy for name, policy in files.items()}, game)


def _adversaries(search: WorstCase) -> list[dict[str, object]]:
    """What every adversary of the search found, as rows."""
    return [
        {
            "adversary": a.name,
            "our return": a.value.value,
            "low": a.value.low,
            "high": a.value.high,
            "excess nats": a.excess,
            "consistent": a.consistent,
        }
        for a in search.adversaries
    ]


# ------------------------------------------------------------------ values


def policy_table(agent: nn.Module, game: BatchedGame) -> NDArray[np.float64]:
    """The policy of a tabular game as probabilities (S, A)."""
    import torch

    with torch.no_grad():
        law, _ = agent(cast("TabularGame", game).observations[None, :, None])
    table = law.log_probs[0, :, 0].exp().double().numpy()
    shares: NDArray[np.float64] = table / table.sum(1, keepdims=True)
    return shares


def _draw(
    recipe: Recipe,
    folder: RunFolder,
    ladder: list[dict[str, object]],
    coverage: list[dict[str, object]],
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    rows: list[dict[str, object]],
) -> None:
    draw_ladder(folder, ladder)
    draw_coverage(folder, coverage)
    draw_histories(folder, histories, recipe.attack.slack)
    draw_frontier(folder, rows)


def _exact(scenario: Scenario, problem: CSPModule) -> Exact | None:
    from rl.envs.tabular import TabularGame

    game = scenario.game
    if not isinstance(game, TabularGame) or not game.ends():  # exact values are of episodes that are never cut
        return None
    from rl.exact.certificate import certified_sets
    from rl.exact.markov import best_response, robust_plan
    from rl.exact.sets import Free, TotalVariation, consistent_sets, root_radius

    counts = game.state_counts(problem.pairs.observations, problem.pairs.actions)
    states, _, actions = game.exact.reward.shape
    certified = certified_sets(game.exact, counts)
    likely = consistent_sets(counts, lambda model, n: TotalVariation(model, root_radius(n)))
    truth = None if scenario.target is None else _target_table(scenario, actions)
    best = None if truth is None else best_response(game.exact, truth).value
    nash = robust_plan(game.exact, [Free(actions)] * states).value
    return Exact(game.exact, counts, likely, certified, nash, best, truth, robust_plan(game.exact, certified))


def _target_table(scenario: Scenario, actions: int) -> NDArray[np.float64]:
    """The true target of a tabular game, measured by asking it often."""
    import torch

    game = cast("TabularGame", scenario.game)
    asked = game.observations[:, None].repeat_interleave(20_000, 0)
    drawn = scenario.target(asked, None, torch.Generator().manual_seed(0))[:, 0].reshape(-1, 20_000)  # type: ignore[misc]
    return torch.nn.functional.one_hot(drawn, actions).double().mean(1).numpy()


def _search(recipe: Recipe, problem: CSPModule, agent: nn.Module) -> WorstCase:
    from rl.csp.worst_case import estimate_worst_case

    attack = recipe.attack
    return estimate_worst_case(
        problem,
        agent,
        count=attack.adversaries,
        iterations=attack.iterations,
        episodes=attack.episodes,
        test_episodes=attack.test_episodes,
        coefficient=attack.coefficient,
        slack=attack.slack,
        seed=recipe.seed,
    )


def _values(
    recipe: Recipe,
    scenario: Scenario,
    problem: CSPModule,
    name: str,
    agent: nn.Module,
    search: WorstCase | None,
    exact: Exact | None,
) -> dict[str, object]:
    """A row of the table of policies."""
    from rl.csp.worst_case import evaluate

    episodes = recipe.attack.test_episodes
    row: dict[str, object] = {"policy": name}
    target = scenario.true_target()
    true = None if target is None else evaluate(problem, agent, target, episodes, recipe.seed)
    row["obtained"] = None if true is None else true.value
    row["obtained low"], row["obtained high"] = (None, None) if true is None else (true.low, true.high)
    row["against model"] = evaluate(problem, agent, problem.models[0], episodes, recipe.seed).value
    row["worst estimated (optimistic)"] = None if search is None else search.value.value
    row["worst adversary"] = None if search is None else search.worst
    if exact is not None:
        from rl.exact.markov import worst_case
        from rl.exact.sets import Free

        plan = policy_table(agent, scenario.game)
        if exact.truth is not None:
            row["obtained"] = exact.game.value(plan, exact.truth)
        row["worst exact"] = worst_case(exact.game, plan, exact.likely).value
        row["certified 95 %"] = worst_case(exact.game, plan, exact.certified).value
        row["worst against anyone"] = worst_case(exact.game, plan, [Free(len(s)) for s in exact.counts]).value
    return row


def _ladder(
    rows: Sequence[Mapping[str, object]], ours: Mapping[str, object], exact: Exact | None
) -> list[dict[str, object]]:
    """From Nash to the best response, each with how it is known; only what is certified is called guaranteed."""
    by_name = {row["policy"]: row for row in rows}
    estimated = "estimated (optimistic)"
    if exact is not None:
        steps = [
            ("Nash", exact.nash, "exact"),
            ("guaranteed", ours["certified 95 %"], "certified 95 %, for a target that does not change"),
            ("worst likely", ours["worst exact"], "exact for radii 1/(2 sqrt n): no guarantee"),
            ("obtained", ours["obtained"], "exact"),
            ("best response", exact.best, "exact"),
        ]
    else:
        nash = by_name.get("self_play", {}).get("worst estimated (optimistic)")
        oracle = by_name.get("oracle", {}).get("obtained")
        steps = [
            ("Nash", nash, f"self-play, {estimated}"),
            ("worst found", ours["worst estimated (optimistic)"], f"{estimated}: no guarantee"),
            ("obtained", ours["obtained"], "mean of test episodes"),
            ("best response", oracle, "oracle, learned"),
        ]
    return [{"step": step, "value": value, "how": how} for step, value, how in steps if value is not None]


def _coverage(
    recipe: Recipe, problem: CSPModule, agents: Mapping[str, nn.Module], scenario: Scenario
) -> list[dict[str, object]]:
    """Which share of a policy's steps the target spends where the data saw it how often."""
    import torch

    from rl.csp.rollout import pairs_of, play

    target, rows = scenario.true_target() or problem.models[0], []
    count = min(512, recipe.attack.test_episodes)
    for name, agent in agents.items():
        episodes = play(problem.game, (agent, target), count, torch.Generator().manual_seed(recipe.seed))
        counts = problem.counts(pairs_of(episodes, problem.game.seats[1]).observations)
        bounds = [("never", 0, 1), ("1 to 9", 1, 10), ("10 to 99", 10, 100), ("100 or more", 100, float("inf"))]
        shares = {title: float(((counts >= low) & (counts < high)).float().mean()) for title, low, high in bounds}
        rows.append({"policy": name, **shares})
    return rows


def _warnings(
    recipe: Recipe,
    problem: CSPModule,
    coverage: Sequence[Row],
    history: Sequence[Mapping[str, float]],
    ours: Row,
    search: WorstCase,
) -> list[dict[str, str]]:
    """What a reader of the numbers must know."""
    from rl.csp.copies import data_warnings
    from rl.csp.scales import scale_warnings
    from rl.csp.worst_case import TRAINING_PROXY

    found = []
    off = next(row["never"] for row in coverage if row["policy"] == "csp")
    if off > OFTEN_OFF:
        found.append(f"{off:.0%} of the visited states are not in the data, which say nothing of the target there")
    worst = max((row["excess"] for row in history if "excess" in row), default=0.0)
    if worst > recipe.attack.slack:
        found.append(
            f"in the training the data were up to {worst:.3f} nats less likely under the proxy than under the model, "
            f"above the slack {recipe.attack.slack:g}: raise the coefficient"
        )
    rare = float((problem.counts.counts < RARE).float().mean())
    if rare > 0:
        found.append(f"{rare:.0%} of the data's states were seen fewer than {RARE} times")
    trained = next((a.value for a in search.adversaries if a.name == TRAINING_PROXY), None)
    if trained is not None and problem.learns_proxy and search.value.high < trained.low:
        found.append(
            f"a fresh adversary brings the value to {search.value.value:.3f}, below the {trained.value:.3f} against "
            "the training proxy, which was trained too little: raise proxy_updates or iterations"
        )
    if (claim := ours.get("worst exact")) is not None and ours["obtained"] is not None and claim > ours["obtained"]:
        found.append(
            f"the worst likely value {claim:.3f} is above what is obtained, {ours['obtained']:.3f}: the target is not "
            "within the radii 1/(2 sqrt n), which guarantee nothing"
        )
    found += [*data_warnings(problem.pairs), *scale_warnings(problem.pairs, problem.game)]
    return [{"warning": text} for text in found]
