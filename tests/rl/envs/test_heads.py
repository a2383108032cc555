"""Action spaces of several choices are split into heads, to any depth, and put together again."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl.envs import FlatActions, GymnasiumSimulator, LotSizing, SimulatorEnv, SimulatorVectorEnv, check_simulator, play
from rl.envs.action_spaces import split_actions
from rl.errors import SimulatorError


def box(*shape: int) -> spaces.Box:
    return spaces.Box(0.0, 2.0, shape, np.float32)


DEEP = spaces.Dict(
    plants=spaces.Tuple([spaces.Discrete(3, start=1), spaces.Dict(on=spaces.MultiBinary(2), flow=box(2))]),
    rates=box(1),
    gears=spaces.MultiDiscrete([[2, 4]]),
)
SPACES = {
    "many": (spaces.MultiDiscrete([2, 3]), (2, 3), 0),
    "bits": (spaces.MultiBinary(3), (2, 2, 2), 0),
    "two and a box": (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3), box(1)]), (2, 3), 1),
    "deep": (DEEP, (3, 2, 2, 2, 4), 3),
}


@pytest.mark.parametrize("name", SPACES)
def test_every_number_of_a_choice_is_a_head(name: str) -> None:
    space, heads, size = SPACES[name]
    parts = split_actions(space)
    assert (parts.heads, parts.n_modes, parts.action_dim) == (heads, 1, size)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        mode = [int(rng.integers(count)) for count in heads]
        action = parts.join(mode, rng.uniform(0, 2, size))
        assert space.contains(action), action
        seen.add(str(action))
    assert len(seen) > 5


def test_a_deep_action_holds_what_was_decided() -> None:
    action: Any = split_actions(DEEP).join([2, 0, 1, 1, 3], np.array([0.25, 0.5, 1.5]))
    assert action["gears"].tolist() == [[1, 3]]
    assert action["plants"][0] == 3
    assert action["plants"][1]["on"].tolist() == [0, 1]
    assert (action["plants"][1]["flow"].tolist(), action["rates"].tolist()) == ([0.25, 0.5], [1.5])


def test_without_anything_discrete_there_is_one_mode() -> None:
    space = spaces.Dict(a=box(1), b=spaces.Tuple([box(2)]))
    parts = split_actions(space)
    assert (parts.heads, parts.n_modes, parts.action_dim) == ((), 1, 3)
    assert parts.join(0, np.array([0.5, 1.0, 1.5]))["b"][0].tolist() == [1.0, 1.5]


def test_one_choice_at_any_depth_is_one_mode_beside_all_boxes() -> None:
    space = spaces.Dict(a=spaces.Dict(gear=spaces.Discrete(4)), b=spaces.Tuple([box(1), box(2)]))
    parts = split_actions(space)
    assert (parts.heads, parts.n_modes, parts.action_dim) == ((), 4, 3)
    assert space.contains(parts.join(2, np.ones(3)))
    with pytest.raises(SimulatorError, match="say which: parameters='own' or parameters='all'"):
        split_actions(spaces.Dict(a=spaces.Dict(gear=spaces.Discrete(2)), b=spaces.Tuple([box(1), box(2)])))
    with pytest.raises(SimulatorError, match="no box can be one mode's own"):
        split_actions(DEEP, "own")


class Deep(gymnasium.Env):  # type: ignore[type-arg]
    """Rewards the sum of all numbers of a deep action."""

    action_space, observation_space = DEEP, box(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> Any:
        assert DEEP.contains(action)
        total = sum(float(np.sum(part)) for part in spaces.flatten(DEEP, action))
        return np.ones(1, np.float32), total, False, False, {}


def test_an_environment_with_a_deep_space_is_a_simulator_and_may_be_flattened() -> None:
    simulator = GymnasiumSimulator(Deep, horizon=2)
    assert check_simulator(simulator)[0] == "2 steps of 5 heads and 3 actions declared"
    noise = simulator.sample_noise(2, torch.Generator().manual_seed(0))
    mode = torch.tensor([[2, 0, 1, 1, 3]]).expand(2, 5)
    costs = play(simulator, lambda state, t: (mode, torch.ones(2, 3)), noise)
    assert costs.shape == (2, 2)
    with pytest.raises(SimulatorError, match="step 0: the mode of head 4 is 4, but modes are 0 to 3"):
        play(simulator, lambda state, t: (torch.full((2, 5), 0).index_fill(1, torch.tensor([4]), 4), None), noise)
    with pytest.raises(SimulatorError, match=r"modes have shape \(2,\), but they must be \(2, 5\)"):
        play(simulator, lambda state, t: (torch.zeros(2, dtype=torch.long), torch.ones(2, 3)), noise)
    flat = FlatActions(Deep())
    assert flat.action_space.shape == (13 + 3,)
    assert DEEP.contains(flat.action(flat.action_space.sample()))


LOTS = LotSizing([10.0, 6.0, 8.0], 40.0, setup_time=2.0, horizon=5)


def test_lot_sizing_keeps_its_capacity_and_passes_the_checker() -> None:
    assert check_simulator(LOTS)[-1] == "no jump within a mode"
    noise = LOTS.sample_noise(4, torch.Generator().manual_seed(0))
    state = LOTS.reset(noise)
    wanted, on = torch.tensor([[30.0, 20.0, 9.0]]).expand(4, 3), torch.tensor([[1, 1, 0]]).expand(4, 3)
    following, _ = LOTS.step(state, on, wanted, noise, 0)
    made = following["stock"] + noise["demand"][:, 0] - state["stock"]
    torch.testing.assert_close(made.sum(1), torch.full((4,), 40.0 - 2 * 2.0))
    torch.testing.assert_close(made[:, 0] / made[:, 1], torch.full((4,), 1.5))
    with pytest.raises(ValueError, match="demand would wait for ever"):
        LotSizing([10.0], 9.0)


def test_gymnasium_sees_heads_as_many_choices() -> None:
    env, vector = SimulatorEnv(LOTS), SimulatorVectorEnv(LOTS, 2)
    assert env.action_space["mode"] == spaces.MultiDiscrete([2, 2, 2])
    for each in (env, vector):
        each.reset(seed=0)
        assert np.all(np.asarray(each.step(each.action_space.sample())[1]) < 0)


class Count(LotSizing):
    """Lot sizing that computes with the number of set-ups."""

    def step(self, state: Any, mode: Any, action: Any, noise: Any, t: int) -> Any:
        following, cost = super().step(state, mode, action, noise, t)
        return following, cost + self.capacity * mode[:, 0].float()


def test_the_checker_knows_heads() -> None:
    with pytest.raises(SimulatorError, match="the mode is used as a number"):
        check_simulator(Count([10.0, 6.0], 40.0, horizon=3))
    both = LotSizing([10.0], 40.0, horizon=3)
    both.n_modes = 2
    with pytest.raises(SimulatorError, match=r"n_modes is 2 and heads is \(2,\)"):
        check_simulator(both)
    none = LotSizing([10.0, 6.0], 40.0, horizon=3)
    none.heads = (2, 0)
    with pytest.raises(SimulatorError, match=r"heads\[1\] is 0"):
        check_simulator(none)
    shut = LotSizing([10.0, 6.0], 40.0, horizon=3)
    shut.mode_mask = lambda state, t: torch.tensor([[True, True], [False, False]]).expand(len(state["stock"]), 2, 2)  # type: ignore[method-assign]
    with pytest.raises(SimulatorError, match=r"of shape \(6, 2, 2\) with a true value in every row of every head"):
        check_simulator(shut)
    moving = LotSizing([10.0, 6.0], 40.0, horizon=3)
    moving.mode_mask = lambda state, t: torch.stack([torch.ones_like(state["stock"]) > 0, state["stock"] < 9], -1)  # type: ignore[method-assign]
    with pytest.raises(SimulatorError, match="the mode mask changes with the continuous actions"):
        check_simulator(moving)
