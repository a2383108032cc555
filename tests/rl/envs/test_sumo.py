"""The ring: symmetry, who wins, rows that do not touch, and bodies that stand."""

import pickle

import pytest
import torch

from rl.envs.sumo import Sumo, charging_blue

pytest.importorskip("mujoco")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def match(game, red, blue, batch=64, seed=0):
    source = generator(seed)
    state, total = game.reset(batch, source), torch.zeros(batch)
    for _ in range(game.horizon):
        seen = game.observe(state)
        state, reward, done = game.step(
            state, {"red": red(seen["red"], None, source), "blue": blue(seen["blue"], None, source)}, source
        )
        total += reward
    assert done.all()
    return state, total


def still(observation, mask, source):
    return torch.zeros(len(observation), 1, 2)


def test_a_charge_wins_against_a_body_that_stands_still_and_against_none_of_its_kind_alone():
    game = Sumo(starts="front")
    _, lost = match(game, still, charging_blue)
    _, won = match(game, charging_blue, still)
    assert (lost < -0.5).float().mean() > 0.5
    assert (won > 0.5).float().mean() > 0.5
    assert (won < -0.5).float().mean() < 0.1
    _, even = match(game, charging_blue, charging_blue, batch=256)
    assert abs(even.mean()) < 0.2


def test_a_flanked_target_idles():
    game = Sumo()
    state = game.reset(400, generator())
    seen = game.observe(state)["blue"]
    bearing = torch.atan2(seen[:, 0, 5], seen[:, 0, 4])
    moves = charging_blue(seen, None, generator())[:, 0, 0]
    assert moves[bearing.abs() > 1.1].mean().abs() < 0.1
    assert moves[bearing.abs() < 1.0].mean() > 0.8


def test_mirrored_players_see_the_same():
    game = Sumo()
    state = game.reset(8, generator())
    swapped = state["physics"].clone()
    swapped[:, 1:4], swapped[:, 4:7] = state["physics"][:, 4:7], state["physics"][:, 1:4]
    first, second = game.observe(state), game.observe({**state, "physics": swapped})
    torch.testing.assert_close(first["red"], second["blue"])
    torch.testing.assert_close(first["blue"], second["red"])


def test_what_a_player_sees_does_not_depend_on_how_the_ring_is_turned():
    game = Sumo()
    state = game.reset(8, generator())
    turn = torch.tensor(0.7, dtype=torch.float64)
    rotation = torch.stack([torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])])
    turned = state["physics"].clone()
    for start in (1, 4):
        turned[:, start : start + 2] = turned[:, start : start + 2] @ rotation.T
        turned[:, start + 2] += turn
    torch.testing.assert_close(game.observe({**state, "physics": turned})["red"], game.observe(state)["red"])


@pytest.mark.parametrize("body", ["pusher", "ant", "walker"])
def test_rows_do_not_touch_and_ended_matches_stay_still(body):
    game = Sumo(body, horizon=4)
    state = game.reset(6, generator())
    alone = {name: value[2:3] for name, value in state.items()}
    for turn in range(4):
        moves = {
            seat: 2 * torch.rand(6, 1, game.action_dim[seat], generator=generator(turn)) - 1 for seat in game.seats
        }
        state, reward, done = game.step(state, moves, generator())
        alone, lonely, _ = game.step(alone, {seat: x[2:3] for seat, x in moves.items()}, generator())
        assert torch.equal(state["physics"][2:3], alone["physics"])
        assert torch.equal(reward[2:3], lonely)
    assert done.all()
    after, reward, _ = game.step(state, moves, generator())
    assert not reward.any()
    assert torch.equal(after["physics"], state["physics"])


def test_reward_is_that_of_a_zero_sum_match():
    game = Sumo(shaping=0.0)
    _, total = match(game, charging_blue, charging_blue, batch=128)
    assert set(total.unique().tolist()) <= {-1.0, 0.0, 1.0}
    shaped = Sumo(shaping=0.5)
    state, total = match(shaped, still, still, batch=4)
    assert total.abs().max() < 1e-6
    assert (state["time"] == 60).all()


def test_ants_stand_and_a_toppled_ant_loses():
    game = Sumo("ant")
    state = game.reset(4, generator())
    assert game.observe(state)["red"].shape == (4, 1, 41)
    zero = {seat: torch.zeros(4, 1, 8) for seat in game.seats}
    for _ in range(20):
        state, _, done = game.step(state, zero, generator())
    assert not done.any()
    state["physics"][0, 1 + 3 : 1 + 7] = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)  # red on its back
    _, reward, done = game.step(state, zero, generator())
    assert done.tolist() == [True, False, False, False]
    assert reward[0] < -0.9


def test_a_walker_goes_where_it_is_told_and_stands_when_it_is_told_nothing():
    game = Sumo("walker", horizon=60)
    game.body = game.body._replace(ring=30.0)  # far from each other
    state = game.reset(3, generator())
    assert game.observe(state)["red"].shape == (3, 1, 15)
    begin, turned = game._pose(state["physics"], 0), torch.zeros(3)
    told = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])[:, None]
    for _ in range(50):  # five seconds
        before = game._pose(state["physics"], 0)["heading"]
        state, _, _ = game.step(state, {"red": told, "blue": 0 * told}, generator())
        turn = game._pose(state["physics"], 0)["heading"] - before
        turned += torch.remainder(turn + torch.pi, 2 * torch.pi) - torch.pi
    moved = game._pose(state["physics"], 0)["place"] - begin["place"]
    ahead = torch.stack([begin["heading"].cos(), begin["heading"].sin()], dim=1)
    assert float((moved * ahead).sum(1)[0]) > 3.0
    assert float(turned[1]) > 5.0
    assert float(moved[1:].norm(dim=1).max()) < 0.3
    assert float(turned[[0, 2]].abs().max()) < 0.3
    assert not any(game._lost(state["physics"], seat).any() for seat in (0, 1))


@pytest.mark.parametrize("body", ["pusher", "walker"])
def test_pickles_and_frames(body):
    game = pickle.loads(pickle.dumps(Sumo(body)))  # noqa: S301
    assert game.frame(game.reset(2, generator()), 0).shape == (200, 200, 3)


def test_refusals():
    with pytest.raises(ValueError, match="body is 'human'"):
        Sumo("human")
    with pytest.raises(ValueError, match="the horizon is 0"):
        Sumo(horizon=0)
