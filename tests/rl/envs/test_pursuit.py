"""The batched predator-prey against mpe2's simple_tag, step by step, and its own invariants."""

import numpy as np
import pytest
import torch

from rl.envs.pursuit import PredatorPrey, chasing_predators, fleeing_prey, guarding_predators, roaming_prey


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def played(game, state, predators, prey, source):
    """The state after an episode between two scripts, and the mean return."""
    total = 0.0
    for _ in range(game.horizon):
        seen = game.observe(state)
        moves = {"predators": predators(seen["predators"], None, source), "prey": prey(seen["prey"], None, source)}
        state, reward, _ = game.step(state, moves, source)
        total += reward.mean().item()
    return state, total


@pytest.mark.parametrize(("predators", "prey", "obstacles"), [(3, 1, 2), (2, 2, 1)])
def test_every_step_is_that_of_simple_tag(predators, prey, obstacles, monkeypatch):
    for variable in ("PYGAME_HIDE_SUPPORT_PROMPT", "SDL_AUDIODRIVER"):  # mpe2 sets them when it is imported
        monkeypatch.setenv(variable, "dummy")
    simple_tag = pytest.importorskip("mpe2.simple_tag_v3")
    for side in ("predators", "prey"):
        game = PredatorPrey(side, predators, prey, obstacles, dtype=torch.float64)
        env = simple_tag.parallel_env(num_good=prey, num_adversaries=predators, num_obstacles=obstacles)
        names = [f"adversary_{i}" for i in range(predators)] + [f"agent_{i}" for i in range(prey)]
        rng, hits = np.random.default_rng(0), 0.0
        for episode in range(6):
            seen, _ = env.reset(seed=episode)
            world = env.unwrapped.world
            crowd = 0.4 if episode % 2 else 1.0  # crowded starts, so that contacts occur
            for entity in world.entities:
                entity.state.p_pos = entity.state.p_pos * crowd
            state = game.reset(1, generator())
            state["position"] = torch.tensor(np.stack([entity.state.p_pos for entity in world.entities]))[None].clone()
            if crowd == 1.0:
                compare(game, state, seen, names)
            for t in range(25):
                moves = rng.integers(0, 5, predators + prey)
                if t % 2:  # chase along x, so that hits occur
                    target = world.agents[-1].state.p_pos[0]
                    moves = [2 if agent.state.p_pos[0] < target else 1 for agent in world.agents]
                seen, rewards, _, truncations, _ = env.step({n: int(m) for n, m in zip(names, moves, strict=True)})
                both = torch.as_tensor(np.array(moves))[None]
                actions = {"predators": both[:, :predators], "prey": both[:, predators:]}
                state, reward, done = game.step(state, actions, generator())
                compare(game, state, seen, names)
                paid = rewards["adversary_0"] if side == "predators" else sum(rewards[n] for n in names[predators:])
                assert reward.item() == pytest.approx(paid, rel=1e-5, abs=1e-6)
                assert done.item() == all(truncations.values())
                hits += rewards["adversary_0"]
        assert hits > 0
        env.close()


def compare(game, state, seen, names):
    ours = game.observe(state)
    for row, name in enumerate(names):
        seat = "predators" if name.startswith("adversary") else "prey"
        place = row if seat == "predators" else row - game.players["predators"]
        np.testing.assert_allclose(ours[seat][0, place].numpy(), seen[name], rtol=1e-5, atol=1e-6)


def test_rows_of_a_batch_do_not_touch_and_ended_episodes_stay_still():
    game = PredatorPrey(horizon=3)
    state = game.reset(5, generator())
    alone = {name: value[2:3] for name, value in state.items()}
    moves = {seat: torch.randint(5, (5, game.players[seat]), generator=generator(1)) for seat in game.seats}
    for _ in range(3):
        state, reward, done = game.step(state, moves, generator())
        alone, alone_reward, _ = game.step(alone, {seat: x[2:3] for seat, x in moves.items()}, generator())
        torch.testing.assert_close(state["position"][2:3], alone["position"])
        torch.testing.assert_close(reward[2:3], alone_reward)
    assert done.all()
    after, reward, done = game.step(state, moves, generator())
    assert done.all()
    assert not reward.any()
    assert all(torch.equal(after[name], state[name]) for name in state)


def test_starts_in_the_right_half_and_the_scripted_target_flees_only_there():
    game = PredatorPrey(starts="right")
    state = game.reset(500, generator())
    assert (state["position"][:, 3, 0] >= 0).all()
    assert (state["position"][:, :3, 0] < 0).any()
    moves = fleeing_prey(game.observe(state)["prey"], None, generator())
    assert moves.shape == (500, 1)
    left = {**state, "position": state["position"] * torch.tensor([-1.0, 1.0])}
    random = fleeing_prey(game.observe(left)["prey"], None, generator())
    assert (moves == 0).float().mean() == 0
    assert 0.1 < (random == 0).float().mean() < 0.3
    # Between a predator on its left and free space on its right, it goes right.
    state["position"][0] = torch.tensor([[0.1, 0.0], [0.0, 0.9], [0.0, -0.9], [0.3, 0.0], [0.9, 0.9], [-0.9, 0.9]])
    assert fleeing_prey(game.observe(state)["prey"], None, generator())[0].item() == 2


def test_guarding_predators_chase_in_the_left_half_only_and_roaming_prey_stays_out_of_it():
    game, source = PredatorPrey("prey", starts="right"), generator()
    state, hits = game.reset(500, source), {}
    for side, sign in (("right", 1.0), ("left", -1.0)):
        there = {**state, "position": state["position"] * torch.tensor([sign, 1.0])}
        seen = game.observe(there)["predators"]
        chase = chasing_predators(seen, None, generator(5))
        hits[side] = (guarding_predators(seen, None, generator(5)) == chase).float().mean().item()
    assert hits["right"] < 0.4  # random moves agree now and then
    assert hits["left"] > 0.8  # both draw at random now and then, from other draws
    state, _ = played(game, state, guarding_predators, roaming_prey, source)
    assert (state["position"][:, 3, 0] > 0).float().mean() > 0.95


def test_chasing_predators_catch_dawdling_prey_more_often_than_fleeing_prey():
    caught = {}
    for side in ("all", "right"):
        game, source = PredatorPrey(starts=side), generator()
        _, caught[side] = played(game, game.reset(300, source), chasing_predators, fleeing_prey, source)
    assert caught["all"] > 1.1 * caught["right"]


def test_frames():
    game = PredatorPrey()
    assert game.frame(game.reset(2, generator()), 1).shape == (210, 210, 3)


def test_refusals():
    with pytest.raises(ValueError, match="ours is 'hunters'"):
        PredatorPrey("hunters")
    with pytest.raises(ValueError, match="there are 0 predators"):
        PredatorPrey(predators=0)
