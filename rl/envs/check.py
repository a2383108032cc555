"""Check a simulator against the protocol: shapes, replay, kept inputs, gradients, undeclared jumps, moving masks."""

from __future__ import annotations

import operator
from typing import Any, Literal, cast

import torch
from torch import Tensor

from rl.envs.check_replay import check_inputs_are_kept, check_replay
from rl.envs.check_smoothness import check_gradients, check_jumps, check_masks, play_raw
from rl.envs.hybrid import HybridSimulator, Noise, chosen_action, law_columns
from rl.errors import SimulatorError

BATCH = 6  # episodes of every check

Estimator = Literal["mixed", "score", "pathwise", "straight_through"]


def check_simulator(
    simulator: HybridSimulator, *, estimator: Estimator | None = None, seed: int = 0, scale: float = 2.0
) -> list[str]:
    r"""Play random episodes and refuse a simulator whose gradient would be wrong.

    With the modes and the noise held fixed, every step and every observation is differentiated by autograd and by
    finite differences along the states that two nearby action sequences reach, and is followed along lines of actions,
    near and far, to find jumps: a function that is continuous there changes by ever less on ever shorter pieces. Along
    the same lines the mode masks must stay as they are: a mask that the continuous actions move makes the modes' law
    jump, which no gradient through the simulator sees.

    Args:
        simulator: What to check; a copy in float64 is differentiated.
        estimator: The estimator of `rl.hpo.HPOModule` that it is to be trained with. All but ``score`` follow the
            simulator's gradient; ``score`` needs no gradient and allows jumps and masks of any kind, so these are not
            looked for. None takes ``mixed``, or ``score`` for a simulator that is declared not differentiable.
        seed: Of noise, modes and actions.
        scale: Standard deviation of the raw actions, and the reach of the search for jumps; the far lines reach 6 and
            36 times as far. A jump that none of these actions leads to is not found.

    Returns:
        What was checked, one sentence each.

    Raises:
        SimulatorError: For the first breach, in one sentence that names the step and the tensor.

    Example:
        >>> from rl.envs.newsvendor import Newsvendor
        >>> for line in check_simulator(Newsvendor()):
        ...     print(line)
        1 step of 2 modes and 1 action declared
        noise, states, observations, actions and costs have their shapes and are finite
        the same noise and actions give the same costs, for all episodes or a part of them
        no step writes into its inputs or uses the mode as a number
        no mode mask moves with the continuous actions
        gradients agree with finite differences at every step
        no jump within a mode
    """
    _check_declaration(simulator)
    estimator = estimator or ("mixed" if simulator.differentiable else "score")
    if estimator != "score" and not simulator.differentiable:
        raise SimulatorError(not_differentiable(estimator))
    what = f"{len(simulator.heads)} heads" if simulator.heads else _count(simulator.n_modes, "mode")
    done = [f"{_count(simulator.horizon, 'step')} of {what} and {_count(simulator.action_dim, 'action')} declared"]
    noise = _check_noise(simulator, seed)
    modes, raws = _episode(simulator, noise, seed, scale)
    done.append("noise, states, observations, actions and costs have their shapes and are finite")
    check_replay(simulator, noise, modes, raws)
    done.append("the same noise and actions give the same costs, for all episodes or a part of them")
    check_inputs_are_kept(simulator, noise, modes, raws)
    _check_seen_state(simulator, noise, modes, raws)
    done.append("no step writes into its inputs or uses the mode as a number")
    if not simulator.differentiable:
        return [*done, "declared not differentiable: gradients and jumps were not checked; train it with score"]
    if estimator == "score":
        return [*done, "estimator score needs no gradient: gradients, jumps and moving masks were not checked"]
    precise = simulator.to(dtype=torch.float64)
    noise, raws = _cast(noise, torch.float64), raws.double()
    direction = torch.randn(raws.shape, generator=torch.Generator().manual_seed(seed + 2), dtype=raws.dtype)
    check_masks(precise, noise, modes, raws, scale * direction, estimator)
    done.append("no mode mask moves with the continuous actions")
    check_gradients(precise, noise, modes, raws, direction)
    done.append("gradients agree with finite differences at every step")
    check_jumps(precise, noise, modes, raws, scale * direction)
    return [*done, "no jump within a mode"]


def not_differentiable(estimator: str) -> str:
    """The sentence that refuses an estimator for a simulator without gradients."""
    return (
        f"the simulator is declared not differentiable, so estimator {estimator} has no gradient to follow; train it "
        "with estimator score"
    )


def _check_declaration(simulator: HybridSimulator) -> None:
    if not isinstance(simulator.heads, tuple | list):
        raise SimulatorError(
            f"heads is {simulator.heads!r}, but it must be a tuple, the number of modes of each head, as in (2, 3)"
        )
    declared: dict[str, tuple[object, int]] = {
        name: (getattr(simulator, name, None), least)
        for name, least in (("n_modes", 1), ("action_dim", 0), ("observation_dim", 1), ("horizon", 1))
    }
    if simulator.heads:
        if declared["n_modes"][0] is not None:
            raise SimulatorError(
                f"n_modes is {declared['n_modes'][0]} and heads is {simulator.heads}, but modes are either a single "
                "choice or those of heads; leave one of them out"
            )
        del declared["n_modes"]
        declared |= {f"heads[{head}]": (size, 1) for head, size in enumerate(simulator.heads)}
    for name, (value, least) in declared.items():
        try:  # whole numbers of any type, those of numpy too
            whole = -1 if isinstance(value, bool) else operator.index(cast(Any, value))
        except TypeError:
            whole = -1
        if whole < least:
            raise SimulatorError(f"{name} is {value!r}, but it must be a whole number of at least {least}; set it")
    if not simulator.action_dim and all(size == 1 for size in simulator.heads or (simulator.n_modes,)):
        raise SimulatorError(
            "there is nothing to decide: action_dim is 0 and there is a single mode; give n_modes or heads that leave "
            "a choice, or an action_dim of at least 1"
        )
    if not 0 < simulator.discount <= 1:
        raise SimulatorError(f"discount is {simulator.discount}, but it must be above 0 and at most 1")
    if simulator.report not in ("mean", "total"):
        raise SimulatorError(f"report is {simulator.report!r}, but it must be 'mean' or 'total'")
    if not 0 <= simulator.report_from < simulator.horizon or not 0 <= 2 * simulator.buffer < simulator.horizon:
        raise SimulatorError(
            f"report_from is {simulator.report_from} and buffer {simulator.buffer}, but they must be at least 0 and "
            f"leave something of the horizon of {simulator.horizon}"
        )


def _check_noise(simulator: HybridSimulator, seed: int) -> Noise:
    before = torch.get_rng_state()
    draws = [simulator.sample_noise(BATCH, torch.Generator().manual_seed(seed)) for _ in range(2)]
    if not torch.equal(before, torch.get_rng_state()):
        raise SimulatorError("sample_noise draws from torch's global generator; draw from the one it is given")
    _check_tensors(simulator, draws[0], "sample_noise", "noise")
    for name, value in draws[0].items():
        if not torch.equal(value, draws[1][name]):
            raise SimulatorError(
                f"noise['{name}'] differs between two equal generators; draw all of it from the generator"
            )
    return draws[0]


def _check_tensors(simulator: HybridSimulator, tensors: object, where: str, kind: str) -> None:
    if not isinstance(tensors, dict):
        raise SimulatorError(
            f"{where} returns a {type(tensors).__name__} as the {kind}, but it must be a dict of tensors"
        )
    for name, value in tensors.items():
        label = f"{kind}['{name}']"
        if not isinstance(value, Tensor):
            raise SimulatorError(f"{where}: {label} is a {type(value).__name__}; make it a tensor of {BATCH} episodes")
        if value.ndim == 0 or len(value) != BATCH:
            raise SimulatorError(
                f"{where}: {label} has shape {tuple(value.shape)} in a batch of {BATCH}; keep the batch first and its "
                "size"
            )
        _check_values(simulator, value, where, label)


def _check_values(simulator: HybridSimulator, value: Tensor, where: str, label: str) -> None:
    if not value.is_floating_point():
        return
    if value.dtype != simulator.dtype:
        raise SimulatorError(f"{where}: {label} is {value.dtype}, but the simulator's dtype is {simulator.dtype}")
    if not value.isfinite().all():
        wrong = value.detach()[~value.isfinite()][0].item()
        episode = int((~value.isfinite()).nonzero()[0, 0])
        raise SimulatorError(f"{where}: {label} is {wrong} in episode {episode}; every cost and state must be finite")


def _check_shape(simulator: HybridSimulator, value: object, shape: tuple[int, ...], where: str, label: str) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise SimulatorError(f"{where}: {label} has shape {got}, but it must be {shape}")
    _check_values(simulator, value, where, label)


def _episode(simulator: HybridSimulator, noise: Noise, seed: int, scale: float) -> tuple[Tensor, Tensor]:
    """Play random modes and actions, checking every tensor; returns modes and raw actions, step first."""
    generator = torch.Generator().manual_seed(seed + 1)
    shape = (simulator.horizon, BATCH, simulator.alternatives, simulator.action_dim)
    columns = law_columns(simulator.heads) if simulator.heads else torch.ones(simulator.n_modes, dtype=torch.bool)
    law = (BATCH, *simulator.law_shape)
    raws = scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(simulator.dtype)
    state = simulator.reset(noise)
    _check_tensors(simulator, state, "reset", "state")
    modes = []
    for t in range(simulator.horizon):
        where = f"step {t}"
        observation = simulator.observe(state, t)
        _check_shape(simulator, observation, (BATCH, simulator.observation_dim), where, "the observation")
        actions = simulator.action_map(raws[t].to(simulator.device), state)
        _check_shape(simulator, actions, shape[1:], where, "what action_map returns")
        mask = simulator.mode_mask(state, t)
        if mask is None:
            mask = torch.ones(law, dtype=torch.bool)
        if mask.dtype != torch.bool or mask.shape != law or not (mask.cpu() & columns).any(-1).all():
            raise SimulatorError(
                f"{where}: the mode mask is {mask.dtype} of shape {tuple(mask.shape)}, but it must be boolean of shape "
                f"{law} with a true value in every row" + (" of every head" if simulator.heads else "")
            )
        chances = (mask.cpu() & columns).double().flatten(0, -2)
        mode = torch.multinomial(chances, 1, generator=generator).reshape(law[:-1]).to(simulator.device)
        following, cost = simulator.step(state, mode, chosen_action(actions, mode), noise, t)
        _check_shape(simulator, cost, (BATCH,), where, "the cost")
        _check_tensors(simulator, following, where, "state")
        for name, value in following.items():
            if name not in state or value.shape != state[name].shape:
                before = tuple(state[name].shape) if name in state else "absent"
                raise SimulatorError(
                    f"{where}: state['{name}'] has shape {tuple(value.shape)}, and was {before} before"
                )
        if missing := sorted(state.keys() - following.keys()):
            raise SimulatorError(f"{where}: state['{missing[0]}'] is missing from the next state; return all of it")
        state = following
        modes.append(mode)
    last = simulator.observe(state, simulator.horizon)
    _check_shape(simulator, last, (BATCH, simulator.observation_dim), "after the last step", "the observation")
    return torch.stack(modes), raws.to(simulator.device)


def _check_seen_state(simulator: HybridSimulator, noise: Noise, modes: Tensor, raws: Tensor) -> None:
    """What a policy does outside the simulator, from observations alone, must be what it does inside."""
    states, _ = play_raw(simulator, noise, modes, raws)
    for t in range(simulator.horizon):
        seen = simulator.seen_state(simulator.observe(states[t], t))
        try:
            outside = simulator.action_map(raws[t], seen)
        except KeyError:  # it needs a state that observations do not show: acting outside asks for it
            return
        inside = simulator.action_map(raws[t], states[t])
        if not torch.allclose(outside, inside, rtol=1e-3, atol=1e-4):
            raise SimulatorError(
                f"step {t}: action_map gives other actions with seen_state(observation) than with the state; return "
                "the very tensors of the state that it reads"
            )


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
