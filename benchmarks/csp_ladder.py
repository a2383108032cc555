"""The MuJoCo wrestling task before any training: what scripts earn, what the data cover, and why plans are misled.

The task is `rl.envs.half_sumo.HalfSumo`. Scripted policies show that it can tell methods apart:

- the data cover between 30 and 70 % of the target's steps when we fight wherever a match starts;
- what a fitted model promises who fights at once is above what that earns, by more than the noise of both: a best
  response to a model is misled;
- a safe script earns more against the target than it has without data, and more than fighting at once does, by more
  than their noise.

A discretised twin of the task says why: our two plans against the target's four, idle or charging before and after it
is tired, with what the scripts earned as payoffs, solved exactly. ``twin_<method>_worst`` is what a method's exact plan
earns against the worst target that agrees with the data, which pin what a tired target does and nothing else.

All of it for two bodies: the box of the trained table, and an ant that trots by itself, in matches of twice as many
decisions. Figures are named by our plan and the target's, those of the ant begin with ``walker_``. A quarter of an
hour of one core.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import write_results
from benchmarks.csp_coverage import coverage
from benchmarks.csp_halfsumo import SETUP
from benchmarks.csp_predator_prey import Setup
from recipes.csp.games import build
from rl.csp.policies import ScriptedPolicy
from rl.csp.worst_case import Value, value_of
from rl.envs import half_sumo
from rl.exact.matrix import maxmin

# Our plans, and the target's by what it does before and after it is tired; the first two agree with the data.
PLANS = {"fight": half_sumo.fighting_red, "tire it first": half_sumo.careful_red}
TARGETS = {
    "a model": half_sumo.sluggish_blue,
    "the target": half_sumo.half_blue,
    "a strong one": half_sumo.strong_blue,
    "a contrary one": half_sumo.contrary_blue,
}
AGREEING = 2
LADDER = [(plan, target) for plan in PLANS for target in TARGETS]
COVERED = (0.3, 0.7)
WALKERS = SETUP._replace(name="csp_halfsumo_walker", game_arguments={"body": "walker", "horizon": 240})

Ladder = dict[tuple[str, str], Value]


def conditions(setup: Setup, seed: int = 0, episodes: int = 1024) -> tuple[float, Ladder]:
    """How much of a match the data cover, and what scripted policies earn.

    Args:
        setup: Which game and how much is recorded.
        seed: Of the data and the matches.
        episodes: For every value of the ladder.

    Returns:
        The share of the target's steps that the data saw, where we fight at once; the ladder.
    """
    game = build(setup.game, "", dict(setup.game_arguments)).game
    covered = coverage(setup, half_sumo.fighting_red, seed)
    ladder = {
        (plan, target): value_of(game, ScriptedPolicy(PLANS[plan]), ScriptedPolicy(TARGETS[target]), episodes, seed + 2)
        for plan, target in LADDER
    }
    return covered, ladder


def breaches(covered: float, ladder: Mapping[tuple[str, str], Value]) -> list[str]:
    """Which conditions the task does not meet, one sentence each."""
    found = []
    if not COVERED[0] <= covered <= COVERED[1]:
        found.append(f"the data cover {covered:.0%} of the target's steps, not between 30 and 70 %")
    promised, fought = ("fight", "a model"), ("fight", "the target")
    safe, unsafe = ("tire it first", "the target"), ("tire it first", "a strong one")
    for high, low in ((promised, fought), (safe, fought), (safe, unsafe)):
        if ladder[high].low <= ladder[low].high:
            found.append(
                f"'{' against '.join(high)}' earns {ladder[high].value:.3f} and '{' against '.join(low)}' "
                f"{ladder[low].value:.3f}, no clear difference"
            )
    return found


def twin(payoff: NDArray[np.float64]) -> dict[str, float]:
    """What the exact plans of all methods earn against the worst target that agrees with the data.

    DBR, which leaves free what the data do not show, has the robust plan here but for a hundredth of its gate, and
    imitation has no choice to copy: all recorded matches begin tired.

    Args:
        payoff: What our plans earn against the targets, (2, 4), those that agree with the data first.
    """
    model, shares = payoff[:, 0], SETUP.candidates["rnr"]
    plans = {"csp": maxmin(payoff[:, :AGREEING])[0], "self_play": maxmin(payoff)[0]}
    plans["bc_first"] = np.eye(len(model))[model.argmax()]
    for number, share in enumerate(one["model_share"] for one in shares):
        plans[f"rnr_{number}"] = maxmin(share * model[:, None] + (1 - share) * payoff)[0]
    worst = {name: float((plan @ payoff[:, :AGREEING]).min()) for name, plan in plans.items()}
    worst["rnr"] = max(worst.pop(f"rnr_{number}") for number in range(len(shares)))  # tuned on what is reported
    return worst


def measured(setup: Setup = SETUP) -> tuple[dict[str, Any], Ladder]:
    """Figures of the ladder and of its exact twin, and the ladder.

    Args:
        setup: Which game and how much is recorded.

    Raises:
        SystemExit: If the task cannot tell methods apart.
    """
    covered, ladder = conditions(setup)
    print(f"the data cover {covered:.1%} of the target's steps where we fight at once")
    for step, value in ladder.items():
        print(f"{' against '.join(step):40}{value.value:8.3f} [{value.low:.3f}, {value.high:.3f}]", flush=True)
    exact = twin(np.array([ladder[step].value for step in LADDER]).reshape(len(PLANS), len(TARGETS)))
    print("worst value of exact plans in the discretised twin:", {name: round(x, 3) for name, x in exact.items()})
    if found := breaches(covered, ladder):
        raise SystemExit("the task cannot tell methods apart: " + "; ".join(found))
    figures: dict[str, Any] = {"covered": covered} | {f"twin_{name}_worst": value for name, value in exact.items()}
    return figures | {"_".join(step).replace(" ", "_"): value._asdict() for step, value in ladder.items()}, ladder


def main() -> None:
    """Measure, and write the figures."""
    figures, ladder = measured()
    further, walkers = measured(WALKERS)
    figures |= {f"walker_{name}": value for name, value in further.items()}
    tables = {
        name: [{"ours": plan, "theirs": target, **value._asdict()} for (plan, target), value in steps.items()]
        for name, steps in {"ladder": ladder, "ladder of walkers": walkers}.items()
    }
    print(write_results("csp_ladder", figures, tables, seeds=1))


if __name__ == "__main__":
    main()
