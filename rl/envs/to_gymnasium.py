"""A simulator as an environment of Gymnasium, alone or many at once; gradients end at this door."""

from __future__ import annotations

import math
from collections.abc import Mapping

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.action_spaces import FlatActions
from rl.envs.hybrid import HybridSimulator, check_allowed, check_modes, chosen_action
from rl.errors import SimulatorError
from rl.loading import find, make

Array = NDArray[np.float32]


def action_space(simulator: HybridSimulator, bound: float) -> spaces.Space[object]:
    """``Dict(mode=Discrete(J), parameters=Box(m))``; the parameters are raw, and ``action_map`` makes them feasible.

    With heads the mode is a ``MultiDiscrete``; without a continuous part it is all there is.
    """
    mode: spaces.Space[object] = (
        spaces.MultiDiscrete(simulator.heads) if simulator.heads else spaces.Discrete(simulator.n_modes)
    )
    if not simulator.action_dim:
        return mode
    parameters = spaces.Box(-bound, bound, (simulator.action_dim,), np.float32)
    return spaces.Dict({"mode": mode, "parameters": parameters})


def raw_action(mode: NDArray[np.int64], parameters: Array) -> object:
    """An element of :func:`action_space`, or a batch of them, from modes and raw parameters."""
    return {"mode": mode, "parameters": parameters} if parameters.shape[-1] else mode


def _parts(action: object) -> tuple[object, object]:
    """Mode and raw parameters of such an element."""
    return (action["mode"], action["parameters"]) if isinstance(action, Mapping) else (action, np.zeros(0))


class _Episodes:
    """Episodes of a simulator that run side by side, with numpy at the edge."""

    def __init__(self, simulator: HybridSimulator, batch: int) -> None:
        self.simulator, self.batch, self.t = simulator, batch, simulator.horizon

    def start(self, seed: int) -> tuple[Array, dict[str, NDArray[np.int8]]]:
        self.noise = self.simulator.sample_noise(self.batch, torch.Generator().manual_seed(seed))
        self.state, self.t = self.simulator.reset(self.noise), 0
        return self._seen()

    @torch.no_grad()
    def step(
        self, mode: object, parameters: object
    ) -> tuple[Array, NDArray[np.float64], bool, dict[str, NDArray[np.int8]]]:
        """Observations, rewards, whether the episodes are over, and the mode mask."""
        if self.t >= self.simulator.horizon:
            raise SimulatorError(f"the episode is over after {self.simulator.horizon} steps; call reset before step")
        simulator = self.simulator
        chosen = self._rows(mode, "mode", (len(simulator.heads),) if simulator.heads else (), whole=True).long()
        check_modes(chosen, simulator, self.t)
        check_allowed(chosen, self._mask(), self.t)
        raw = self._rows(parameters, "parameters", (simulator.action_dim,)).to(simulator.dtype)
        every = raw.unsqueeze(1).expand(-1, simulator.alternatives, -1)
        action = chosen_action(simulator.action_map(every, self.state), chosen)
        self.state, cost = simulator.step(self.state, chosen, action, self.noise, self.t)
        self.t += 1
        observation, info = self._seen()
        return observation, -cost.double().cpu().numpy(), self.t == simulator.horizon, info

    def _rows(self, given: object, name: str, shape: tuple[int, ...], *, whole: bool = False) -> Tensor:
        """A part of the action, one row an episode."""
        found = np.asarray(given)
        if found.dtype.kind not in ("iu" if whole else "iuf") or found.size != self.batch * math.prod(shape):
            what = "whole numbers" if whole else "numbers"
            raise SimulatorError(
                f"step {self.t}: {name} is {given!r}, but it must be {what}, {math.prod(shape)} an episode; give an "
                "element of the action space"
            )
        if not np.isfinite(found).all():
            raise SimulatorError(f"step {self.t}: {name} is {given!r}, but it must be finite")
        return torch.as_tensor(found.reshape(self.batch, *shape), device=self.simulator.device)

    def _mask(self) -> Tensor | None:
        return self.simulator.mode_mask(self.state, self.t) if self.t < self.simulator.horizon else None

    @torch.no_grad()
    def mask_at(self, observation: Array) -> Tensor | None:
        """The mode mask, if the episodes stand where these are the observations, (batch, observation_dim)."""
        here = _numpy(self.simulator.observe(self.state, self.t)) if self.t < self.simulator.horizon else None
        return self._mask() if here is not None and np.array_equal(here, observation) else None

    @torch.no_grad()
    def _seen(self) -> tuple[Array, dict[str, NDArray[np.int8]]]:
        mask = self._mask()
        info: dict[str, NDArray[np.int8]] = {} if mask is None else {"action_mask": mask.cpu().numpy().astype(np.int8)}
        return _numpy(self.simulator.observe(self.state, self.t)), info


def _numpy(observation: Tensor) -> Array:
    return observation.float().cpu().numpy().copy()


class SimulatorEnv(gymnasium.Env):  # type: ignore[misc]
    """One episode of a simulator; the reward is minus the cost.

    The episode ends after ``horizon`` steps: truncated if the simulator is ``endless``, else terminated.

    A mode that the simulator's ``mode_mask`` forbids is refused: ``info["action_mask"]`` says which are allowed.

    Args:
        simulator: The simulator.
        bound: Raw parameters are within plus and minus this.

    Attributes:
        parameters: How `split_actions` reads the action space: the parameters are those of whatever mode is chosen.

    Example:
        >>> from rl.envs.newsvendor import Newsvendor
        >>> env = SimulatorEnv(Newsvendor())
        >>> observation, info = env.reset(seed=0)
        >>> env.step({"mode": 0, "parameters": np.zeros(1, np.float32)})[2:4]
        (True, False)
    """

    parameters = "all"

    def __init__(self, simulator: HybridSimulator, bound: float = 10.0) -> None:
        self.simulator, self._episodes = simulator, _Episodes(simulator, 1)
        self.action_space = action_space(simulator, bound)
        self.observation_space = spaces.Box(-np.inf, np.inf, (simulator.observation_dim,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[Array, dict[str, NDArray[np.int8]]]:
        """A new episode; its noise follows from the seed."""
        super().reset(seed=seed)
        observation, info = self._episodes.start(int(self.np_random.integers(2**62)))
        return observation[0], {name: value[0] for name, value in info.items()}

    def mask_at(self, observation: Array) -> Tensor | None:
        """The mode mask (1, J), with heads (1, H, J), if the episode stands at this observation; else None."""
        return self._episodes.mask_at(observation)

    def step(
        self, action: Mapping[str, NDArray[np.generic]] | NDArray[np.int64]
    ) -> tuple[Array, float, bool, bool, dict[str, NDArray[np.int8]]]:
        """One decision."""
        observation, reward, over, info = self._episodes.step(*_parts(action))
        endless = self.simulator.endless
        first = {name: value[0] for name, value in info.items()}
        return observation[0], float(reward[0]), over and not endless, over and endless, first


class SimulatorVectorEnv(VectorEnv):  # type: ignore[misc]
    """Many episodes of a simulator in one batch of tensors; all of them end together.

    Autoreset is ``NEXT_STEP``: the step after the last one ignores its actions and starts new episodes, at no reward.

    Args:
        simulator: The simulator.
        num_envs: Episodes side by side.
        bound: Raw parameters are within plus and minus this.
    """

    def __init__(self, simulator: HybridSimulator, num_envs: int, bound: float = 10.0) -> None:
        self.simulator, self.num_envs, self._episodes = simulator, num_envs, _Episodes(simulator, num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_action_space = action_space(simulator, bound)
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (simulator.observation_dim,), np.float32)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._over = False

    def reset(
        self, *, seed: object = None, options: dict[str, object] | None = None
    ) -> tuple[Array, dict[str, NDArray[np.int8]]]:
        """New episodes; their noise follows from one seed."""
        super().reset(seed=seed, options=options)
        self._over = False
        return self._episodes.start(int(self.np_random.integers(2**62)))

    def mask_at(self, observations: Array) -> Tensor | None:
        """The mode masks (num_envs, J), with heads (num_envs, H, J), if the episodes stand there; else None."""
        return self._episodes.mask_at(observations)

    def step(
        self, actions: Mapping[str, object] | NDArray[np.int64]
    ) -> tuple[Array, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, NDArray[np.int8]]]:
        """One decision of every episode, or a new start after the last one."""
        if self._over:
            observation, info = self.reset()
            rewards = np.zeros(self.num_envs)
        else:
            observation, rewards, self._over, info = self._episodes.step(*_parts(actions))
        over, none = np.full(self.num_envs, self._over), np.zeros(self.num_envs, dtype=bool)
        ended = (none, over) if self.simulator.endless else (over, none)
        return observation, rewards, *ended, info


def make_env(
    simulator: str, *, bound: float = 10.0, flat: bool = False, **arguments: object
) -> gymnasium.Env[object, object]:
    """An environment from the import path of a simulator, as ``gymnasium.make`` calls it.

    Args:
        simulator: Import path of its class, or of a function that makes it.
        bound: As `SimulatorEnv` has it.
        flat: Offer the action as one flat box, as `FlatActions` does, for agents that take no other.
        arguments: Of the simulator.

    Raises:
        ValueError: If there is no such simulator, or it does not take these arguments.
    """
    env = SimulatorEnv(_made(simulator, arguments), bound)
    return FlatActions(env, bound) if flat else env


def make_vector_env(
    simulator: str, *, num_envs: int = 1, bound: float = 10.0, **arguments: object
) -> SimulatorVectorEnv:
    """Many episodes at once, as ``gymnasium.make_vec`` calls it; see :func:`make_env`."""
    return SimulatorVectorEnv(_made(simulator, arguments), num_envs, bound)


def _made(path: str, arguments: Mapping[str, object]) -> HybridSimulator:
    found = find("simulator", path)
    made = make("simulator", path, found, arguments) if callable(found) else found
    if not isinstance(made, HybridSimulator):
        raise ValueError(f"simulator {path!r} makes a {type(made).__name__}; give a subclass of HybridSimulator.")
    return made
