"""A trained policy where Gymnasium's loops and Stable-Baselines3's ``evaluate_policy`` expect an agent."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.action_spaces import FlatActions, Parameters, split_actions
from rl.envs.hybrid import chosen_action
from rl.envs.to_gymnasium import SimulatorEnv, SimulatorVectorEnv, raw_action
from rl.hpo.acting import Actor
from rl.hpo.policies import HybridPolicy

Observation = (
    NDArray[np.generic] | int | tuple[object, ...] | dict[str, object]
)  # an element of a space, or rows of one


class Agent:
    """A policy with the ``predict`` of Stable-Baselines3, in the actions of one kind of environment.

    In a `SimulatorEnv`, alone or many at once, or flattened by `FlatActions`, it gives the raw parameters that the
    environment maps itself; in any other environment the feasible ones, put together as its action space has them.

    Args:
        policy: The policy, as ``module.policy``.
        env: An environment of the kind that it is to act in.
        parameters: As in `split_actions`, for an action space that can be meant either way.
        seed: Of drawn modes.

    Example:
        >>> from rl.envs.newsvendor import Newsvendor
        >>> policy, env = HybridPolicy(1, 2, 1), SimulatorEnv(Newsvendor())
        >>> policy.bind(env.simulator)
        >>> action, _ = Agent(policy, env).predict(env.reset(seed=0)[0], deterministic=True)
        >>> env.action_space.contains(action)
        True
    """

    def __init__(
        self,
        policy: Actor,
        env: gymnasium.Env[object, object] | SimulatorVectorEnv,
        parameters: Parameters | None = None,
        seed: int = 0,
    ) -> None:
        self.policy, self.generator = policy, torch.Generator(policy._place.device).manual_seed(seed)
        self._env = inner = env.unwrapped
        self._flat = _layer(env, FlatActions) is not None
        self._vector = isinstance(inner, SimulatorVectorEnv)
        self._raw = self._vector or isinstance(inner, SimulatorEnv)
        self._space = inner.single_action_space if self._vector else env.action_space
        self._observations = inner.single_observation_space if self._vector else env.observation_space
        if self._raw and not isinstance(policy, HybridPolicy):
            raise ValueError(
                "a saved policy gives feasible actions, but this environment takes raw parameters and maps them "
                "itself; play it with rl.envs.play, or make the Agent of module.policy."
            )
        if not self._raw:
            flat = _layer(env, FlatActions)
            inside = env.action_space if flat is None else flat.env.action_space
            self._join = split_actions(inside, parameters or getattr(inner, "parameters", None)).join

    def predict(
        self,
        observation: Observation,
        state: object = None,
        episode_start: object = None,
        deterministic: bool = False,
        *,
        action_masks: Tensor | None = None,
    ) -> tuple[object, object]:
        """Actions for one observation or a batch of them.

        Args:
            observation: As the environment gives it, or (batch, ...) of them.
            state: Of a recurrent policy; handed back as it is, for there is none.
            episode_start: Ignored likewise.
            deterministic: Take the likeliest mode; else draw it.
            action_masks: Boolean (batch, J) or (J,), with heads (batch, H, J) or (H, J), true where a mode may be
                chosen, as ``info["action_mask"]`` says. None asks the agent's own environment, where it is one of a
                simulator and stands at this observation.

        Returns:
            The action, or one for every row (in a vector environment's own form), and ``state``.

        Raises:
            ValueError: If the policy cannot act on these, or a raw parameter is beyond the environment's bound.
        """
        seen, single = self._rows(observation)
        if self._raw and self.policy.masked and action_masks is None:
            action_masks = self._env.mask_at(seen.float().cpu().numpy())
        if isinstance(self.policy, HybridPolicy) and self._raw:
            mode, every = self.policy.decide(seen, action_masks, deterministic=deterministic, generator=self.generator)
            values = chosen_action(every, mode)
        else:
            mode, values = self.policy.act(seen, action_masks, deterministic=deterministic, generator=self.generator)
        if self._vector:
            return raw_action(mode.cpu().numpy(), values.float().cpu().numpy()), state
        actions = [self._action(m, v) for m, v in zip(mode.cpu().numpy(), values.double().cpu().numpy(), strict=True)]
        if single:
            return actions[0], state
        if isinstance(self._space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            return np.stack([np.asarray(action) for action in actions]), state
        rows = np.empty(len(actions), dtype=object)
        rows[:] = actions
        return rows, state

    def _rows(self, observation: Observation) -> tuple[Tensor, bool]:
        """Observations as rows of numbers, and whether there was but one."""
        space, found = self._observations, observation
        box = isinstance(space, spaces.Box)
        single = np.shape(np.asarray(found)) == space.shape if box else space.contains(found)
        if not box and not single:
            raise ValueError(f"observations of {space} can be given one at a time only, as the environment gives them.")
        flat = spaces.flatten(space, found)[None] if single else np.asarray(found).reshape(len(np.asarray(found)), -1)
        return torch.as_tensor(np.asarray(flat)).to(self.policy._place), bool(single)

    def _action(self, mode: NDArray[np.int64], values: NDArray[np.float64]) -> object:
        action: object
        if self._flat:
            sizes = self.policy.heads or self.policy.shape[:1]
            chosen = np.concatenate(
                [np.arange(size) == one for size, one in zip(sizes, np.atleast_1d(mode), strict=True)]
            )
            votes = np.where(chosen, self._space.high[: len(chosen)], 0.0)
            action = np.concatenate([votes, values[: len(self._space.low) - len(votes)]]).astype(np.float32)
        elif self._raw:
            action = raw_action(mode, values.astype(np.float32))
        else:
            action = self._join(mode if self.policy.heads else int(mode), values)
        if not self._space.contains(action):
            raise ValueError(
                f"the action {action} is not in the environment's {self._space}; give the environment a larger bound."
            )
        return action


def _layer(env: object, kind: type[FlatActions]) -> FlatActions | None:
    """The wrapper of that kind around an environment, if there is one."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, kind):
            return env
        env = env.env
    return None
