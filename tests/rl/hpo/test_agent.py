"""The policy as an agent: it plays the environments of Gymnasium and Stable-Baselines3 that it was trained in."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl.envs.action_spaces import FlatActions
from rl.envs.from_gymnasium import GymnasiumSimulator
from rl.envs.inventory import joint_replenishment
from rl.envs.switched_lqr import switched_lqr
from rl.envs.to_gymnasium import SimulatorEnv, SimulatorVectorEnv
from rl.hpo.agent import Agent
from tests.rl.hpo.test_policies import bold

pytestmark = [pytest.mark.filterwarnings("ignore:The dataloader.*does not have many workers")]


def played(agent: Agent, env: Any, episodes: int = 3) -> list[float]:
    rewards = []
    for seed in range(episodes):
        (seen, _), over, total = env.reset(seed=seed), False, 0.0
        while not over:
            seen, reward, terminated, truncated, _ = env.step(agent.predict(seen, deterministic=True)[0])
            total, over = total + float(reward), terminated or truncated
        rewards.append(total)
    return rewards


@pytest.mark.parametrize("make", [lambda: switched_lqr(2, 2), lambda: joint_replenishment(2, "up_to", horizon=10)])
def test_an_agent_earns_what_the_policy_costs(make: Any) -> None:
    policy = bold(make())
    env = SimulatorEnv(make(), bound=1e6)
    earned = played(Agent(policy, env), env)
    for wrapped in (FlatActions(env, bound=1e6), gymnasium.wrappers.TimeLimit(FlatActions(env, bound=1e6), 1000)):
        np.testing.assert_allclose(played(Agent(policy, wrapped), wrapped), earned, rtol=1e-4)
    for seed, total in enumerate(earned):
        simulator, expected = env.simulator, 0.0
        env.reset(seed=seed)
        noise, state = env._episodes.noise, env._episodes.state
        for t in range(simulator.horizon):
            mode, parameters = policy.act(simulator.observe(state, t))
            state, cost = simulator.step(state, mode, parameters, noise, t)
            expected += float(cost)
        assert -total == pytest.approx(expected, rel=1e-4)
    many = SimulatorVectorEnv(make(), 4)
    actions, _ = Agent(policy, many).predict(many.reset(seed=0)[0])
    assert actions["parameters"].shape == (4, many.simulator.action_dim)
    many.step(actions)
    tight = SimulatorEnv(make(), bound=1e-6)
    with pytest.raises(ValueError, match="larger bound"):
        Agent(policy, tight).predict(tight.reset(seed=0)[0], deterministic=True)


def test_an_agent_acts_in_the_environment_that_it_was_trained_in() -> None:
    class Slide(gymnasium.Env):
        action_space = spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 1, (1,)), spaces.Box(-1, 1, (1,))])
        observation_space = spaces.Dict(at=spaces.Box(-9, 9, (1,)), stopped=spaces.Discrete(2))

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return {"at": np.zeros(1, np.float32), "stopped": 0}, {}

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action)
            return self.reset()[0], -float(action[1][0]), True, False, {}

    simulator = GymnasiumSimulator(Slide, horizon=2)
    policy, env = bold(simulator), Slide()
    (reward,) = played(Agent(policy, env), env, 1)
    parameters = policy.act(torch.tensor([0.0, 1.0, 0.0])).parameters
    assert -reward == pytest.approx(parameters[0].item())
    assert 0 <= parameters[0] <= 1


def test_stable_baselines_evaluates_the_policy() -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    policy = bold(switched_lqr(2, 2))
    means = []
    for wrap in (lambda env: env, lambda env: FlatActions(env, bound=1e6)):
        env = Monitor(wrap(SimulatorEnv(switched_lqr(2, 2), bound=1e6)))
        env.reset(seed=0)
        means.append(evaluate_policy(Agent(policy, env), env, n_eval_episodes=4)[0])
    assert means[0] == pytest.approx(means[1], rel=1e-4)
    env.reset(seed=0)
    _, lengths = evaluate_policy(Agent(policy, env), env, n_eval_episodes=2, return_episode_rewards=True)
    assert lengths == [20, 20]
