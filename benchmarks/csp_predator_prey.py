"""Predator-prey: what CSP and its baselines are worth against fresh adversaries that agree with the data.

We are the prey; the target is a scripted team of predators that chases prey in the left half of the plane and dawdles
in the right. Its data come from episodes in the right half; the test starts anywhere. A cell is a method and a seed: it
trains the method, then at least four fresh adversaries against the policy, each held to the same data and checked on
held-out episodes. One of them begins at CSP's proxy of that seed, whatever the method, because catching prey is a skill
that few updates do not teach. The lowest mean return is the cell's worst value, an estimate that is optimistic for
every method alike; the return against the true target stands beside it. The C of CSP and the settings of RNR and DBR
are those with the best worst value on a seed that is not reported. Cells are kept under ``runs/``, so an interrupted
run goes on where it was. Takes about an hour and a half of one core.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from benchmarks.common import write_results
from recipes.csp.games import Scenario, build
from recipes.running.files import write_json
from recipes.running.intervals import interval
from recipes.running.quiet import hush_libraries, silent_trainer

if TYPE_CHECKING:
    from rl.csp.dataset import TargetData

CELLS = Path("runs/benchmarks")
# The rows; `imitation` is a fit.
METHODS = ("csp", "bc_first", "bc_ensemble", "self_play", "imitation", "rnr", "dbr", "oracle")
TUNING_SEED = 100


class Setup(NamedTuple):
    """A benchmark over methods and seeds.

    Attributes:
        name: Of the benchmark.
        game: Name of the game for `recipes.csp.games.build`.
        game_arguments: Of its class.
        arguments: Of `CSPModule`.
        candidates: Of each method that is tuned, the changes in its arguments that are tried on another seed.
        iterations: Of every training.
        episodes: Of every update.
        recorded: Episodes of the data.
        attack: Arguments of `estimate_worst_case`.
        seeds: How many.
        target_counts: Whether the value against the true target, which agrees with its own data, bounds the worst value
            of the reported seeds too: where it is as strong as data allow, few updates do not find one like it.
    """

    name: str
    game: str
    game_arguments: Mapping[str, Any]
    arguments: Mapping[str, Any]
    candidates: Mapping[str, Sequence[dict[str, Any]]]
    iterations: int
    episodes: int
    recorded: int
    attack: Mapping[str, Any]
    seeds: int
    target_counts: bool = False


SETUP = Setup(
    name="csp_predator_prey",
    game="predator_prey",
    game_arguments={"ours": "prey"},
    arguments={
        "agent_rate": 2e-3,
        "proxy_rate": 1e-3,
        "epochs": 5,
        "minibatches": 4,
        "divergence": "forward",
        "entropy_start": 0.02,
        "entropy_end": 0.002,
        "radius": 0.5,
        "count_power": 1.0,
        "hidden": [64, 64],
    },
    candidates={
        "csp": [{"coefficient": 1.0}, {"coefficient": 10.0}],
        "rnr": [{"model_share": 0.5}, {"model_share": 0.75}, {"model_share": 0.9}],
        "dbr": [{"gate_limit": 0.99, "radius": 0.3}, {"gate_limit": 0.99, "radius": 0.5}],
    },
    iterations=200,
    episodes=128,
    recorded=500,
    attack={"iterations": 80, "episodes": 64, "test_episodes": 8192, "coefficient": 1.0, "slack": 0.05},
    seeds=5,
)


def record(setup: Setup, seed: int) -> tuple[Scenario, TargetData]:
    """The scenario of a game, and the target's data of a seed."""
    from rl.csp.dataset import record_target

    scenario = build(setup.game, "", dict(setup.game_arguments))
    assert scenario.ours is not None
    assert scenario.target is not None
    chance = torch.Generator().manual_seed(seed)
    return scenario, record_target(scenario.recorded, scenario.ours, scenario.target, setup.recorded, chance)


def make(setup: Setup, method: str, changes: Mapping[str, Any], seed: int, scenario: Scenario, pairs: Any) -> Any:
    """The module of a method."""
    from rl.csp.baselines import baseline
    from rl.csp.module import CSPModule

    arguments = dict(setup.arguments) | changes | {"seed": seed}
    if method in ("csp", "imitation"):
        return CSPModule(scenario.game, pairs, **arguments)
    target = scenario.true_target() if method == "oracle" else None
    return baseline(method, scenario.game, pairs, target=target, **arguments)


def cell(setup: Setup, method: str, changes: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train and attack one method, or read what an earlier run found."""
    from rl.csp.baselines import imitate
    from rl.csp.data import RolloutDataModule
    from rl.csp.policies import ScriptedPolicy
    from rl.csp.rollout import pairs_of, play
    from rl.csp.worst_case import estimate_worst_case, evaluate

    folder = CELLS / setup.name
    path = folder / ("-".join([method, *(f"{name}={value}" for name, value in changes.items()), str(seed)]) + ".json")
    weights = folder / f"proxy-{seed}.pt"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    scenario, data = record(setup, seed)
    pairs = data.pairs()
    module = make(setup, method, changes, seed, scenario, pairs)
    excess = None
    if method == "imitation":
        scripts = (ScriptedPolicy(scenario.ours), ScriptedPolicy(scenario.target))
        lived = play(scenario.recorded, scripts, setup.recorded, torch.Generator().manual_seed(seed))
        agent = imitate(module, pairs_of(lived, scenario.game.seats[0]), seed)
    else:
        trainer = silent_trainer(max_epochs=1, limit_val_batches=0)
        trainer.fit(module, RolloutDataModule(setup.iterations, setup.episodes, seed=seed))
        agent = module.agent
        excess = float(trainer.callback_metrics.get("train/excess", math.nan))
    # Every method is attacked from the same data, the same fitted model and the same proxy, the first CSP's.
    if method == "csp" and not weights.is_file():
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), weights)
    problem = make(setup, "csp", {}, seed, scenario, pairs)
    problem.load_state_dict(torch.load(weights, weights_only=True))
    search = estimate_worst_case(problem, agent, seed=seed, **setup.attack)
    true = evaluate(problem, agent, scenario.true_target(), setup.attack["test_episodes"], seed)
    found = {
        "method": method,
        "changes": dict(changes),
        "seed": seed,
        "worst": search.value.value,
        "worst adversary": search.worst,
        "true": true.value,
        "against model": next(a.value.value for a in search.adversaries if a.name == "fitted model"),
        "consistent adversaries": sum(a.consistent for a in search.adversaries),
        "largest excess": max(a.excess for a in search.adversaries if a.consistent),
        "final excess": excess,
    }
    write_json(path, found)
    print(*(f"{x:.3f}" if isinstance(x, float) else x for x in found.values()), sep="  ", flush=True)
    return found


def iteration_times(setup: Setup = SETUP, iterations: int = 10) -> dict[str, list[float]]:
    """Seconds of CSP's iterations in a Trainer, and of plain two-player PPO on as many episodes, taken in turns.

    Plain PPO is a loop of its own without data, Trainer and logging: as many updates of either side, C = 0.

    Args:
        setup: Which game, networks and batch.
        iterations: How many are timed, after two that are not.
    """
    from lightning import Callback

    from rl.csp.data import RolloutDataModule
    from rl.csp.dataset import record_target
    from rl.csp.rollout import play
    from rl.csp.update import update_side

    scenario, generator = build(setup.game, "", dict(setup.game_arguments)), torch.Generator().manual_seed(0)
    recorded = record_target(scenario.recorded, scenario.ours, scenario.target, setup.recorded, generator)
    module = make(setup, "csp", setup.candidates["csp"][0], 0, scenario, recorded.pairs())
    game = scenario.game
    sides = []
    for seat, sign in zip(game.seats, (1.0, -1.0), strict=True):
        policy, critic = module.new_policy(seat), module.new_critic()
        parameters = [*policy.parameters(), *critic.parameters()]
        sides.append((seat, sign, policy, critic, parameters, torch.optim.Adam(parameters, 7e-4, eps=1e-5)))
    settings = module.settings()

    def improve(seat: str, sign: float, policy: Any, critic: Any, parameters: Any, optimizer: Any) -> None:
        def descend(loss: torch.Tensor) -> None:
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()

        lived = play(game, (sides[0][2], sides[1][2]), setup.episodes, generator)
        update_side(policy, critic, lived.experience(seat, sign=sign), settings, descend, generator)

    times: dict[str, list[float]] = {"csp": [], "ppo": []}

    class InTurns(Callback):  # type: ignore[misc]
        """Times the module's iteration and runs one of plain PPO after it."""

        def on_train_batch_start(self, *_: Any) -> None:
            """Start the clock."""
            self.started = time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            """Stop it, and time the other."""
            times["csp"].append(time.perf_counter() - self.started)
            started = time.perf_counter()
            for side in (*[sides[1]] * module.hparams["proxy_updates"], sides[0]):
                improve(*side)
            times["ppo"].append(time.perf_counter() - started)

    trainer = silent_trainer(max_epochs=1, limit_val_batches=0, callbacks=[InTurns()])
    trainer.fit(module, RolloutDataModule(iterations + 2, setup.episodes))
    return {name: seconds[2:] for name, seconds in times.items()}


def tuned(setup: Setup, method: str) -> dict[str, Any]:
    """Of the settings of a method, the one with the best worst value on the seed for tuning."""
    candidates = setup.candidates.get(method, [{"models": 3} if method == "bc_ensemble" else {}])
    if len(candidates) == 1:
        return candidates[0]
    return max(candidates, key=lambda changes: cell(setup, method, changes, TUNING_SEED)["worst"])


def run(setup: Setup) -> list[dict[str, Any]]:
    """All cells, seed by seed, and what they say of every method."""
    hush_libraries()
    torch.set_num_threads(1)
    chosen = {method: tuned(setup, method) for method in METHODS}
    rows = [cell(setup, method, chosen[method], seed) for seed in range(setup.seeds) for method in METHODS]
    for row in rows if setup.target_counts else ():
        row["worst"] = min(row["worst"], row["true"])
    table = []
    for method in METHODS:
        mine, csp = ([row for row in rows if row["method"] == name] for name in (method, "csp"))
        values = {key: interval([row[key] for row in mine]) for key in ("worst", "true")}
        # Seeds share their data and the proxy they are attacked with: CSP's values minus this method's.
        for lead, key in (("lead", "worst"), ("true_lead", "true")):
            values[lead] = interval([a[key] - b[key] for a, b in zip(csp, mine, strict=True)])
        table.append({"method": method, "chosen": chosen[method], **values})
    return table


def main(setup: Setup, further: Mapping[str, Any] | None = None) -> None:
    """Run everything and write the figures.

    Args:
        setup: What is run.
        further: Figures beside those of the methods.
    """
    table = run(setup)
    worst = {row["method"]: row["worst"] for row in table}
    rivals = {method: value for method, value in worst.items() if method not in ("csp", "oracle")}
    best = max(rivals, key=lambda method: rivals[method]["value"])
    figures: dict[str, Any] = {"best_baseline_worst": rivals[best], **(further or {})}
    figures["csp_worst_lead_low"] = min(row["lead"]["low"] for row in table if row["method"] in rivals)
    figures |= {f"{row['method']}_{key}": row[key] for row in table for key in ("worst", "true", "lead", "true_lead")}
    print("best baseline:", best, write_results(setup.name, figures, {"methods": table}, setup.seeds))


if __name__ == "__main__":
    main(SETUP)
