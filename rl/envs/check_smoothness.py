"""Check that a simulator is smooth within a mode: gradients, a search for jumps, and masks that actions move."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rl.envs.hybrid import HybridSimulator, Noise, State, chosen_action
from rl.errors import SimulatorError

NUDGE = 1e-6  # of a finite difference, in float64
POINTS = 17  # on the line along which jumps are looked for
HALVINGS = 32  # of a piece of that line
SEARCHED = 10  # steps of an episode in which jumps are looked for, the first and the last among them
FAR = {6: 4, 36: 4}  # reaches of farther lines, in that of the first, and the steps searched there

Point = tuple[State, Tensor]


def play_raw(simulator: HybridSimulator, noise: Noise, modes: Tensor, raws: Tensor) -> tuple[list[State], Tensor]:
    """Play given modes and raw actions.

    Args:
        simulator: The simulator.
        noise: Of the episodes.
        modes: (horizon, batch).
        raws: (horizon, batch, n_modes, action_dim).

    Returns:
        The states before every step and after the last, and the costs (horizon, batch).
    """
    states, costs = [simulator.reset(noise)], []
    for t in range(simulator.horizon):
        following, cost = step_raw(simulator, states[-1], modes[t], raws[t], noise, t)
        states.append(following)
        costs.append(cost)
    return states, torch.stack(costs)


def step_raw(
    simulator: HybridSimulator, state: State, mode: Tensor, raw: Tensor, noise: Noise, t: int
) -> tuple[State, Tensor]:
    """One step from the raw actions of all modes (batch, n_modes, action_dim)."""
    return simulator.step(state, mode, chosen_action(simulator.action_map(raw, state), mode), noise, t)


def check_gradients(simulator: HybridSimulator, noise: Noise, modes: Tensor, raws: Tensor, direction: Tensor) -> None:
    """Compare directional derivatives of every step, along the states that two nearby action sequences reach.

    Args:
        simulator: In float64.
        noise: Of the episodes.
        modes: (horizon, batch).
        raws: (horizon, batch, n_modes, action_dim).
        direction: From the raw actions to nearby ones, of the same shape.

    Raises:
        SimulatorError: Where autograd and finite differences disagree, fail, or are not finite.
    """
    back, here, ahead = (play_raw(simulator, noise, modes, raws + side * NUDGE * direction) for side in (-1, 0, 1))
    generator = torch.Generator().manual_seed(0)
    for t in range(simulator.horizon):
        state = {name: value.detach().clone() for name, value in here[0][t].items()}
        moving = {name: value.requires_grad_() for name, value in state.items() if value.is_floating_point()}
        inputs = [*moving.values(), raws[t].clone().requires_grad_()]
        velocity = [(ahead[0][t][name] - back[0][t][name]) / (2 * NUDGE) for name in moving] + [direction[t]]
        try:
            seen = simulator.observe(state, t)
            following, cost = step_raw(simulator, state, modes[t], inputs[-1], noise, t)
        except RuntimeError as error:
            raise SimulatorError(f"step {t} fails on tensors that need gradients: {_first_line(error)}") from error
        outputs = {
            "the observation": (seen, *(simulator.observe(run[0][t], t) for run in (back, here, ahead))),
            "the cost": (cost, back[1][t], here[1][t], ahead[1][t]),
        } | {
            f"state['{name}']": (value, *(run[0][t + 1][name] for run in (back, here, ahead)))
            for name, value in following.items()
            if value.is_floating_point()
        }
        for label, (output, before, middle, after) in outputs.items():
            weight = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
            slope = torch.zeros(len(output), dtype=output.dtype, device=output.device)
            if output.requires_grad:
                slope = _slope(t, label, output, weight, inputs, velocity)
            # At a kink every slope between the one-sided ones is right, entry by entry.
            left, right = weight * (middle - before) / NUDGE, weight * (after - middle) / NUDGE
            low, high = (_by_episode(bound(left, right)) for bound in (torch.minimum, torch.maximum))
            rounding = 1e-6 * _by_episode((weight * middle).abs())
            tolerance = 1e-4 * (1 + _by_episode(torch.maximum(left.abs(), right.abs()))) + rounding
            wrong = (slope < low - tolerance) | (slope > high + tolerance)
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise SimulatorError(
                    f"step {t}: the gradient of {label} is {float(slope[row]):.4g} by autograd but "
                    f"{float((low + high)[row]) / 2:.4g} by finite differences, so its graph is detached from a "
                    "state or the action; compute it from live tensors, without detach, item or numpy"
                )


def _slope(t: int, label: str, output: Tensor, weight: Tensor, inputs: list[Tensor], velocity: list[Tensor]) -> Tensor:
    try:
        gradients = torch.autograd.grad(output, inputs, weight, allow_unused=True, retain_graph=True)
    except RuntimeError as error:
        raise SimulatorError(f"step {t}: {label} cannot be differentiated: {_first_line(error)}") from error
    slope = torch.zeros(len(output), dtype=output.dtype, device=output.device)
    for gradient, speed in zip(gradients, velocity, strict=True):
        if gradient is not None:
            if not gradient.isfinite().all():
                raise SimulatorError(
                    f"step {t}: the gradient of {label} is not finite; torch.where around a division, root or "
                    "logarithm hides its value but not its gradient: make the argument safe first"
                )
            slope = slope + _by_episode(gradient * speed)
    return slope


def moved_mask(
    simulator: HybridSimulator, noise: Noise, modes: Tensor, raws: Tensor, others: Tensor
) -> tuple[int, int] | None:
    """The first step in which other continuous actions, with the same modes and noise, lead to another mode mask.

    Args:
        simulator: The simulator.
        noise: Of the episodes.
        modes: Modes that were allowed under ``raws``, (horizon, batch).
        raws: (horizon, batch, n_modes, action_dim).
        others: Other raw actions, of the same shape.

    Returns:
        The step, and how many episodes' masks differ there; None if none does.
    """
    states = [simulator.reset(noise), simulator.reset(noise)]
    for t in range(simulator.horizon):
        masks = [simulator.mode_mask(state, t) for state in states]
        if masks[0] is not None and masks[1] is not None:
            count = int((masks[0] != masks[1]).any(1).sum())
            if count:  # from here on the mode may not be allowed: nothing that follows would mean anything
                return t, count
        played = zip(states, (raws, others), strict=True)
        states = [step_raw(simulator, state, modes[t], raw[t], noise, t)[0] for state, raw in played]
    return None


def moving_mask(step: str, estimator: str) -> str:
    """The sentence that refuses an estimator for a simulator whose mask the continuous actions move."""
    return (
        f"{step}: the mode mask changes with the continuous actions that lead there, so the modes' probabilities "
        f"jump where no gradient sees it and estimator {estimator} is biased; train with estimator score, which stays "
        "unbiased, or allow the mode everywhere at a cost that grows from 0 beyond the mask's boundary"
    )


def check_masks(
    simulator: HybridSimulator, noise: Noise, modes: Tensor, raws: Tensor, reach: Tensor, estimator: str
) -> None:
    """Compare the mode masks along lines of action sequences, near and far.

    Args:
        simulator: In float64.
        noise: Of the episodes.
        modes: (horizon, batch).
        raws: The middle of the line, (horizon, batch, n_modes, action_dim).
        reach: From the middle of the line to its end.
        estimator: For the error.

    Raises:
        SimulatorError: Where a mask is another than in the middle of the line.
    """
    noise, modes, middle, offsets = _along_a_line(noise, modes, raws, reach)
    for times in (1, *FAR):
        found = moved_mask(simulator, noise, modes, middle, middle + times * offsets)
        if found is not None:
            raise SimulatorError(moving_mask(f"step {found[0]}", estimator))


def _along_a_line(noise: Noise, modes: Tensor, raws: Tensor, reach: Tensor) -> tuple[Noise, Tensor, Tensor, Tensor]:
    """Every episode once for each point of the line, and how far the point is from its middle."""
    offsets = torch.linspace(-1, 1, POINTS, dtype=raws.dtype, device=raws.device).repeat(raws.shape[1])[:, None, None]
    wide = {name: value.repeat_interleave(POINTS, 0) for name, value in noise.items()}
    modes, raws, reach = (value.repeat_interleave(POINTS, 1) for value in (modes, raws, reach))
    return wide, modes, raws, offsets * reach


def check_jumps(simulator: HybridSimulator, noise: Noise, modes: Tensor, raws: Tensor, reach: Tensor) -> None:
    """Follow lines of action sequences, near and far; bisect their pieces towards where an output changes most.

    Args:
        simulator: In float64.
        noise: Of the episodes.
        modes: (horizon, batch).
        raws: The middle of the line, (horizon, batch, n_modes, action_dim).
        reach: From the middle of the line to its end.

    Raises:
        SimulatorError: Where a change stays while the piece that it happens on vanishes.
    """
    batch = raws.shape[1]
    noise, modes, middle, offsets = _along_a_line(noise, modes, raws, reach)
    left = torch.arange(batch * POINTS, device=raws.device).view(batch, POINTS)[:, :-1].flatten()
    for times, steps in {1: SEARCHED, **FAR}.items():
        _search_line(simulator, noise, modes, middle + times * offsets, left, steps)


def _search_line(
    simulator: HybridSimulator, noise: Noise, modes: Tensor, raws: Tensor, left: Tensor, steps: int
) -> None:
    noise_left = {name: value[left] for name, value in noise.items()}
    searched = set(torch.linspace(0, simulator.horizon - 1, min(simulator.horizon, steps)).long().tolist())
    state = simulator.reset(noise)
    for t in range(simulator.horizon):
        if t in searched:
            ends = [({name: value[i] for name, value in state.items()}, raws[t, i]) for i in (left, left + 1)]
            outputs = partial(_outputs, simulator, modes[t, left], noise_left, t)
            for label in outputs(ends[0]):
                change = _bisect(outputs, label, *ends)
                if (change > 1e-5).any():
                    raise SimulatorError(
                        f"step {t}: {label} jumps as the state or the action changes while the mode stays the same; a "
                        "gradient does not see a jump: declare a mode for either side of it"
                    )
        state, _ = step_raw(simulator, state, modes[t], raws[t], noise, t)


def _outputs(simulator: HybridSimulator, mode: Tensor, noise: Noise, t: int, point: Point) -> dict[str, Tensor]:
    """What is seen before a step, and what it returns; one row an episode."""
    following, cost = step_raw(simulator, point[0], mode, point[1], noise, t)
    floating = {f"state['{name}']": value for name, value in following.items() if value.is_floating_point()}
    both = {"the observation": simulator.observe(point[0], t), "the cost": cost, **floating}
    return {label: _rows(value) for label, value in both.items()}


def _bisect(outputs: Callable[[Point], dict[str, Tensor]], label: str, left: Point, right: Point) -> Tensor:
    """The change of an output over ever smaller pieces, relative to its size: what is left of it is a jump."""
    low, high = outputs(left)[label], outputs(right)[label]
    for _ in range(HALVINGS):
        middle = {name: _between(left[0][name], right[0][name]) for name in left[0]}, _between(left[1], right[1])
        value = outputs(middle)[label]
        keep = _widest(value - low) >= _widest(high - value)
        left, low = _where(keep, left, middle), torch.where(keep[:, None], low, value)
        right, high = _where(keep, middle, right), torch.where(keep[:, None], value, high)
    return _widest(high - low) / (1 + _widest(low))


def _between(left: Tensor, right: Tensor) -> Tensor:
    return (left + right) / 2 if left.is_floating_point() else left


def _widest(change: Tensor) -> Tensor:
    """Largest change in an episode, (batch,)."""
    return change.abs().amax(dim=1) if change.shape[1] else change.new_zeros(len(change))


def _where(keep: Tensor, first: Point, second: Point) -> Point:
    def pick(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(keep.view(-1, *[1] * (one.ndim - 1)), one, other)

    return {name: pick(first[0][name], second[0][name]) for name in first[0]}, pick(first[1], second[1])


def _by_episode(values: Tensor) -> Tensor:
    return values.flatten(1).sum(dim=1) if values.ndim > 1 else values


def _rows(values: Tensor) -> Tensor:
    return values.flatten(1) if values.ndim > 1 else values.unsqueeze(1)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
