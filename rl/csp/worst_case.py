"""Worst-case evaluation: adversaries trained afresh against a frozen policy, and checked against held-out data.

A learned adversary is one consistent target among many, so the lowest value found is an upper bound on the worst
value: it is printed as *estimated (optimistic)* and guarantees nothing. *Certified* is what an exact solver says, see
:mod:`rl.exact`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
from scipy.stats import t as student
from torch import nn

from gapbridge.arguments import Count, NotNegative, Positive, Range, Seed, check_arguments
from rl.csp.cloning import likelihood
from rl.csp.module import CSPModule
from rl.csp.rollout import play
from rl.csp.update import next_coefficient, update_side
from rl.envs.markov_game import BatchedGame

TRAINING_PROXY = "training proxy as it is"  # the name of that adversary
STARTS = ("model", "noisy model", "training proxy", "random")


class Value(NamedTuple):
    """A mean return with its 95 % interval over episodes."""

    value: float
    low: float
    high: float


class Adversary(NamedTuple):
    """One target that a policy was tried against.

    Attributes:
        name: How it began, or what it is.
        value: Our discounted return against it.
        excess: By how much held-out data are less likely under it than under the fitted model, in nats a dimension.
        consistent: Whether that is within the slack.
        policy: It itself.
    """

    name: str
    value: Value
    excess: float
    consistent: bool
    policy: nn.Module


class WorstCase(NamedTuple):
    """What a policy is worth against targets that agree with the data.

    Attributes:
        value: Against the worst consistent adversary found, on episodes that did not choose it.
        worst: The name of that adversary.
        adversaries: All of them.
    """

    value: Value
    worst: str
    adversaries: list[Adversary]

    @property
    def label(self) -> str:
        """The value as it is to be printed."""
        return f"{self.value.value:.4f} [{self.value.low:.4f}, {self.value.high:.4f}] estimated (optimistic)"


def estimate_worst_case(
    problem: CSPModule,
    agent: nn.Module | None = None,
    *,
    count: int = 4,
    iterations: Count = 100,
    episodes: Count = 256,
    test_episodes: Annotated[int, Range(2)] = 4096,
    coefficient: NotNegative = 30.0,
    slack: Positive = 0.05,
    seed: Seed = 0,
) -> WorstCase:
    """Search the worst consistent target of a policy: f̂ = min over adversaries that pass the check on held-out data.

    Adversaries begin at the fitted model, the model with noise, the training proxy, and random weights. Each minimises
    our return with the data term; its coefficient rises where the data get less likely than the slack allows. The
    fitted model itself and the training proxy as it is are tried too.

    Args:
        problem: Game, data, fitted model, training proxy and the coefficients of updates.
        agent: The policy to evaluate; the problem's own when None.
        count: Adversaries to train, at least 4.
        iterations: Updates of each.
        episodes: Of each update.
        test_episodes: For the values, at least 2.
        coefficient: C at the start, and its floor.
        slack: Accepted excess on held-out data, in nats a dimension.
        seed: Of everything random.

    Returns:
        The lowest value and every adversary.

    Raises:
        ValueError: If fewer than 4 adversaries are asked for, or another number is out of range.
    """
    check_arguments(estimate_worst_case, locals())
    if count < len(STARTS):
        raise ValueError(
            f"{count} adversaries are asked for, but the search has {len(STARTS)} starts; give as many or more"
        )
    agent = problem.agent if agent is None else agent
    problem.sampler.to(problem.device)
    candidates = [("fitted model", problem.models[0]), (TRAINING_PROXY, problem.proxy)]
    for number in range(count):
        start = STARTS[number % len(STARTS)]
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        policy = _start(problem, start, generator)
        _train(problem, agent, policy, iterations, episodes, coefficient, slack, generator)
        candidates.append((f"{start} {number // len(STARTS) + 1}", policy))
    adversaries = []
    for number, (name, policy) in enumerate(candidates):
        excess = likelihood(policy, problem.held_out_pairs) - likelihood(problem.models[0], problem.held_out_pairs)
        value = evaluate(problem, agent, policy, test_episodes, seed * 1000 + 500 + number)
        adversaries.append(Adversary(name, value, excess, excess <= slack, policy))
    worst = min((a for a in adversaries if a.consistent), key=lambda a: a.value.value)
    # The lowest of several noisy means is too low: the value reported comes from other episodes.
    return WorstCase(evaluate(problem, agent, worst.policy, test_episodes, seed * 1000 + 900), worst.name, adversaries)


def evaluate(problem: CSPModule, agent: nn.Module, target: nn.Module, episodes: int, seed: int) -> Value:
    """Our mean discounted return against a target, with Student's interval.

    Args:
        problem: Says which game.
        agent: Our policy.
        target: The other.
        episodes: How many, at least 2.
        seed: Of everything random.
    """
    return value_of(problem.game, agent, target, episodes, seed)


def value_of(game: BatchedGame, agent: nn.Module, target: nn.Module, episodes: int, seed: int) -> Value:
    """Our mean discounted return against a target, with Student's interval.

    Args:
        game: What is played.
        agent: Our policy.
        target: The other.
        episodes: How many, at least 2.
        seed: Of everything random.
    """
    returns = play(game, (agent, target), episodes, torch.Generator().manual_seed(seed)).discounted(game.discount)
    mean, deviation = float(returns.mean()), float(returns.std())
    half = float(student.ppf(0.975, episodes - 1)) * deviation / math.sqrt(episodes)
    return Value(mean, mean - half, mean + half)


def _start(problem: CSPModule, start: str, generator: torch.Generator) -> nn.Module:
    """Where an adversary begins."""
    policy = problem.new_policy(problem.game.seats[1]).to(problem.device)
    if start == "training proxy":
        policy.load_state_dict(problem.free.state_dict())
    elif start != "random" and not problem.given:
        policy.load_state_dict(copy.deepcopy(problem.models[0].state_dict()))
    if start == "noisy model":
        with torch.no_grad():
            for weights in policy.parameters():
                noise = torch.randn(weights.shape, generator=generator).to(weights)
                weights.add_(0.3 * weights.std(correction=0) * noise)
    return policy.requires_grad_(True)


def _train(
    problem: CSPModule,
    agent: nn.Module,
    policy: nn.Module,
    iterations: int,
    episodes: int,
    coefficient: float,
    slack: float,
    generator: torch.Generator,
) -> None:
    """Minimise our return, held to the data."""
    hp, critic = problem.hparams, problem.new_critic().to(problem.device)
    parameters = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, hp["proxy_rate"], eps=1e-5)
    how = {"power": hp["count_power"], "radius": hp["radius"]}
    floor, best = coefficient, likelihood(problem.models[0], problem.train_pairs, **how)

    def descend(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, hp["max_norm"])
        optimizer.step()

    for number in range(iterations):
        lived = play(problem.game, (agent, policy), episodes, generator).experience(problem.game.seats[1], sign=-1.0)
        report = update_side(
            policy,
            critic,
            lived,
            replace(problem.settings(coefficient, number / iterations), divergence="nll"),
            descend,
            generator,
            draw_data=lambda: problem.sampler.draw(generator),
        )
        coefficient = next_coefficient(coefficient, float(report["data"]) - best, slack, floor=floor)
