"""Observations that are too large: told of the seat and the column, and none of ordinary ones."""

import numpy as np
import pytest
import torch

from rl.csp import record_target
from rl.csp.scales import scale_warnings
from rl.envs import FileGame, VaultMaze
from rl.envs.vault_maze import behaviour, true_guard


@pytest.mark.parametrize("shared", [1.0, -100.0])
def test_a_large_number_is_told_for_either_seat(shared: float) -> None:
    looks = [[0.0, shared, 1.0], [1.0, shared, 1.0]]
    transition = np.zeros((2, 2, 2, 2))
    transition[..., 1] = 1
    game = FileGame(
        transition=transition,
        reward=np.zeros((2, 2, 2)),
        start=[1, 0],
        terminal=[1],
        horizon=1,
        observations=looks,
    )
    even = game.policy(np.full((2, 2), 0.5))
    told = scale_warnings(record_target(game, even, even, 4, torch.Generator()).pairs(), game)
    wanted = [f"what {seat} sees reaches 100 in column 1" for seat in game.seats] if shared < 0 else []
    assert [line.partition(",")[0] for line in told] == wanted


def test_a_game_that_ships_is_not_accused() -> None:
    maze = VaultMaze("grid")
    ours, guard = maze.policy(behaviour()), maze.policy(true_guard())
    assert scale_warnings(record_target(maze, ours, guard, 20, torch.Generator()).pairs(), maze) == []
