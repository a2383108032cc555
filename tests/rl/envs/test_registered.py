"""The simulators have names that Gymnasium knows, alone and many at once."""

import gymnasium
import numpy as np
import pytest

from rl.envs import registered

SMALL = {
    "JointReplenishment": {"items": 2},
    "Stores": {"mean": [4.0, 6.0]},
    "SwitchedLQR": {"dimension": 2, "modes": 2},
}

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")]


@pytest.mark.parametrize("name", registered.SIMULATORS)
def test_every_name_makes_an_environment(name: str) -> None:
    env = gymnasium.make(f"gapbridge/{name}-v0", **SMALL.get(name, {}))
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen)
    env.action_space.seed(0)
    _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
    assert np.isfinite(reward)
    assert not (terminated and truncated)


def test_flat_actions_and_many_at_once() -> None:
    flat = gymnasium.make("gapbridge/LotSizing-v0", flat=True, bound=5.0)
    assert flat.action_space.shape == (30,)
    flat.reset(seed=0)
    flat.step(np.zeros(30, np.float32))
    many = gymnasium.make_vec("gapbridge/SwitchedLQR-v0", num_envs=3, dimension=2, modes=2)
    seen, _ = many.reset(seed=0)
    assert seen.shape == (3, 2)
    assert many.step(many.action_space.sample())[1].shape == (3,)


def test_a_name_can_be_asked_for_by_its_module_and_registering_twice_is_harmless() -> None:
    registered.register()
    assert gymnasium.make("rl.envs.registered:gapbridge/Newsvendor-v0", fixed_cost=0.25).unwrapped is not None
    with pytest.raises(ValueError, match="does not take"):
        gymnasium.make("gapbridge/Newsvendor-v0", price=1.0)
