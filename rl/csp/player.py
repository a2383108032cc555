"""A policy of a seat as an agent of a PettingZoo environment, with the `predict` of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rl.csp.acting import Seat, decide
from rl.envs.native_actions import action_size, native_action
from rl.envs.petting_zoo import flat, is_masked, look_space, width_of

if TYPE_CHECKING:
    from pettingzoo import ParallelEnv


class Player:
    """One agent of an environment, parallel or with turns, played by a policy that was trained in `ParallelGame`.

    Args:
        policy: Of the agent's side: ``module.agent``, or what :func:`rl.csp.load_policy` gives.
        environment: An environment of the kind that it is to act in.
        agent: The agent's name.
        seed: Of drawn actions.

    Raises:
        ValueError: If there is no such agent, or the policy is one for other observations or actions.

    Example:
        >>> from rl.csp import SeatPolicy
        >>> from rl.envs import GameAsParallelEnv, VaultMaze
        >>> env = GameAsParallelEnv(VaultMaze())
        >>> player = Player(SeatPolicy.of(VaultMaze(), "agent"), env, "agent_0")
        >>> action, _ = player.predict(env.reset(seed=0)[0]["agent_0"])
        >>> env.action_space("agent_0").contains(action)
        True
    """

    def __init__(self, policy: nn.Module, environment: ParallelEnv, agent: str, seed: int = 0) -> None:
        if agent not in environment.possible_agents:
            raise ValueError(f"the environment has no agent {agent!r}; it has {', '.join(environment.possible_agents)}")
        self.policy, self.generator = policy, torch.Generator().manual_seed(seed)
        self._space, self._looks = environment.action_space(agent), look_space(environment, agent)
        n_actions, width = action_size(self._space, agent)
        masked = is_masked(environment, agent)
        self.seat = Seat(agent, 1, width_of(environment, agent), n_actions, width, masked)
        trained = getattr(policy, "seat", None)
        if isinstance(trained, Seat) and trained[2:] != self.seat[2:]:
            raise ValueError(
                f"the policy is for a seat of {trained._asdict()}, but {agent} is {self.seat._asdict()}; load the "
                "policy of this environment's agent"
            )

    def predict(
        self,
        observation: object,
        state: Tensor | None = None,
        episode_start: object = None,
        deterministic: bool = False,
    ) -> tuple[object, Tensor | None]:
        """The action for one observation, in the environment's own space.

        Args:
            observation: As the environment gives it to the agent, with its ``action_mask`` where there is one.
            state: Of a policy with memory: what the last call gave back, None at an episode's start.
            episode_start: True at an episode's start, in place of giving no state.
            deterministic: Take the likeliest action; what a policy is worth in the worst case may rest on drawing it.

        Returns:
            The action, and the state for the next call.

        Raises:
            ValueError: If the observation has another shape, or its mask is missing.
        """
        mask = None
        if self.seat.masked:
            if not isinstance(observation, Mapping) or "action_mask" not in observation:
                raise ValueError(
                    f"{self.seat.name} is given its observation without action_mask; give what the environment gives"
                )
            look: Mapping[str, Any] = observation
            observation, mask = look["observation"], np.asarray(look["action_mask"], dtype=np.bool_)
        begins = episode_start is not None and bool(np.any(np.asarray(episode_start, dtype=np.bool_)))
        action, memory = decide(
            self.policy,
            self.seat,
            flat(self._looks, observation),
            mask,
            None if begins else state,
            deterministic=deterministic,
            generator=self.generator,
        )
        return native_action(self._space, int(action) if self.seat.n_actions else action.cpu().numpy()), memory
