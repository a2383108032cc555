"""The checker accepts every shipped simulator and refuses each way to break the protocol, by step and tensor."""

import re

import numpy as np
import pytest
import torch

from rl.envs.bouncing import BouncingPoint
from rl.envs.bowls import Bowls
from rl.envs.check import check_simulator
from rl.envs.enumerable import Enumerable
from rl.envs.hybrid import HybridSimulator
from rl.envs.inventory import Inventory, joint_replenishment, single_item
from rl.envs.newsvendor import Newsvendor
from rl.envs.stores import Stores
from rl.envs.switched_lqr import switched_lqr, textbook_switched_lqr
from rl.errors import SimulatorError

SHIPPED = {
    "single item": single_item(),
    "joint replenishment": joint_replenishment(3, horizon=20),
    "up to a level": joint_replenishment(3, "up_to", horizon=20),
    "lost sales": Inventory([5.0, 6.0], 1.0, 9.0, fixed_cost=10.0, lead_time=1, unmet="lost", horizon=20),
    "no lead time": Inventory([5.0], 1.0, 9.0, fixed_cost=10.0, horizon=20),
    "stores": Stores([5.0, 6.0, 7.0], horizon=20),
    "stores that lose sales": Stores([5.0, 6.0], unmet="lost", store_lead_time=1, warehouse_lead_time=1, horizon=20),
    "switched LQR": switched_lqr(3, 2),
    "textbook": textbook_switched_lqr(),
    "newsvendor": Newsvendor(),
    "bowls": Bowls([1.0, 0.5], [[2.0], [-1.0]]),
    "bouncing point": BouncingPoint(),
    "enumerable": Enumerable(torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_simulators_keep_the_protocol(name):
    assert check_simulator(SHIPPED[name])[-1] == "no jump within a mode"


class Walk(HybridSimulator):
    """A random walk that costs its square; every test below breaks it in one way."""

    n_modes, action_dim, observation_dim, horizon = 2, 1, 2, 4

    def sample_noise(self, batch, generator):
        return {"shock": torch.randn(batch, self.horizon, 2, generator=generator, dtype=self.dtype)}

    def reset(self, noise):
        return {
            "x": torch.zeros_like(noise["shock"][:, 0]),
            "count": torch.zeros(len(noise["shock"]), dtype=torch.long),
        }

    def observe(self, state, t):
        return state["x"]

    def step(self, state, mode, action, noise, t):
        x = state["x"] + action + noise["shock"][:, t] + torch.where(mode == 1, 0.5, 0.0)[:, None]
        return {"x": x, "count": state["count"] + mode}, x.square().sum(1)


def test_the_unbroken_walk_passes_in_either_type():
    assert len(check_simulator(Walk())) == 7
    assert len(check_simulator(Walk().to(dtype=torch.float64))) == 7
    assert check_simulator(broken(horizon=np.int64(4), n_modes=np.int32(2)))[-1] == "no jump within a mode"


def test_an_indifferentiable_simulator_is_checked_for_all_else():
    class Opaque(Walk):
        differentiable = False

        def step(self, state, mode, action, noise, t):
            following, cost = super().step(state, mode, action, noise, t)
            return following, cost.detach()

    assert "not differentiable" in check_simulator(Opaque())[-1]
    assert "not differentiable" in check_simulator(Opaque(), estimator="score")[-1]
    with pytest.raises(SimulatorError, match="no gradient to follow; train it with estimator score"):
        check_simulator(Opaque(), estimator="mixed")


def masked(allows):
    """A walk whose second mode is allowed where ``allows`` says so of the state and the step."""
    return broken(
        mode_mask=lambda self, state, t: torch.stack(
            [torch.ones(len(state["x"]), dtype=torch.bool), allows(state, t)], 1
        )
    )


def test_a_mask_that_the_continuous_actions_move_is_for_the_score_estimator_only():
    def stock(state, t):
        return state["x"][:, 0].detach() > 0.3

    for estimator in (None, "mixed", "pathwise", "straight_through"):
        with pytest.raises(SimulatorError, match=r"step 1: the mode mask changes .* train with estimator score"):
            check_simulator(masked(stock), estimator=estimator)
    assert "estimator score needs no gradient" in check_simulator(masked(stock), estimator="score")[-1]
    with pytest.raises(SimulatorError, match="the mode mask changes with the continuous actions"):
        check_simulator(masked(lambda state, t: state["x"][:, 0].detach() < 100.0))  # far from where play goes


def test_a_mask_of_time_noise_and_earlier_modes_is_for_all():
    for still in (
        lambda state, t: torch.full((len(state["x"]),), t % 2 == 0),
        lambda state, t: state["count"] < 2,
    ):
        assert check_simulator(masked(still))[-1] == "no jump within a mode"


def test_a_kink_is_not_a_jump():
    class Kink(Walk):
        def step(self, state, mode, action, noise, t):
            following, _ = super().step(state, mode, action, noise, t)
            return following, following["x"].abs().sum(1) + 3 * following["x"].clamp(min=0).sum(1)

    check_simulator(Kink())


def test_an_observation_may_show_the_mode_before_as_a_number():
    class Seen(Walk):
        def step(self, state, mode, action, noise, t):
            following, cost = super().step(state, mode, action, noise, t)
            return following | {"count": mode}, cost

        def observe(self, state, t):
            return state["x"] + state["count"].to(state["x"])[:, None] / 2

    assert check_simulator(Seen())[-1] == "no jump within a mode"


def broken(**changes):
    return type("Broken", (Walk,), changes)()


def changed(change):
    """A walk whose step returns something else."""

    def step(self, state, mode, action, noise, t):
        following, cost = Walk.step(self, state, mode, action, noise, t)
        return change(following, cost, t, locals())

    return broken(step=step)


def at(t, broken_at, wrong, right):
    return wrong if t == broken_at else right


def in_place(self, state, mode, action, noise, t):
    state["x"] += action
    return {"x": state["x"], "count": state["count"]}, state["x"].square().sum(1)


def mode_times_action(self, state, mode, action, noise, t):
    following, cost = Walk.step(self, state, mode, action, noise, t)
    return following, cost + 3.0 * mode


def unsafe_root(self, state, mode, action, noise, t):
    following, cost = Walk.step(self, state, mode, action, noise, t)
    x = following["x"].sum(1)
    return following, cost + torch.where(x > 0, torch.where(x > 0, x, 0.0 * x).sqrt(), 0.0)


def global_noise(self, batch, generator):
    return {"shock": torch.randn(batch, self.horizon, 2)}


def mixed_episodes(self, state, mode, action, noise, t):
    following, cost = Walk.step(self, state, mode, action, noise, t)
    return following, cost - cost.mean()


def random_step(self, state, mode, action, noise, t):
    following, cost = Walk.step(self, state, mode, action, noise, t)
    return following, cost + torch.rand(len(cost))


def branches_on_the_mean(self, state, mode, action, noise, t):
    following, cost = Walk.step(self, state, mode, action, noise, t)
    return following, cost + 1.0 if following["x"].mean() > 20.0 else cost


def watched(change):
    """A walk that is seen otherwise."""
    return broken(observe=lambda self, state, t: change(state["x"], t))


def scaled_in_place(self, state, t):
    return state["x"].mul_(0.5)


BROKEN = {
    "step 1: the gradient of the observation is 0 by autograd": watched(lambda x, t: x.detach()),
    "step 2: the gradient of the observation is": watched(
        lambda x, t: at(t, 2, torch.stack([x[:, 0], x[:, 1].detach()], 1), x)
    ),
    "step 1: the observation jumps": watched(lambda x, t: (10 * x).round() / 10),
    "step 3: the observation jumps": watched(
        lambda x, t: at(t, 3, torch.cat([x[:, :1], (x[:, :1] > 0.3).to(x)], 1), x)
    ),
    "step 0: the observation differs when the same noise": watched(lambda x, t: x + torch.rand(len(x), 1)),
    "an episode draws from torch's global generator": watched(lambda x, t: x + 0 * torch.rand(len(x), 1)),
    "step 1: the observation of an episode changes when others leave": watched(lambda x, t: x - x.mean(0)),
    "step 0: observe writes into state['x'] in place": broken(observe=scaled_in_place),
    "the cost of an episode changes when others in the batch act otherwise": broken(step=branches_on_the_mean),
    "step 2: the cost jumps": changed(lambda s, c, t, _: (s, at(t, 2, c + 50 * (s["x"][:, 0] > 40.0).to(c.dtype), c))),
    "step 1: action_map gives other actions with seen_state(observation) than with the state": broken(
        action_map=lambda self, raw, state: raw[:, :, :1] + state["x"][:, None, :1],
        seen_state=lambda self, observation: {"x": 2 * observation},
    ),
    "horizon is 3.0": broken(horizon=3.0),
    "n_modes is True": broken(n_modes=True),
    "horizon is 0": broken(horizon=0),
    "discount is 1.5": broken(discount=1.5),
    "report is 'sum'": broken(report="sum"),
    "report_from is 4": broken(report_from=4),
    "sample_noise draws from torch's global generator": broken(sample_noise=global_noise),
    "step 2: the cost is nan in episode 0": changed(lambda s, c, t, _: (s, at(t, 2, c * float("nan"), c))),
    "step 1: the cost is inf in episode": changed(lambda s, c, t, _: (s, at(t, 1, c / 0, c))),
    "step 3: state['x'] is nan": changed(lambda s, c, t, _: (s | {"x": at(t, 3, s["x"] * float("nan"), s["x"])}, c)),
    "step 0: the cost has shape (6, 1)": changed(lambda s, c, t, _: (s, c[:, None])),
    "step 2: state['x'] has shape (5, 2) in a batch of 6": changed(
        lambda s, c, t, _: (s | {"x": at(t, 2, s["x"][:5], s["x"])}, c)
    ),
    "step 1: state['count'] is missing": changed(lambda s, c, t, _: (at(t, 1, {"x": s["x"]}, s), c)),
    "step 0: the cost is torch.float64": changed(lambda s, c, t, _: (s, c.double())),
    "step 0: the observation has shape (6, 1)": broken(observe=lambda self, state, t: state["x"][:, :1]),
    "step 0: what action_map returns has shape (6, 1)": broken(action_map=lambda self, raw, state: raw[:, 0]),
    "step 0: the mode mask is torch.float32": broken(mode_mask=lambda self, state, t: torch.ones(6, 2)),
    "step 0: the cost differs when the same noise": broken(step=random_step),
    "step 0: the cost of an episode changes when others leave": broken(step=mixed_episodes),
    "step 0 writes into state['x'] in place": broken(step=in_place),
    "step 0: the mode is used as a number (by 'mul')": broken(step=mode_times_action),
    "step 2: the gradient of state['x'] is 0 by autograd": changed(
        lambda s, c, t, _: (s | {"x": at(t, 2, s["x"].detach(), s["x"])}, c)
    ),
    "step 1: the gradient of the cost is": changed(lambda s, c, t, _: (s, at(t, 1, c + 2 * c.detach(), c))),
    "step 0: the gradient of the cost is not finite": broken(step=unsafe_root),
    "step 3: the cost jumps": changed(lambda s, c, t, _: (s, at(t, 3, c + (s["x"][:, 0] > 0.3).to(c.dtype), c))),
    "step 0: state['x'] jumps": changed(lambda s, c, t, _: (s | {"x": s["x"] + 0.1 * s["x"].sign()}, c)),
}


@pytest.mark.parametrize("message", BROKEN)
def test_every_breach_is_named_by_step_and_tensor(message):
    with pytest.raises(SimulatorError, match=re.escape(message)):
        check_simulator(BROKEN[message])
