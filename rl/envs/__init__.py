"""Batched simulators with hybrid actions and batched two-seat games: protocols, checkers and adapters."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl.envs.action_spaces import FlatActions, split_actions
    from rl.envs.bouncing import BouncingPoint
    from rl.envs.bowls import Bowls
    from rl.envs.check import check_simulator
    from rl.envs.check_game import check_game
    from rl.envs.check_parallel import check_parallel_env
    from rl.envs.enumerable import Enumerable
    from rl.envs.from_gymnasium import GymnasiumSimulator
    from rl.envs.hybrid import HybridSimulator, Noise, State, chosen_action, play, reported_cost
    from rl.envs.inventory import Inventory, joint_replenishment, single_item
    from rl.envs.markov_game import BatchedGame
    from rl.envs.newsvendor import Newsvendor
    from rl.envs.parallel import GameAsParallelEnv, ParallelGame
    from rl.envs.pursuit import PredatorPrey
    from rl.envs.spiel_game import SpielGame
    from rl.envs.stores import Stores
    from rl.envs.sumo import Sumo
    from rl.envs.switched_lqr import SwitchedLQR, textbook_switched_lqr
    from rl.envs.tabular import TabularGame
    from rl.envs.to_gymnasium import SimulatorEnv, SimulatorVectorEnv
    from rl.envs.vault_maze import VaultMaze

# Resolved on first use: importing the package must not cost what torch costs.
_WHERE = {
    "BatchedGame": "markov_game",
    "BouncingPoint": "bouncing",
    "Bowls": "bowls",
    "Enumerable": "enumerable",
    "FlatActions": "action_spaces",
    "GameAsParallelEnv": "parallel",
    "GymnasiumSimulator": "from_gymnasium",
    "HybridSimulator": "hybrid",
    "Inventory": "inventory",
    "Newsvendor": "newsvendor",
    "Noise": "hybrid",
    "ParallelGame": "parallel",
    "PredatorPrey": "pursuit",
    "SimulatorEnv": "to_gymnasium",
    "SimulatorVectorEnv": "to_gymnasium",
    "SpielGame": "spiel_game",
    "State": "hybrid",
    "Stores": "stores",
    "Sumo": "sumo",
    "SwitchedLQR": "switched_lqr",
    "TabularGame": "tabular",
    "VaultMaze": "vault_maze",
    "check_game": "check_game",
    "check_parallel_env": "check_parallel",
    "check_simulator": "check",
    "chosen_action": "hybrid",
    "joint_replenishment": "inventory",
    "play": "hybrid",
    "reported_cost": "hybrid",
    "single_item": "inventory",
    "split_actions": "action_spaces",
    "textbook_switched_lqr": "switched_lqr",
}
__all__ = [
    "BatchedGame",
    "BouncingPoint",
    "Bowls",
    "Enumerable",
    "FlatActions",
    "GameAsParallelEnv",
    "GymnasiumSimulator",
    "HybridSimulator",
    "Inventory",
    "Newsvendor",
    "Noise",
    "ParallelGame",
    "PredatorPrey",
    "SimulatorEnv",
    "SimulatorVectorEnv",
    "SpielGame",
    "State",
    "Stores",
    "Sumo",
    "SwitchedLQR",
    "TabularGame",
    "VaultMaze",
    "check_game",
    "check_parallel_env",
    "check_simulator",
    "chosen_action",
    "joint_replenishment",
    "play",
    "reported_cost",
    "single_item",
    "split_actions",
    "textbook_switched_lqr",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rl.envs' has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(f"rl.envs.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
