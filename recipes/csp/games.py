"""The games that the csp recipe can play: which class, whose data, and what is known about them exactly."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rl.envs.markov_game import BatchedGame

CARDS = ("kuhn_poker", "leduc_poker")  # solved exactly, see recipes.csp.cards
NEEDS = {"sumo": "mujoco", "half_sumo": "mujoco", "kuhn_poker": "pyspiel", "leduc_poker": "pyspiel"}


@dataclass(frozen=True)
class Scenario:
    """A game with, where it ships with one, a target and how our seat plays while its data are recorded.

    Attributes:
        game: The game.
        recorded: The game that data are recorded in: the same, with starts that cover less.
        ours: Our policy during the recording, or None: there must be a data file.
        target: The true target, or None.
    """

    game: BatchedGame
    recorded: BatchedGame
    ours: Callable[..., torch.Tensor] | None = None
    target: Callable[..., torch.Tensor] | None = None

    def true_target(self) -> nn.Module | None:
        """The target as a policy to play with."""
        from rl.csp.policies import ScriptedPolicy

        return None if self.target is None else ScriptedPolicy(self.target)


def missing_package(name: str) -> str | None:
    """The package that a game needs and that is not installed, if any."""
    needed = NEEDS.get(name)
    return needed if needed is not None and importlib.util.find_spec(needed) is None else None


def build(name: str, class_path: str, arguments: dict[str, object]) -> Scenario:
    """Make the scenario of a game by its name in the recipe.

    Args:
        name: vault_maze, predator_prey, sumo, half_sumo, or own.
        class_path: For own, a subclass of `BatchedGame`.
        arguments: Of the game's class.

    Raises:
        ValueError: If the class does not exist or does not take the arguments.
    """
    from rl.csp.loading import load_game

    if name == "vault_maze":
        from rl.envs.vault_maze import VaultMaze, behaviour, true_guard

        maze = cast(VaultMaze, load_game("rl.envs.vault_maze.VaultMaze", arguments))
        return Scenario(maze, maze, maze.policy(behaviour()), maze.policy(true_guard()))
    if name == "predator_prey":
        from rl.envs.pursuit import chasing_predators, fleeing_prey, guarding_predators, roaming_prey

        path = "rl.envs.pursuit.PredatorPrey"
        game, recorded = load_game(path, arguments), load_game(path, arguments | {"starts": "right"})
        scripts = {"predators": (chasing_predators, fleeing_prey), "prey": (roaming_prey, guarding_predators)}
        return Scenario(game, recorded, *scripts[game.seats[0]])
    if name == "sumo":
        from rl.envs.sumo import charging_blue

        path = "rl.envs.sumo.Sumo"
        game, recorded = load_game(path, arguments), load_game(path, arguments | {"starts": "front"})
        # Both bodies see the match from their own place, so that the script plays either.
        return Scenario(game, recorded, charging_blue, charging_blue)
    if name == "half_sumo":
        from rl.envs.half_sumo import half_blue, recorded_red

        path = "rl.envs.half_sumo.HalfSumo"
        game, recorded = load_game(path, arguments), load_game(path, arguments | {"starts": "right"})
        return Scenario(game, recorded, recorded_red, half_blue)
    game = load_game(class_path, arguments)
    return Scenario(game, game)
