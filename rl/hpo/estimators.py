"""What tells the estimators of `HPOModule` apart, and the losses on detached decisions that they share."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rl.envs.hybrid import HybridSimulator
from rl.hpo.surrogate import clipped_surrogate, mode_log_probs


@dataclass(frozen=True)
class Estimator:
    """One way to a gradient.

    Attributes:
        follows: Backpropagates through the simulator, which must then be differentiable, without jumps, and without
            mode masks that continuous actions move.
        scores: Its first step has the modes' score on the states of the rollout.
        reuses: The clipped steps after it move the modes' policy by their score.
        gaussian: Continuous parts are Gaussian and have a score, too; nothing is live.
        relaxed: The simulator's step is a mixture of all modes' steps.
    """

    follows: bool = True
    scores: bool = False
    reuses: bool = False
    gaussian: bool = False
    relaxed: bool = False


ESTIMATORS = {
    "mixed": Estimator(scores=True, reuses=True),
    "score": Estimator(follows=False, reuses=True, gaussian=True),
    "pathwise": Estimator(),
    # No score of the modes: their law already has its gradient through the mixture, and would have it twice.
    "straight_through": Estimator(relaxed=True),
}


def check_options(options: Mapping[str, Any], simulator: HybridSimulator | None = None) -> None:
    """Refuse arguments of `HPOModule` that contradict each other, or a simulator.

    Args:
        options: Arguments by name, with or without those of the simulator.
        simulator: The simulator, where there is one already.

    Raises:
        ValueError: For the first that cannot be used.
    """
    estimator = options["estimator"]
    if options["cross"] == "auto" and not options["diagnose_every"]:
        raise ValueError("cross is auto, but diagnose_every is 0: nothing would be measured; give 50 or so.")
    # A horizon that is no horizon is refused in its own words.
    decisions = math.inf if simulator is None else max(0, simulator.horizon - simulator.buffer)
    if options["window"] > decisions:
        raise ValueError(
            f"window is {options['window']}, but an episode has {decisions} decisions; give fewer, or 0 for whole "
            "episodes."
        )
    if options["cross"] != "full" and not ESTIMATORS[estimator].scores:
        raise ValueError(
            f"cross is {options['cross']!r}, but estimator {estimator} has no cross term; leave it out, or give mixed."
        )
    if ESTIMATORS[estimator].gaussian and options["branch"]:
        raise ValueError("branch is on, but estimator score has no value of a mode without its action; give false.")
    if options["branch"] and not ESTIMATORS[estimator].scores:
        raise ValueError(
            f"branch is on, but estimator {estimator} has no score of the modes for it to weigh; give false."
        )
    if options.get("reference") == 0:
        raise ValueError("reference is 0, but gaps are in units of it; leave it out, and compare costs.")
    if simulator is None:
        return
    if simulator.heads and (options["branch"] or ESTIMATORS[estimator].relaxed):
        what = "branch is on" if options["branch"] else f"estimator is {estimator!r}"
        raise ValueError(
            f"{what}, but the simulator has {len(simulator.heads)} heads, and every combination of their modes would "
            "be stepped; leave it out."
        )
    if ESTIMATORS[estimator].follows and not simulator.differentiable:
        raise ValueError(
            f"estimator is {estimator!r}, but the simulator is declared not differentiable: there is no gradient to "
            "follow; give 'score'."
        )
    if not simulator.action_dim and estimator == "pathwise":
        raise ValueError("estimator is 'pathwise', but the simulator has no continuous part to train; give 'mixed'.")


def check_minibatches(options: Mapping[str, Any], groups: int, size: int, decisions: int, processes: int) -> None:
    """Refuse parts that a pass over a batch would leave empty, or would make otherwise on several processes.

    Args:
        options: Arguments of `HPOModule` by name.
        groups: Groups of episodes of an update, of one process.
        size: Episodes of a group.
        decisions: Decisions of an episode that are trained.
        processes: How many there are.

    Raises:
        ValueError: If ``minibatches`` does not fit them.
    """
    parts, episodes = options["minibatches"], groups * size
    if options["reuse"] == 0:
        return
    if parts >= episodes + decisions:
        raise ValueError(
            f"minibatches is {parts}, but an update has {episodes} episodes of {decisions} decisions, which do not "
            "fill so many; give fewer, or more episodes."
        )
    if processes > 1 and size % parts:
        raise ValueError(
            f"group_size is {size} and minibatches is {parts}, but on several processes group_size must be a multiple "
            "of minibatches, to train as one process does."
        )


@dataclass(frozen=True)
class Decisions:
    """Decisions of a rollout, detached: (batch, steps, ...), or in one row (decisions, ...).

    Attributes:
        observations: (..., O).
        modes: int64 (...), with heads (..., H).
        raw: Continuous parts of all modes before the action map, (..., J, m); None where they have no score.
        masks: Boolean (..., J), with heads (..., H, J), or None if all modes always were allowed.
        advantages: Standardised, (...), or (..., J) of all modes.
        targets: Of the value, standardised, (...).
        old: Log-probabilities of what was done, (..., 1), or (..., 2) with that of the Gaussian part; None before
            they are known.
    """

    observations: Tensor
    modes: Tensor
    raw: Tensor | None
    masks: Tensor | None
    advantages: Tensor
    targets: Tensor
    old: Tensor | None = None

    @property
    def heads(self) -> bool:
        """Whether the modes are those of several heads."""
        return self.modes.dim() > self.targets.dim()

    def in_one_row(self) -> Decisions:
        """All decisions of all episodes, (batch * steps, ...)."""
        return self._each(lambda value: value.flatten(0, 1))

    def share(self, chosen: Tensor) -> Decisions:
        """Those at ``chosen`` of a row."""
        return self._each(lambda value: value[chosen])

    def split(self, sizes: Sequence[int]) -> list[Decisions]:
        """A row cut into pieces of these lengths, which are views."""
        ends = list(itertools.accumulate(sizes))
        cuts = (slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True))
        return [self._each(operator.itemgetter(cut)) for cut in cuts]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Decisions:
        kept = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: change(value) for name, value in kept.items() if value is not None})


class LossPolicy(Protocol):
    """What the losses ask of a policy; see `rl.hpo.policies.HybridPolicy`."""

    log_std: nn.Parameter

    def raw_actions(self, observation: Tensor, mode: Tensor | None = None) -> Tensor:
        """Unconstrained continuous parts (..., J, m) of all modes, with heads that of these modes (..., 1, m)."""

    def value(self, observation: Tensor) -> Tensor:
        """Standardised value (...)."""


def taken(policy: LossPolicy, estimator: Estimator, law: Tensor, data: Decisions, active: Tensor) -> Tensor:
    """Log-probability of the modes, and of Gaussian continuous parts where they have a score: (..., 1 or 2).

    Args:
        policy: The policy.
        estimator: Which estimator.
        law: Log-probabilities of all modes (..., J), with heads (..., H, J).
        data: What was done.
        active: Which raw outputs an action depends on, (J, m): the score of the others is noise.
    """
    found = [mode_log_probs(law, data.modes, heads=data.heads)]
    if data.raw is not None:
        which = torch.zeros_like(data.targets, dtype=torch.long) if data.heads else data.modes
        index = which[..., None, None].expand(*which.shape, 1, data.raw.shape[-1])
        mean = policy.raw_actions(data.observations, data.modes).gather(-2, index).squeeze(-2)
        raw = data.raw.gather(-2, index).squeeze(-2)
        spread = policy.log_std
        density = -0.5 * ((raw - mean) / spread.exp()).square() - spread - 0.5 * math.log(2 * math.pi)
        found.append((density * active[which]).sum(-1))
    return torch.stack(found, -1)


def score_loss(law: Tensor, new: Tensor, data: Decisions, clip: float) -> Tensor:
    """The score part on detached states: clipped for sampled modes, the expectation itself for branched ones.

    Args:
        law: Log-probabilities of all modes (..., J).
        new: As :func:`taken` gives them, (..., 1 or 2).
        data: What was done, with its old log-probabilities.
        clip: PPO's epsilon.
    """
    if data.advantages.dim() > data.targets.dim():
        return (law.exp() * data.advantages).sum(-1).mean()
    old = new.detach() if data.old is None else data.old
    return clipped_surrogate(new, old, data.advantages[..., None], clip).sum(-1).mean()


def critic_loss(policy: LossPolicy, data: Decisions) -> Tensor:
    """Squared error of the value."""
    return (policy.value(data.observations) - data.targets).square().mean()
