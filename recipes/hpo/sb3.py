"""Stable-Baselines3's PPO on a simulator whose hybrid action is flattened into one box: the outside baseline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.hybrid import HybridSimulator, Noise, State, chosen_action, law_columns, play, reported_cost

if TYPE_CHECKING:  # an optional package: imported where it is used
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecEnv


def split(action: Tensor, simulator: HybridSimulator, state: State, t: int) -> tuple[Tensor, Tensor]:
    """The mode of the highest score, of each head where there are heads, and its feasible action.

    Args:
        action: Scores of the modes, then raw parameters: (batch, J + m), with heads one head's scores after the other.
        simulator: The simulator.
        state: Its state.
        t: The step, for the mask of the modes.
    """
    scores, raw = action[:, : votes_of(simulator)], action[:, votes_of(simulator) :]
    if simulator.heads:
        columns = law_columns(simulator.heads, action.device)
        padded = scores.new_full((len(scores), *columns.shape), -torch.inf)
        padded[:, columns] = scores
        scores = padded
    mask = simulator.mode_mask(state, t)
    mode = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).argmax(-1)
    actions = simulator.action_map(raw.unsqueeze(1).expand(-1, simulator.alternatives, -1), state)
    return mode, chosen_action(actions, mode)


def votes_of(simulator: HybridSimulator) -> int:
    """How many numbers of a flat action vote for modes."""
    return sum(simulator.heads) or simulator.n_modes


class _Alike:
    """What a vector environment answers for each of its environments, which are all alike."""

    num_envs: int

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: object = None) -> list[object]:
        """An attribute, the same for all."""
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: object, indices: object = None) -> None:
        """Set an attribute for all."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: object, indices: object = None, **kwargs: object) -> list[object]:
        """There are no environments to call."""
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: object, indices: object = None) -> list[bool]:
        """Nothing is wrapped."""
        return [False] * self.num_envs


def flat_environment(simulator: HybridSimulator, batch: int, seed: int, scale: float) -> VecEnv:
    """All episodes of a batch as one vector environment, so that the baseline is as fast as batching makes it.

    Args:
        simulator: The simulator.
        batch: Episodes side by side.
        seed: Of their noise.
        scale: Rewards are minus the cost divided by this.
    """
    from stable_baselines3.common.vec_env import VecEnv

    class FlatSimulator(_Alike, VecEnv):  # type: ignore[misc]
        """All episodes of a batch, with numpy at the edge."""

        render_mode = None

        def __init__(self, simulator: HybridSimulator, batch: int, seed: int, scale: float) -> None:
            self.simulator, self.scale = simulator, scale
            self.generator = torch.Generator().manual_seed(seed)
            size = votes_of(simulator) + simulator.action_dim
            observations = spaces.Box(-np.inf, np.inf, (simulator.observation_dim,), np.float32)
            VecEnv.__init__(self, batch, observations, spaces.Box(-10.0, 10.0, (size,), np.float32))

        def reset(self) -> NDArray[np.float32]:
            """New episodes."""
            self.noise = self.simulator.sample_noise(self.num_envs, self.generator)
            self.state, self.t = self.simulator.reset(self.noise), 0
            return self._seen()

        def _seen(self) -> NDArray[np.float32]:
            return self.simulator.observe(self.state, self.t).float().numpy().copy()

        def step_async(self, actions: object) -> None:
            """Keep the actions."""
            self.actions = torch.as_tensor(actions)

        @torch.no_grad()
        def step_wait(
            self,
        ) -> tuple[NDArray[np.float32], NDArray[np.generic], NDArray[np.bool_], list[dict[str, object]]]:
            """One decision of every episode; all of them end together and start again at once."""
            mode, action = split(self.actions, self.simulator, self.state, self.t)
            self.state, cost = self.simulator.step(self.state, mode, action, self.noise, self.t)
            self.t += 1
            over = self.t == self.simulator.horizon
            seen = self._seen()
            infos: list[dict[str, object]] = [{} for _ in range(self.num_envs)]
            if over:
                infos = [{"terminal_observation": row, "TimeLimit.truncated": self.simulator.endless} for row in seen]
                seen = self.reset()
            return seen, -cost.numpy() / self.scale, np.full(self.num_envs, over), infos

    return FlatSimulator(simulator, batch, seed, scale)


def train_sb3(
    simulator: HybridSimulator,
    *,
    updates: int,
    batch: int,
    seed: int,
    hidden: list[int],
    learning_rate: float = 3e-4,
    discount: float = 0.99,
    every: int = 0,
    report: Callable[[int, PPO], None] | None = None,
) -> PPO:
    """Train PPO for as many simulator steps as ``updates`` updates of `HPOModule` take.

    Args:
        simulator: The simulator, on the CPU.
        updates: Rollouts of whole episodes.
        batch: Episodes of a rollout.
        seed: Of everything.
        hidden: Widths of the layers.
        learning_rate: Of Adam, falling linearly to 0.
        discount: Of the advantages.
        every: Rollouts between two reports.
        report: Called with the number of rollouts done and the model.

    Returns:
        The model.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback

    noise = simulator.sample_noise(64, torch.Generator().manual_seed(seed))
    idle = torch.zeros(64, votes_of(simulator) + simulator.action_dim)
    with torch.no_grad():
        costs = play(simulator, lambda state, t: split(idle, simulator, state, t), noise)
    environment = flat_environment(simulator, batch, seed, float(costs.std()) or 1.0)
    steps = batch * simulator.horizon
    model = PPO(
        "MlpPolicy",
        environment,
        n_steps=simulator.horizon,
        batch_size=steps // 4 if steps % 4 == 0 else steps,  # whole minibatches: it warns of a rest
        n_epochs=5,
        gamma=discount,
        learning_rate=lambda remaining: learning_rate * remaining,
        policy_kwargs={"net_arch": list(hidden)},
        seed=seed,
        device="cpu",
    )

    class Report(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            done = self.num_timesteps // steps
            if report is not None and every and done and done % every == 0:
                report(done, model)

    model.learn(updates * steps, callback=Report())
    if report is not None:
        report(updates, model)
    return model


@torch.no_grad()
def cost_of(model: PPO, simulator: HybridSimulator, noise: Noise) -> float:
    """Mean reported cost of the deterministic policy on given episodes."""

    def decide(state: State, t: int) -> tuple[Tensor, Tensor]:
        seen = simulator.observe(state, t).float().numpy()
        return split(torch.as_tensor(model.predict(seen, deterministic=True)[0]), simulator, state, t)

    return float(reported_cost(simulator, play(simulator, decide, noise)).mean())
