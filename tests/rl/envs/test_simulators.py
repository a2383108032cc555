"""What every shipped simulator does, against arithmetic by hand, closed forms and plain Python."""

import math

import numpy as np
import pytest
import torch

import rl.envs
from rl.envs.bowls import Bowls
from rl.envs.enumerable import Enumerable
from rl.envs.hybrid import chosen_action, play, reported_cost
from rl.envs.inventory import Inventory, joint_replenishment, single_item
from rl.envs.newsvendor import Newsvendor
from rl.envs.stores import Stores
from rl.envs.switched_lqr import SwitchedLQR, switched_lqr


def test_the_package_names_what_it_has(monkeypatch):
    for variable in ("PYGAME_HIDE_SUPPORT_PROMPT", "SDL_AUDIODRIVER"):  # set by what some names import
        monkeypatch.setenv(variable, "dummy")
    for name in rl.envs.__all__:
        assert getattr(rl.envs, name) is not None
    with pytest.raises(AttributeError, match=r"No rl\.envs attribute Simulator"):
        rl.envs.Simulator  # noqa: B018


def by_hand(demand, orders, lead_time, unmet, holding, shortage, fixed_cost):
    """One item, written as a clerk would: a list of what arrives when."""
    arrivals, stock, costs = {}, 0.0, []
    for t, wanted in enumerate(demand):
        stock += arrivals.pop(t, 0.0)
        if orders[t] is not None and lead_time == 0:
            stock += orders[t]
        elif orders[t] is not None:
            arrivals[t + lead_time] = orders[t]
        stock -= wanted
        costs.append(fixed_cost * (orders[t] is not None) + max(holding * stock, -shortage * stock))
        if unmet == "lost":
            stock = max(stock, 0.0)
    return costs


@pytest.mark.parametrize("unmet", ["backlog", "lost"])
@pytest.mark.parametrize("lead_time", [0, 1, 2, 4])
def test_inventory_does_what_a_clerk_would(lead_time, unmet):
    simulator = Inventory(
        [6.0, 4.0], 1.5, [9.0, 7.0], fixed_cost=20.0, lead_time=lead_time, unmet=unmet, horizon=30, dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(0)
    noise = simulator.sample_noise(3, generator)
    modes = torch.randint(2, (30, 3), generator=generator)
    amounts = 15 * torch.rand(30, 3, 2, generator=generator, dtype=torch.float64)
    costs = play(simulator, lambda state, t: (modes[t], amounts[t]), noise)
    for episode in range(3):
        expected = np.zeros(30)
        for item, shortage in enumerate((9.0, 7.0)):
            orders = [amounts[t, episode, item].item() if modes[t, episode] else None for t in range(30)]
            demand = noise["demand"][episode, :, item].tolist()
            expected += np.array(by_hand(demand, orders, lead_time, unmet, 1.5, shortage, 10.0)) / 2
        np.testing.assert_allclose(costs[episode], expected, rtol=1e-12)


def test_demand_is_poisson_and_replayable():
    simulator = joint_replenishment(3)
    demand = simulator.sample_noise(500, torch.Generator().manual_seed(0))["demand"]
    again = simulator.sample_noise(500, torch.Generator().manual_seed(0))["demand"]
    assert torch.equal(demand, again)
    torch.testing.assert_close(demand.mean((0, 1)), simulator.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(demand.flatten(0, 1).var(0), simulator.mean, atol=0.3, rtol=0)


def test_the_family_is_drawn_as_published():
    simulator = joint_replenishment(10)
    assert simulator.mean.mean().item() == pytest.approx(9.65, abs=5e-3)
    assert simulator.holding.mean().item() == pytest.approx(0.995, abs=5e-4)
    assert simulator.shortage.mean().item() == pytest.approx(9.58, abs=5e-3)
    assert simulator.fixed_cost == 640
    assert (simulator.n_modes, simulator.action_dim, simulator.observation_dim) == (2, 10, 20)
    torch.testing.assert_close(joint_replenishment(5).mean, simulator.mean[:5])


def test_orders_up_to_a_level_reach_it():
    simulator = Inventory([10.0], 1.0, 9.0, fixed_cost=64.0, lead_time=2, orders="up_to", dtype=torch.float64)
    state = {"stock": torch.tensor([[-20.0]]).double(), "under_way": torch.tensor([[[5.0]]]).double()}
    for raw, level in ((10 * math.atanh(0.12), 62), (1e9, 150)):  # 10 * (2 + 3 + 1.2); and never above 10 * (5 + 10)
        actions = simulator.action_map(torch.full((1, 2, 1), raw, dtype=torch.float64), state)
        assert actions[0, 0].item() == 0
        assert actions[0, 1].item() == pytest.approx(level + 15, abs=0.01)  # from a position of -15


def test_the_gradient_of_the_cost_is_that_of_the_newsvendor():
    simulator = Inventory([10.0], 1.0, 9.0, fixed_cost=5.0, horizon=1, dtype=torch.float64)
    action = torch.tensor([[12.0], [8.0]], dtype=torch.float64, requires_grad=True)
    noise = {"demand": torch.tensor([[[10.0]], [[10.0]]], dtype=torch.float64)}
    _, cost = simulator.step(simulator.reset(noise), torch.tensor([1, 1]), action, noise, 0)
    assert torch.autograd.grad(cost.sum(), action)[0].tolist() == [[1.0], [-9.0]]


def test_reported_costs_leave_the_warm_up_out():
    simulator = single_item()
    costs = torch.arange(100.0)[None]
    assert reported_cost(simulator, costs).item() == pytest.approx(np.arange(16, 100).mean())
    assert reported_cost(switched_lqr(2, 2), costs).item() == pytest.approx(4950)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [10.0, 0.0]}, "each must be above 0"),
        ({"holding": [1.0, 2.0, 3.0]}, "or 2: one for each item"),
        ({"shortage": -1.0}, "at or above 0"),
        ({"fixed_cost": -1.0}, "neither may be negative"),
        ({"lead_time": -1}, "neither may be negative"),
    ],
)
def test_bad_inventory_is_refused(changes, message):
    arguments = {"mean": [10.0, 5.0], "holding": 1.0, "shortage": 9.0, "fixed_cost": 1.0} | changes
    with pytest.raises(ValueError, match=message):
        Inventory(**arguments)


def test_a_warehouse_conserves_goods_and_never_ships_what_it_lacks():
    simulator = Stores([5.0, 6.0, 7.0], horizon=40, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = simulator.sample_noise(8, generator)
    state = simulator.reset(noise)

    def goods(state):
        return sum(value.flatten(1).sum(1) for value in state.values())

    for t in range(40):
        mode = torch.randint(4, (8,), generator=generator)
        raw = 2 * torch.randn(8, 4, 4, generator=generator, dtype=torch.float64)
        action = chosen_action(simulator.action_map(raw, state), mode)
        assert (action[:, 1:].sum(1) <= state["warehouse"][:, 0] + 1e-9).all()
        following, cost = simulator.step(state, mode, action, noise, t)
        ordered = torch.where(simulator.orders[mode], action[:, 0], 0.0)
        torch.testing.assert_close(goods(following), goods(state) + ordered - noise["demand"][:, t].sum(1))
        assert (following["warehouse"] > -1e-9).all()
        stock = state["stock"] - noise["demand"][:, t]
        shipped = torch.where(simulator.trucks[mode], action[:, 1:].sum(1), 0.0)
        expected = torch.maximum(stock, -9 * stock).sum(1) + 0.5 * (state["warehouse"][:, 0] - shipped)
        expected = expected + 100 * simulator.orders[mode] + 50 * simulator.trucks[mode]
        torch.testing.assert_close(cost, expected / 3)
        state = following


def test_what_a_warehouse_orders_and_ships_arrives_after_its_lead_time():
    simulator = Stores([5.0, 5.0], warehouse_lead_time=3, store_lead_time=2, horizon=10)
    noise = {"demand": torch.zeros(1, 10, 2)}
    state, history = simulator.reset(noise), []
    for t in range(6):
        mode = torch.tensor([3 if t == 0 else 0])
        state, _ = simulator.step(state, mode, torch.tensor([[100.0, 3.0, 4.0]]), noise, t)
        history.append((state["warehouse"].item(), state["stock"][0].tolist()))
    start = 40.0 - 7
    assert [warehouse for warehouse, _ in history] == [start, start, start + 100, *[start + 100] * 3]
    assert [stock for _, stock in history] == [[15.0, 15.0], [18.0, 19.0], *[[18.0, 19.0]] * 4]


def test_levels_of_stores_count_all_goods_that_are_anywhere():
    simulator = Stores([5.0, 10.0], warehouse_lead_time=3, store_lead_time=2, orders="up_to", dtype=torch.float64)
    state = {
        "stock": torch.tensor([[-40.0, -300.0]], dtype=torch.float64),  # so much is missing that softplus is straight
        "under_way": torch.tensor([[[3.0, 4.0]]], dtype=torch.float64),
        "warehouse": torch.tensor([[1000.0]], dtype=torch.float64),
        "ordered": torch.tensor([[[20.0], [30.0]]], dtype=torch.float64),
    }
    raw = torch.tensor([[[60.0, 0.5, -1.0]]], dtype=torch.float64)
    bounded = 10 * np.tanh(raw.numpy()[0, 0] / 10)
    action = simulator.action_map(raw, state)[0, 0]
    assert action[1].item() == pytest.approx(5 * (bounded[1] + 2 + 3) + 40 - 3, rel=1e-3)
    assert action[2].item() == pytest.approx(10 * (bounded[2] + 2 + 3) + 300 - 4, rel=1e-6)
    goods = 1000 + 50 + 7 - 340
    assert action[0].item() == pytest.approx(15 * np.logaddexp(0, bounded[0] + 5 + 3 - goods / 15), rel=1e-6)
    seen = simulator.seen_state(simulator.observe(state, 0))
    for name, value in state.items():
        torch.testing.assert_close(seen[name], value)


def test_stores_refuse_impossible_times_and_costs():
    with pytest.raises(ValueError, match="a lead time must be at least 1"):
        Stores([5.0], store_lead_time=0)
    with pytest.raises(ValueError, match="no cost may be negative"):
        Stores([5.0], truck_cost=-1)


def test_the_plant_of_the_family():
    simulator = switched_lqr(5, 2, dtype=torch.float64)
    assert simulator.B[0].diagonal().tolist() == [1, 1, 1, 0.15, 0.15]
    assert simulator.B[1].diagonal().tolist() == [0.15, 0.15, 0.15, 1, 1]
    torch.testing.assert_close(simulator.A[0], simulator.A[0].T)
    assert (simulator.A[0] - 1.1 * torch.eye(5)).abs().max().item() == pytest.approx(0.05)
    noise = simulator.sample_noise(20_000, torch.Generator().manual_seed(0))
    assert noise["initial"].square().sum(1).mean().item() == pytest.approx(100 / 3, rel=0.01)


def test_every_mode_has_its_own_plant_and_the_state_is_bounded():
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(3, 2, 2)), rng.normal(size=(3, 2, 4))
    simulator = SwitchedLQR(A, B, np.eye(2), 2 * np.eye(4), initial=1.0, dtype=torch.float64)
    x, u, mode = rng.normal(size=(6, 2)), rng.normal(size=(6, 4)), np.array([0, 1, 2, 2, 1, 0])
    state, cost = simulator.step({"x": torch.tensor(x)}, torch.tensor(mode), torch.tensor(u), {}, 0)
    np.testing.assert_allclose(state["x"], [A[j] @ s + B[j] @ b for j, s, b in zip(mode, x, u, strict=True)])
    np.testing.assert_allclose(cost, (x**2).sum(1) + 2 * (u**2).sum(1))
    far, _ = simulator.step({"x": torch.tensor(1e6 * x)}, torch.tensor(mode), torch.tensor(u), {}, 0)
    assert far["x"].abs().max() == 100
    with pytest.raises(ValueError, match="each mode needs a block"):
        switched_lqr(2, 3)
    with pytest.raises(ValueError, match="but they must be"):
        SwitchedLQR(A, B, np.eye(3), np.eye(4), initial=1.0)


@pytest.mark.parametrize("fixed_cost", [0.0, 0.5, 3.0, 10.0])
def test_the_newsvendors_closed_form_is_the_best_of_a_fine_grid(fixed_cost):
    simulator = Newsvendor(fixed_cost=fixed_cost, holding=1.0, shortage=4.0)
    reorder, level, cost = simulator.optimum()
    demand = (np.arange(2000) + 0.5) / 2000
    stocks = (np.arange(400) + 0.5) / 400
    expected = np.array([np.maximum(y - demand, -4 * (y - demand)).mean() for y in stocks])
    best_after = np.minimum.accumulate(expected[::-1])[::-1]
    best = np.minimum(expected, fixed_cost + best_after)
    assert best.mean() == pytest.approx(cost, abs=2e-3)
    assert (fixed_cost + best_after < expected)[stocks < reorder - 0.01].all()
    assert (fixed_cost + best_after >= expected)[stocks > reorder + 0.01].all()
    noise = simulator.sample_noise(200_000, torch.Generator().manual_seed(0))
    costs = play(
        simulator,
        lambda state, t: ((state["stock"] < reorder).long(), (level - state["stock"]).clamp(min=0)[:, None]),
        noise,
    )
    assert costs.mean().item() == pytest.approx(cost, abs=0.01)


def test_bowls_have_their_minima_at_their_centres():
    simulator = Bowls([1.0, 0.5, 2.0], [[2.0, 0.0], [-1.0, 1.0], [0.0, 0.0]])
    noise = simulator.sample_noise(3, torch.Generator())
    mode = torch.arange(3)
    _, cost = simulator.step(simulator.reset(noise), mode, simulator.centres, noise, 0)
    assert cost.tolist() == [1.0, 0.5, 2.0]


def test_every_episode_of_the_enumerable_problem_is_listed_once():
    simulator = Enumerable(torch.Generator().manual_seed(3))
    noise, modes, probability = simulator.every_episode()
    assert len({(*word, *values) for word, values in zip(modes.tolist(), noise["z"].tolist(), strict=True)}) == 216
    assert probability.sum().item() == pytest.approx(27)
    drawn = simulator.sample_noise(20_000, torch.Generator().manual_seed(0))["z"]
    assert drawn.double().mean().item() == pytest.approx(0.6, abs=0.01)
    sampled = play(simulator, lambda state, t: (modes[::8][:, t], torch.zeros(27, 2).double()), {"z": noise["z"][::8]})
    assert sampled.shape == (27, 3)
    assert math.isfinite(sampled.sum().item())


@pytest.mark.parametrize(
    "simulator", [joint_replenishment(2, horizon=5), switched_lqr(3, 2), Stores([5.0, 6.0], horizon=5)]
)
def test_a_copy_in_another_type_leaves_the_first_alone(simulator):
    double = simulator.to(dtype=torch.float64)
    noise = double.sample_noise(4, torch.Generator().manual_seed(0))
    assert simulator.dtype == torch.float32
    state = double.reset(noise)
    raw = torch.zeros(4, double.n_modes, double.action_dim, dtype=torch.float64)
    mode = torch.zeros(4, dtype=torch.long)
    state, cost = double.step(state, mode, chosen_action(double.action_map(raw, state), mode), noise, 0)
    assert cost.dtype == double.observe(state, 1).dtype == torch.float64
