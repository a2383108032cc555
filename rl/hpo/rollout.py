"""Whole episodes at once: the live tensors that the estimator needs; a simulator that cuts them is refused."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from rl.envs.hybrid import HybridSimulator, Noise, State, chosen_action
from rl.errors import SimulatorError


class Policy(Protocol):
    """What a rollout asks of a policy; see `rl.hpo.policies.HybridPolicy`."""

    def logits(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probabilities of the modes up to a number (batch, J), with heads (batch, H, J) and one number a head."""

    def raw_actions(self, observation: Tensor, mode: Tensor | None = None) -> Tensor:
        """Unconstrained continuous parts (batch, J, m) of all modes, with heads that of these modes (batch, 1, m)."""


@dataclass(frozen=True)
class Draws:
    """The policy's own randomness, drawn beforehand so that a rollout can be replayed.

    Attributes:
        gumbel: Standard Gumbel noise (batch, T, J), with heads (batch, T, H, J): the mode is the argmax of
            log-probability plus noise. None chooses the likeliest mode.
        normal: Standard normal noise (batch, T, J, m), with heads (batch, T, 1, m), already times the standard
            deviation: reparametrised continuous actions. None leaves them deterministic.
    """

    gumbel: Tensor | None = None
    normal: Tensor | None = None


@dataclass(frozen=True)
class Rollout:
    """What happened, batch first; with heads, laws and masks are (batch, T, H, J), continuous parts (batch, T, 1, m).

    Attributes:
        observations: (batch, T + 1, O), detached; the last follows the last decision.
        log_probs: (batch, T, J), live in the policy, and in the states where the cross term is on.
        modes: int64 (batch, T), with heads (batch, T, H).
        raw: Continuous parts of all modes before the action map, (batch, T, J, m), detached.
        costs: (batch, T), live.
        tails: Observations in which a window ended, (batch, windows, O), live.
        tail_steps: The steps at which they ended, (windows,).
        branch_costs: Costs of every mode, (batch, T, J), detached; None without branching.
        branch_observations: Observations that every mode leads to, (batch, T, J, O), detached.
        masks: Boolean (batch, T, J), true where a mode was allowed; None if all always were.
    """

    observations: Tensor
    log_probs: Tensor
    modes: Tensor
    raw: Tensor
    costs: Tensor
    tails: Tensor
    tail_steps: Tensor
    branch_costs: Tensor | None = None
    branch_observations: Tensor | None = None
    masks: Tensor | None = None


def rollout(
    simulator: HybridSimulator,
    policy: Policy,
    noise: Noise,
    draws: Draws,
    *,
    cross_term: bool = True,
    window: int = 0,
    last_live: int | None = None,
    branch: bool = False,
    relaxed: float | None = None,
) -> Rollout:
    """Simulate whole episodes with the gradient alive.

    Args:
        simulator: The simulator.
        policy: Gives logits of modes and the modes' continuous parts.
        noise: Everything random of the simulator.
        draws: Everything random of the policy.
        cross_term: Evaluate the modes' log-probabilities on live states; off, on detached ones.
        window: Detach the states after this many steps and note where; 0 never does.
        last_live: Continuous actions from this step on are detached, because too few of their consequences are seen
            before the episode is cut. None keeps all alive.
        branch: Also take one step of every mode from every state.
        relaxed: Temperature of straight-through modes: the step is a mixture of the steps of all modes, one-hot forward
            and softmax backward. **Biased**; for comparison.

    Returns:
        The rollout.

    Raises:
        SimulatorError: When the simulator returns a cost or state that is not finite, of another batch size, or cut off
            from the action's gradient.
    """
    if simulator.horizon < 1:
        raise SimulatorError(f"the horizon is {simulator.horizon}; an episode needs at least 1 decision.")
    state = simulator.reset(noise)
    batch = len(next(iter(noise.values())))
    _check_batch(state, None, batch, None)
    last_live = simulator.horizon if last_live is None else last_live
    kept: dict[str, list[Tensor]] = {name: [] for name in ("o", "l", "x", "u", "c", "bc", "bo", "m", "w")}
    tail_steps = []
    # Half precision is for networks; a context manager that changes nothing is spared.
    device = next(iter(noise.values())).device.type
    precise = partial(torch.autocast, device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext
    for t in range(simulator.horizon):
        observation = simulator.observe(state, t)
        mask = simulator.mode_mask(state, t)
        logits = policy.logits(observation if cross_term else observation.detach(), mask)
        scores = logits.detach() if relaxed is None else logits
        if draws.gumbel is not None:
            scores = scores + draws.gumbel[:, t]
        mode = scores.detach().argmax(-1)
        raw = policy.raw_actions(observation, mode) if simulator.heads else policy.raw_actions(observation)
        if draws.normal is not None:
            raw = raw + draws.normal[:, t]
        with precise():
            actions = simulator.action_map(raw.detach() if t >= last_live else raw, state)
            if branch:
                costs, following = _branches(simulator, state, actions, noise, t)
                kept["bc"].append(costs)
                kept["bo"].append(following)
            if relaxed is not None:
                state, cost = _straight_through(simulator, state, scores / relaxed, mode, actions, noise, t)
            else:
                action = chosen_action(actions, mode)
                state, cost = simulator.step(state, mode, action, noise, t)
        _check_batch(state, cost, batch, t)
        if torch.is_grad_enabled() and actions.requires_grad:
            _check_live(state, cost, t, simulator.horizon)
        for name, value in (("o", observation.detach()), ("l", logits), ("x", mode), ("u", raw.detach()), ("c", cost)):
            kept[name].append(value)
        if mask is not None:
            kept["m"].append(mask)
        if window and (t + 1) % window == 0 and t + 1 < simulator.horizon:
            kept["w"].append(simulator.observe(state, t + 1))
            tail_steps.append(t + 1)
            state = {name: value.detach() for name, value in state.items()}
    kept["o"].append(simulator.observe(state, simulator.horizon).detach())
    stacked: dict[str, Any] = {name: torch.stack(values, 1) if values else None for name, values in kept.items()}
    if not bool(torch.isfinite(stacked["c"]).all() & torch.isfinite(stacked["o"]).all()):
        raise SimulatorError(_first_not_finite(stacked["c"], stacked["o"]))
    return Rollout(
        observations=stacked["o"],
        log_probs=stacked["l"].log_softmax(-1),  # of all steps at once: the law that chose the modes
        modes=stacked["x"],
        raw=stacked["u"],
        costs=stacked["c"],
        tails=stacked["o"][:, :0] if stacked["w"] is None else stacked["w"],
        tail_steps=torch.tensor(tail_steps, device=stacked["c"].device),
        branch_costs=stacked["bc"],
        branch_observations=stacked["bo"],
        masks=stacked["m"],
    )


def _each_mode(state: State, noise: Noise, actions: Tensor) -> tuple[State, Noise, Tensor, Tensor]:
    """Repeat every episode once for each mode, so that one call steps them all."""
    batch, modes, _ = actions.shape
    wide = [{k: v.repeat_interleave(modes, 0) for k, v in tree.items()} for tree in (state, noise)]
    return wide[0], wide[1], torch.arange(modes, device=actions.device).repeat(batch), actions.flatten(0, 1)


def _branches(simulator: HybridSimulator, state: State, actions: Tensor, noise: Noise, t: int) -> tuple[Tensor, Tensor]:
    """Cost (batch, J) and following observation (batch, J, O) of every mode, detached."""
    with torch.no_grad():
        wide_state, wide_noise, mode, action = _each_mode(state, noise, actions)
        following, cost = simulator.step(wide_state, mode, action, wide_noise, t)
        observation = simulator.observe(following, t + 1)
    batch, modes, _ = actions.shape
    return cost.reshape(batch, modes), observation.reshape(batch, modes, -1)


def _straight_through(
    simulator: HybridSimulator, state: State, scores: Tensor, mode: Tensor, actions: Tensor, noise: Noise, t: int
) -> tuple[State, Tensor]:
    """Mix the steps of all modes with weights that are one-hot forward and a softmax backward."""
    soft = scores.softmax(-1)
    weights = torch.nn.functional.one_hot(mode, soft.shape[-1]).to(soft) + soft - soft.detach()
    wide_state, wide_noise, wide_mode, action = _each_mode(state, noise, actions)
    following, cost = simulator.step(wide_state, wide_mode, action, wide_noise, t)

    def mix(value: Tensor) -> Tensor:
        value = value.reshape(*actions.shape[:2], *value.shape[1:])
        if not value.is_floating_point():
            return value[torch.arange(len(mode), device=mode.device), mode]
        return (weights.reshape(*weights.shape, *[1] * (value.dim() - 2)) * value).sum(1)

    return {name: mix(value) for name, value in following.items()}, mix(cost)


def _check_batch(state: State, cost: Tensor | None, batch: int, t: int | None) -> None:
    where = "reset" if t is None else f"step {t}"
    if cost is not None and cost.shape != (batch,):
        raise SimulatorError(
            f"{where}: the cost has shape {tuple(cost.shape)}; return one number an episode, ({batch},)."
        )
    for name, value in state.items():
        if value.dim() == 0 or len(value) != batch:
            raise SimulatorError(
                f"{where}: state '{name}' has shape {tuple(value.shape)} in a batch of {batch}; keep the batch first."
            )


def _check_live(state: State, cost: Tensor, t: int, horizon: int) -> None:
    floating = [name for name, value in state.items() if value.is_floating_point()]
    if t + 1 < horizon and floating and not any(state[name].requires_grad for name in floating):
        raise SimulatorError(
            f"step {t}: the state '{floating[0]}' carries no gradient of the action; the simulator must not detach it, "
            "leave torch or write into it. If no state depends on actions, give a horizon of 1."
        )
    if t + 1 == horizon and not cost.requires_grad:
        raise SimulatorError(
            f"step {t}: the cost carries no gradient of the action; the simulator must not detach it or leave torch."
        )


def _first_not_finite(costs: Tensor, observations: Tensor) -> str:
    for t in range(costs.shape[1]):
        for name, value in (("observation", observations[:, t]), ("cost", costs[:, t])):
            bad = ~torch.isfinite(value.detach())
            if bad.any():
                count = int(bad.reshape(len(bad), -1).any(1).sum())
                found = f"{float(value.detach()[bad][0])} in {count} of {len(value)} episodes"
                return f"step {t}: the {name} is {found}; every cost and state must be finite: bound them."
    return "the observation after the last step is not finite; bound the action or the state."
