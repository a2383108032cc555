"""Both doors to Gymnasium: simulators as environments, environments as simulators, and every action space between."""

import re
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from rl.envs.action_spaces import FlatActions, split_actions
from rl.envs.check import check_simulator
from rl.envs.from_gymnasium import GymnasiumSimulator
from rl.envs.hybrid import chosen_action, play
from rl.envs.inventory import joint_replenishment, single_item
from rl.envs.newsvendor import Newsvendor
from rl.envs.switched_lqr import switched_lqr
from rl.envs.to_gymnasium import SimulatorEnv, SimulatorVectorEnv
from rl.errors import SimulatorError


def box(low, high, *shape):
    return spaces.Box(low, high, shape or (1,), np.float32)


# Spaces that can be meant either way.
EITHER = {
    "box of many": spaces.Tuple([spaces.Discrete(8), box(-1, 1, 8)]),
    "dict of many": spaces.Dict(b=box(0, np.inf), mode=spaces.Discrete(2), a=box(-1, 1, 2)),
    "tuple of two": spaces.Tuple([spaces.Discrete(2), box(0, 1), box(-1, 1)]),
}

# Space, number of modes, and the parameters that every mode has.
ACCEPTED = {
    "discrete": (spaces.Discrete(3, start=2), 3, [0, 0, 0]),
    "box": (box(-1, 1, 2, 2), 1, [4]),
    "gym-hybrid": (spaces.Tuple([spaces.Discrete(3), box(0, 1), box(-1, 1)]), 3, [2, 2, 2]),
    "gym-platform": (
        spaces.Tuple([spaces.Discrete(3), spaces.Tuple([box(0, 30), box(0, 720, 2), box(0, 430)])]),
        3,
        [1, 2, 1],
    ),
    "dict": (spaces.Dict(mode=spaces.Discrete(2), parameters=box(-np.inf, np.inf, 3)), 2, [3, 3]),
    "dict of rows": (spaces.Dict(mode=spaces.Discrete(2), parameters=box(-1, 1, 2, 3)), 2, [3, 3]),
    "dict of many": (spaces.Dict(b=box(0, np.inf), mode=spaces.Discrete(3), a=box(-1, 1, 2)), 3, [3, 3, 3]),
    "one of": (spaces.OneOf([box(0, 1), spaces.Discrete(2), box(-1, 1, 2)]), 4, [1, 0, 0, 2]),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_joined_actions_belong_to_the_space(name):
    space, modes, sizes = ACCEPTED[name]
    parts = split_actions(space)
    assert parts.n_modes == modes
    assert parts.used.sum(1).tolist() == sizes
    raw = 3 * torch.randn(20, modes, parts.action_dim, generator=torch.Generator().manual_seed(0))
    feasible = parts.feasible(raw)
    for row in feasible:
        for mode in range(modes):
            values = row[mode].double().numpy()
            assert (values[parts.used[mode]] >= parts.low[mode][parts.used[mode]]).all()
            assert (values[parts.used[mode]] <= parts.high[mode][parts.used[mode]]).all()
            assert space.contains(parts.join(mode, values)), parts.join(mode, values)
    assert (feasible[:, ~torch.as_tensor(parts.used)] == 0).all()


def test_the_parameters_arrive_where_they_belong():
    platform = split_actions(ACCEPTED["gym-platform"][0])
    mode, parameters = platform.join(1, np.array([100.0, 700.0]))
    assert mode == 1
    assert [values.tolist() for values in parameters] == [[0.0], [100.0, 700.0], [0.0]]
    rows = split_actions(ACCEPTED["dict of rows"][0]).join(1, np.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(rows["parameters"], [[0, 0, 0], [0.1, 0.2, 0.3]], rtol=1e-6)
    many = split_actions(ACCEPTED["dict of many"][0]).join(0, np.array([5.0, 0.5, 0.25]))
    keys = list(ACCEPTED["dict of many"][0].spaces)
    flat = np.concatenate([many[key] for key in keys if key != "mode"])
    np.testing.assert_allclose(flat, [5.0, 0.5, 0.25] if keys.index("b") < keys.index("a") else [1, 0.5, 0.25])
    assert split_actions(ACCEPTED["one of"][0]).join(2, np.zeros(2)) == (1, 1)
    assert split_actions(ACCEPTED["discrete"][0]).join(2, np.zeros(1)) == 4


@pytest.mark.parametrize("name", EITHER)
def test_a_space_that_can_be_meant_either_way_is_asked_about(name):
    space = EITHER[name]
    with pytest.raises(SimulatorError, match="say which: parameters='own' or parameters='all'"):
        split_actions(space)
    sizes = {"box of many": ([1] * 8, [8] * 8), "dict of many": ([2, 1], [3, 3]), "tuple of two": ([1, 1], [2, 2])}
    for parameters, used in zip(("own", "all"), sizes[name], strict=True):
        parts = split_actions(space, parameters)
        assert sorted(parts.used.sum(1).tolist()) == sorted(used)
        for mode in range(parts.n_modes):
            assert space.contains(parts.join(mode, np.full(parts.action_dim, 0.5)))
    mode, values = split_actions(EITHER["box of many"], "own").join(3, np.array([0.5]))
    assert (mode, values.tolist()) == (3, [0, 0, 0, 0.5, 0, 0, 0, 0])
    mode, first, second = split_actions(EITHER["tuple of two"], "own").join(1, np.array([-0.5]))
    assert (mode, first.tolist(), second.tolist()) == (1, [0], [-0.5])


def test_a_row_a_mode_can_be_all_of_every_mode_if_it_is_said():
    assert split_actions(ACCEPTED["dict of rows"][0], "all").used.sum(1).tolist() == [6, 6]
    with pytest.raises(SimulatorError, match="neither a box nor a row"):
        split_actions(ACCEPTED["dict"][0], "own")

    class Rows(gymnasium.Env):
        action_space, observation_space = EITHER["tuple of two"], box(0, 1)

    with pytest.raises(SimulatorError, match="say which"):
        GymnasiumSimulator(Rows, 5)
    assert GymnasiumSimulator(Rows, 5, "own").action_dim == 1
    assert FlatActions(Rows(), parameters="all").action_space.shape == (4,)
    FlatActions(SimulatorEnv(switched_lqr(2, 2)))  # the environment says what its parameters are


def test_modes_that_are_none_are_refused():
    env = SimulatorEnv(switched_lqr(3, 2))
    env.reset(seed=0)
    for mode in (-1, 2):
        with pytest.raises(SimulatorError, match=f"step 0: the mode is {mode}, but modes are 0 to 1"):
            env.step({"mode": mode, "parameters": np.zeros(3)})
    simulator = switched_lqr(3, 2)
    noise = simulator.sample_noise(2, torch.Generator().manual_seed(0))
    with pytest.raises(SimulatorError, match="step 0: the mode is 7"):
        play(simulator, lambda state, t: (torch.tensor([1, 7]), torch.zeros(2, 3)), noise)
    cart = GymnasiumSimulator("CartPole-v1", horizon=3)
    noise = cart.sample_noise(2, torch.Generator().manual_seed(0))
    with pytest.raises(SimulatorError, match="step 0: the mode is -1"):
        cart.step(cart.reset(noise), torch.tensor([0, -1]), torch.zeros(2, 1), noise, 0)


def test_gradients_pass_the_bounds():
    parts = split_actions(ACCEPTED["one of"][0])
    raw = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(parts.feasible, (raw,))


@pytest.mark.parametrize(
    ("space", "why"),
    [
        (spaces.Text(3), "it is a Text"),
        (spaces.Dict(a=spaces.Tuple([spaces.Discrete(2), spaces.Text(3)])), "is not a Box of real numbers"),
        (spaces.Dict(a=spaces.MultiBinary(2), b=spaces.OneOf([box(0, 1)])), "is not a Box of real numbers"),
        (spaces.Tuple([spaces.Discrete(2), spaces.Text(3)]), "is not a Box of real numbers"),
        (spaces.Box(0, 255, (2,), np.uint8), "is not a Box of real numbers"),
        (spaces.OneOf([spaces.MultiBinary(2)]), "is not a Box of real numbers"),
    ],
)
def test_what_cannot_be_split_is_refused_in_one_sentence(space, why):
    with pytest.raises(SimulatorError, match=re.escape(why)) as error:
        split_actions(space)
    assert "wrap the environment" in str(error.value)


@pytest.mark.parametrize("simulator", [Newsvendor(), switched_lqr(3, 2), joint_replenishment(2, horizon=10)])
def test_the_environment_passes_gymnasiums_own_checker(simulator):
    with warnings.catch_warnings():
        for harmless in (
            "infinity",
            "not within the observation",
            "different from the unwrapped",
            "symmetric and normalized",
        ):
            warnings.filterwarnings("ignore", message=f".*{harmless}.*")
        check_env(SimulatorEnv(simulator), skip_render_check=True)
        check_env(FlatActions(SimulatorEnv(simulator)), skip_render_check=True)


def test_the_flat_box_has_the_bounds_of_what_is_used():
    class Platform(gymnasium.Env):
        action_space, observation_space = ACCEPTED["gym-platform"][0], box(0, 1)

    flat = FlatActions(Platform(), bound=7.0)
    assert flat.action_space.low.tolist() == [-7, -7, -7, 0, 0]
    assert flat.action_space.high.tolist() == [7, 7, 7, 720, 720]
    mode, parameters = flat.action(np.array([0, 0, 1, 500, 3]))
    assert mode == 2
    assert [values.tolist() for values in parameters] == [[0], [0, 0], [430]]


def test_one_environment_costs_what_the_simulator_does():
    simulator = switched_lqr(3, 2)
    env = SimulatorEnv(simulator)
    env.reset(seed=5)
    noise, state = env._episodes.noise, env._episodes.state
    generator = torch.Generator().manual_seed(0)
    for t in range(simulator.horizon):
        mode, raw = int(torch.randint(2, (), generator=generator)), torch.randn(3, generator=generator)
        action = chosen_action(simulator.action_map(raw.expand(1, 2, 3), state), torch.tensor([mode]))
        state, cost = simulator.step(state, torch.tensor([mode]), action, noise, t)
        observation, reward, terminated, truncated, _ = env.step({"mode": mode, "parameters": raw.numpy()})
        assert reward == pytest.approx(-cost.item())
        np.testing.assert_allclose(observation, state["x"][0])
    assert terminated
    assert not truncated
    with pytest.raises(SimulatorError, match="call reset before step"):
        env.step({"mode": 0, "parameters": np.zeros(3)})


def test_an_endless_process_is_truncated_and_seeds_repeat_it():
    env = SimulatorEnv(single_item())
    runs = []
    for _ in range(2):
        rewards, over = [], False
        env.reset(seed=3)
        while not over:
            _, reward, terminated, truncated, _ = env.step({"mode": 1, "parameters": np.zeros(1)})
            rewards.append(reward)
            over = terminated or truncated
        assert truncated
        assert not terminated
        runs.append(rewards)
    assert runs[0] == runs[1]
    assert len(runs[0]) == 100


def test_many_environments_start_anew_in_the_step_after_the_last():
    env = SimulatorVectorEnv(switched_lqr(3, 2), 4)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for t in range(20):
        observation, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
        assert terminated.tolist() == [t == 19] * 4
    start, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
    assert rewards.tolist() == [0] * 4
    assert not (terminated | truncated).any()
    assert not np.allclose(start, observation)
    again, _ = env.reset(seed=0)
    assert not np.allclose(start, again)
    recorded = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    recorded.reset(seed=0)
    for _ in range(20):
        info = recorded.step(recorded.action_space.sample())[4]
    assert info["episode"]["l"].tolist() == [20] * 4


class Sliding(gymnasium.Env):
    """Gym-hybrid in small: accelerate, turn or stop, with a mask that forbids stopping twice."""

    action_space = spaces.Tuple([spaces.Discrete(3), box(0, 1), box(-1, 1)])
    observation_space = spaces.Dict(at=box(-np.inf, np.inf, 2), stopped=spaces.Discrete(2))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.stopped, self.steps = self.np_random.normal(size=2).astype(np.float32), 0, 0
        return self.seen()

    def seen(self):
        return {"at": self.at.copy(), "stopped": self.stopped}, {
            "action_mask": np.array([1, 1, 1 - self.stopped], np.int8)
        }

    def step(self, action):
        mode, push, turn = action
        assert not (mode == 2 and self.stopped)
        self.at = self.at + np.concatenate([push, turn]) * (mode != 2)
        self.stopped, self.steps = int(mode == 2), self.steps + 1
        observation, info = self.seen()
        return observation, -float(np.abs(self.at).sum()), self.steps == 5, False, info


def test_an_environment_is_a_simulator_without_gradients():
    simulator = GymnasiumSimulator(Sliding, horizon=7)
    assert (simulator.n_modes, simulator.action_dim, simulator.observation_dim) == (3, 2, 4)
    assert not simulator.differentiable
    assert "not differentiable" in check_simulator(simulator)[-1]
    noise = simulator.sample_noise(3, torch.Generator().manual_seed(0))
    state, costs = simulator.reset(noise), []
    for t in range(7):
        action = simulator.action_map(torch.zeros(3, 3, 2), state)[:, 0]
        state, cost = simulator.step(state, torch.zeros(3, dtype=torch.long), action, noise, t)
        costs.append(cost)
    assert (torch.stack(costs)[:5] > 0).all()
    assert (torch.stack(costs)[5:] == 0).all()  # over after 5 steps


def test_only_the_newest_state_can_be_stepped():
    simulator = GymnasiumSimulator("CartPole-v1", horizon=5)
    noise = simulator.sample_noise(2, torch.Generator().manual_seed(0))
    state = simulator.reset(noise)
    simulator.step(state, torch.tensor([0, 1]), torch.zeros(2, 1), noise, 0)
    with pytest.raises(SimulatorError, match="step 0 starts from an earlier state"):
        simulator.step(state, torch.tensor([0, 1]), torch.zeros(2, 1), noise, 0)


@pytest.mark.slow
def test_stable_baselines_trains_on_the_flat_form():
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    env = FlatActions(SimulatorEnv(Newsvendor()))
    agent = stable_baselines3.PPO("MlpPolicy", env, n_steps=64, device="cpu", seed=0).learn(128)
    assert env.action_space.contains(agent.predict(env.reset(seed=0)[0])[0])
