"""Tabular games: what is played is what is solved."""

import numpy as np
import pytest
import torch

from rl.envs.tabular import TabularGame
from rl.envs.vault_maze import COVERED, NODES, VaultMaze, behaviour, maze_game, true_guard
from rl.exact import MarkovGame


def returns(game, ours, theirs, batch, seed=0):
    source = torch.Generator().manual_seed(seed)
    state, total, discount = game.reset(batch, source), torch.zeros(batch), 1.0
    policies = dict(zip(game.seats, (game.policy(ours), game.policy(theirs)), strict=True))
    for _ in range(game.horizon):
        seen = game.observe(state)
        actions = {seat: act(seen[seat], None, source) for seat, act in policies.items()}
        state, reward, _ = game.step(state, actions, source)
        total += discount * reward
        discount *= game.discount
    return total


@pytest.mark.parametrize("view", ["node", "grid"])
def test_the_mean_return_of_played_mazes_is_the_exact_value(view):
    game, uniform = VaultMaze(view), np.full((7, 3), 1 / 3)
    played = returns(game, uniform, true_guard(), 20_000)
    exact = game.exact.value(uniform, true_guard())
    assert abs(played.mean() - exact) < 4 * played.std() / 20_000**0.5


def test_a_random_game_with_random_transitions_is_played_as_it_is_solved():
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(4), (4, 2, 3))
    exact = MarkovGame(transition, rng.uniform(-1, 1, (4, 2, 3)), 0.7, np.array([0.5, 0.5, 0.0, 0.0]))
    game = TabularGame(exact, [], horizon=40)
    ours, theirs = rng.dirichlet(np.ones(2), 4), rng.dirichlet(np.ones(3), 4)
    played = returns(game, ours, theirs, 20_000)
    assert abs(played.mean() - exact.value(ours, theirs)) < 4 * played.std() / 20_000**0.5


@pytest.mark.parametrize("large", [0.0, 1e4, -1e7])
def test_states_are_told_apart_beside_a_large_number_that_they_share(large):
    start = np.array([0.5, 0.5, 0.0])
    transition = np.zeros((3, 2, 2, 3))
    transition[..., 2] = 1
    looks = np.array([[0.0, large], [1.0, large], [0.5, large]])
    game = TabularGame(MarkovGame(transition, np.zeros((3, 2, 2)), 0.9, start), [2], 1, looks)
    node = torch.arange(3).repeat(100)
    seen = game.observations[node]
    own = game.policy(np.eye(2)[[0, 1, 0]])
    assert torch.equal(own(seen[:, None], None, torch.Generator())[:, 0], torch.tensor([0, 1, 0]).repeat(100))
    assert game.state_counts(seen, node % 2).tolist() == [[100, 0], [0, 100], [100, 0]]
    assert not game.impossible("target", seen).any()
    assert game.impossible("target", seen + torch.tensor([0.25, 0.0])).all()


def test_the_behaviour_covers_what_it_is_said_to_cover():
    occupancy = maze_game().occupancy(behaviour(), true_guard())
    assert ((occupancy > 0) == COVERED).all()
    assert len(NODES) == len(COVERED)


def test_in_the_grid_the_chamber_looks_most_like_a_covered_node_where_the_guard_is_ahead():
    game = VaultMaze("grid")
    distance = torch.cdist(game.observations, game.observations)
    distance[:, ~torch.from_numpy(COVERED)] = torch.inf
    assert NODES[int(distance[NODES.index("chamber")].argmin())] in {"left corridor", "gate"}


def test_frames_and_refusals():
    game = VaultMaze()
    state = game.reset(1, torch.Generator())
    assert game.frame(state, 0).shape == (168, 216, 3)
    with pytest.raises(ValueError, match="the view is 'pixels'"):
        VaultMaze("pixels")
    with pytest.raises(ValueError, match="rows that all differ"):
        TabularGame(maze_game(), [6], 4, np.zeros((7, 2)))
    with pytest.raises(ValueError, match="observation 0 of the data is that of no state"):
        game.state_counts(torch.ones(1, 7), torch.zeros(1, dtype=torch.int64))
