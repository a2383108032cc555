"""Check that a simulator replays: the same noise and actions, the same episode, whoever else is in the batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rl.envs.hybrid import HybridSimulator, Noise, chosen_action, law_columns
from rl.errors import SimulatorError

FAR = 100.0  # how far the raw actions of strangers in the batch are moved

Record = list[dict[str, Tensor]]


def check_replay(simulator: HybridSimulator, noise: Noise, modes: Tensor, raws: Tensor) -> None:
    """Play the same episodes again: all of them, each alone, and beside strangers that go far astray.

    Args:
        simulator: The simulator.
        noise: Of the episodes.
        modes: (horizon, batch).
        raws: (horizon, batch, n_modes, action_dim).

    Raises:
        SimulatorError: If anything that is seen, allowed, done or paid differs.
    """
    before = torch.get_rng_state()
    first = _record(simulator, noise, modes, raws)
    for t, (one, other) in enumerate(zip(first, _record(simulator, noise, modes, raws), strict=True)):
        for label, value in one.items():
            if not torch.equal(value, other[label]):
                raise SimulatorError(
                    f"step {t}: {label} differs when the same noise and actions are played again; draw everything "
                    "random in sample_noise, and keep nothing between steps but the state"
                )
    if not torch.equal(before, torch.get_rng_state()):
        raise SimulatorError(
            "an episode draws from torch's global generator; draw everything random in sample_noise, from the "
            "generator it is given"
        )
    batch = modes.shape[1]
    half = torch.arange(batch // 2)
    alone = [torch.tensor([episode]) for episode in range(batch)]
    for rows in [half, *alone]:
        part = _record(simulator, {name: value[rows] for name, value in noise.items()}, modes[:, rows], raws[:, rows])
        _compare(first, part, rows, "others leave the batch")
    for far in (FAR, -FAR):
        strangers = torch.cat([raws[:, half], raws[:, len(half) :] + far], 1)
        _compare(first, _record(simulator, noise, modes, strangers), half, "others in the batch act otherwise")


def _record(simulator: HybridSimulator, noise: Noise, modes: Tensor, raws: Tensor) -> Record:
    """What is seen, allowed, done and paid in every step, by its name in errors."""
    state, record = simulator.reset(noise), []
    for t in range(simulator.horizon):
        mask = simulator.mode_mask(state, t)
        mode = modes[t]
        actions = simulator.action_map(raws[t], state)
        seen = {"the observation": simulator.observe(state, t), "what action_map returns": actions}
        if mask is not None:
            seen["the mode mask"] = mask
            # Strangers may come where the mode is not allowed.
            allowed = mask.gather(-1, mode.unsqueeze(-1)).squeeze(-1)
            real = mask & law_columns(simulator.heads, mask.device) if simulator.heads else mask
            mode = torch.where(allowed, mode, real.long().argmax(-1))
        state, cost = simulator.step(state, mode, chosen_action(actions, mode), noise, t)
        record.append({**seen, "the cost": cost})
    return record


def _compare(whole: Record, other: Record, rows: Tensor, why: str) -> None:
    """Refuse an episode of ``other`` that is not what it was: the first ones of it are ``rows`` of the whole."""
    for t, (one, again) in enumerate(zip(whole, other, strict=True)):
        for label, value in one.items():
            mine, theirs = value[rows].detach(), again[label][: len(rows)].detach()
            if not torch.allclose(mine.double(), theirs.double(), rtol=1e-4, atol=1e-5, equal_nan=True):
                raise SimulatorError(
                    f"step {t}: {label} of an episode changes when {why}; episodes must not depend on each other, "
                    "not through a mean, a sum or an if over the batch either"
                )


class _Mode(Tensor):
    """A mode that refuses to become a floating number, except by being an index."""

    @classmethod
    def __torch_function__(cls, func: Any, types: object, args: Iterable[object] = (), kwargs: Any = None) -> Any:
        def plain(value: object) -> object:
            if isinstance(value, cls):
                return value.as_subclass(Tensor)
            return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value

        args = tuple(args)
        result = func(*map(plain, args), **{key: plain(value) for key, value in (kwargs or {}).items()})
        name = getattr(func, "__name__", "")
        if type(result) in (tuple, list):  # the heads of a mode, taken apart
            return type(result)(one.as_subclass(cls) if _whole(one) else one for one in result)
        if not isinstance(result, Tensor):
            return result
        if any(word in name for word in ("getitem", "gather", "index", "take", "embed")):
            # What a mode picks out of a table is a number like any other; a part of a mode is a mode.
            return result.as_subclass(cls) if _whole(result) and args and isinstance(args[0], cls) else result
        if result.is_floating_point() and name != "where":
            raise _ModeAsNumberError(name.strip("_"))
        return result if result.dtype == torch.bool or name == "one_hot" else result.as_subclass(cls)


def _whole(value: object) -> bool:
    """Whether it is a tensor of whole numbers."""
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool


class _ModeAsNumberError(Exception):
    """The mode went through arithmetic."""


def check_inputs_are_kept(simulator: HybridSimulator, noise: Noise, modes: Tensor, raws: Tensor) -> None:
    """Watch what is written into, and what the mode is used for.

    Args:
        simulator: The simulator.
        noise: Of the episodes.
        modes: (horizon, batch).
        raws: (horizon, batch, n_modes, action_dim).

    Raises:
        SimulatorError: If a tensor that was given is written into, or the mode goes through arithmetic.
    """
    state = simulator.reset(noise)
    for t in range(simulator.horizon):
        inputs = {f"state['{name}']": value for name, value in state.items()}
        inputs |= {f"noise['{name}']": value for name, value in noise.items()} | {"the raw actions": raws[t]}
        versions = {name: value._version for name, value in inputs.items()}

        def kept(what: str, inputs: dict[str, Tensor] = inputs, versions: dict[str, int] = versions) -> None:
            for name, value in inputs.items():
                if value._version != versions[name]:
                    raise SimulatorError(f"{what} writes into {name} in place; build a new tensor instead")

        # An observation may well show an earlier mode as a number: only a step may not compute with it.
        plain = {name: value.as_subclass(Tensor) for name, value in state.items()}
        simulator.observe(plain, t)
        kept(f"step {t}: observe")
        simulator.mode_mask(plain, t)
        kept(f"step {t}: mode_mask")
        action = chosen_action(simulator.action_map(raws[t], plain), modes[t])
        kept(f"step {t}: action_map")
        inputs["the action"], versions["the action"] = action, action._version
        try:
            following, _ = simulator.step(state, modes[t].as_subclass(_Mode), action, noise, t)
        except _ModeAsNumberError as error:
            raise SimulatorError(
                f"step {t}: the mode is used as a number (by '{error}'); index a table with it or compare it, as in "
                "torch.where(mode == 1, ...)"
            ) from None
        kept(f"step {t}")
        state = following
