from .action_spaces import FlatActions as FlatActions, split_actions as split_actions
from .bouncing import BouncingPoint as BouncingPoint
from .bowls import Bowls as Bowls
from .check import check_simulator as check_simulator
from .check_batched import check_game as check_game
from .check_parallel import check_parallel_env as check_parallel_env
from .enumerable import Enumerable as Enumerable
from .from_gymnasium import GymnasiumSimulator as GymnasiumSimulator
from .hybrid import (
    HybridSimulator as HybridSimulator,
    Noise as Noise,
    State as State,
    chosen_action as chosen_action,
    play as play,
    reported_cost as reported_cost,
)
from .inventory import Inventory as Inventory, joint_replenishment as joint_replenishment, single_item as single_item
from .lot_sizing import LotSizing as LotSizing
from .markov_game import BatchedGame as BatchedGame
from .newsvendor import Newsvendor as Newsvendor
from .parallel import GameAsParallelEnv as GameAsParallelEnv, ParallelGame as ParallelGame
from .pursuit import PredatorPrey as PredatorPrey
from .remembering import Remembering as Remembering
from .spiel_game import SpielGame as SpielGame
from .stores import Stores as Stores
from .sumo import Sumo as Sumo
from .switched_lqr import SwitchedLQR as SwitchedLQR, textbook_switched_lqr as textbook_switched_lqr
from .tabular import TabularGame as TabularGame
from .to_gymnasium import SimulatorEnv as SimulatorEnv, SimulatorVectorEnv as SimulatorVectorEnv
from .vault_maze import VaultMaze as VaultMaze
