"""The vault maze: a small game that tells apart leaving the data at a risk and leaving it at none."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rl.envs.drawing import blank, disc, rectangle
from rl.envs.markov_game import State
from rl.envs.tabular import TabularGame
from rl.exact.markov import MarkovGame
from rl.exact.sets import ConsistentSet, Free, Pinned

Array = NDArray[np.float64]

NODES = ("start", "left corridor", "right corridor", "gate", "chamber", "balcony", "end")
OPTIONS = (
    ("left", "right", "door"),
    ("push", "retreat", "retreat"),
    ("push", "retreat", "retreat"),
    ("exit", "chamber", "balcony"),
    ("grab", "retreat", "retreat"),
    ("cross", "cross", "cross"),
    ("-", "-", "-"),
)
COVERED = np.array([True, True, False, True, False, False, True])  # nodes that the behaviour of the data visits
# Row and column of the agent and of the guard at every node, on a grid of 7 rows and 9 columns.
GRID = np.array(
    [
        [[6, 4], [3, 4]],
        [[5, 1], [4, 1]],
        [[5, 7], [4, 7]],
        [[3, 1], [3, 4]],
        [[2, 1], [1, 1]],
        [[1, 4], [1, 6]],
        [[0, 8], [3, 4]],
    ]
)
ROWS, COLUMNS = 7, 9


class VaultMaze(TabularGame):
    r"""An agent on its way to a vault, and a guard who is idle (action 0) or aggressive (action 1) at every node.

    ==============  =======================================  ===========================================  ===========
    node            our options                              reward (guard idle, guard aggressive)        true guard
    ==============  =======================================  ===========================================  ===========
    start           left, right, door                        door 0.3 and done                            any
    left corridor   push, retreat                            push: on to the gate, or -1 and done         0.2
    right corridor  push, retreat                            push: 1.5, or -1                             **always**
    gate            exit, chamber, balcony                   exit 1                                       any
    chamber         grab, retreat                            grab: 3, or -2; retreat 0.9                  **always**
    balcony         cross                                    1.5, or 1.2                                  0.5
    ==============  =======================================  ===========================================  ===========

    The last column is the probability of an aggressive guard. The data come from episodes that go left, push and exit,
    so right corridor, chamber and balcony are never seen there. The balcony beats the exit whatever the guard does:
    leaving the data for it is free of risk. The chamber pays only if the guard is as lenient there as in the corridor.
    The layout is ours, not the paper's.

    Args:
        view: ``node`` shows players the node as a one-hot vector, (7,). ``grid`` shows rows and columns from the guard
            to the agent on a 7 x 9 grid, in cells, and the guard's own place, scaled to [-1, 1], (4,): chamber and
            right corridor then look much like the left corridor, so that a network extrapolates from what it saw there.

    Raises:
        ValueError: If the view is unknown.
    """

    def __init__(self, view: Literal["node", "grid"] = "node") -> None:
        if view not in {"node", "grid"}:
            raise ValueError(f"the view is {view!r}, but it must be 'node' or 'grid'")
        place = GRID[:, 1] / [ROWS - 1, COLUMNS - 1] * 2 - 1
        seen = None if view == "node" else np.concatenate([GRID[:, 0] - GRID[:, 1], place], axis=1)
        super().__init__(maze_game(), [len(NODES) - 1], 4, seen, seats=("agent", "guard"))

    def frame(self, state: State, row: int) -> NDArray[np.uint8]:
        """The 7 x 9 grid: agent blue, guard red, nodes grey."""
        size = 24
        image = blank(ROWS * size, COLUMNS * size)
        for place in GRID[:, 0]:
            rectangle(image, place * size + 2, (place + 1) * size - 2, (205, 205, 205))
        agent, guard = GRID[int(state["node"][row])]
        disc(image, (guard + 0.5) * size, 8, (200, 60, 50))
        disc(image, (agent + 0.5) * size, 8, (50, 90, 200))
        return image


def maze_game(discount: float = 0.99) -> MarkovGame:
    """The maze as arrays: 7 nodes, 3 actions of ours, 2 of the guard."""
    start, left, right, gate, chamber, balcony, end = range(len(NODES))
    transition, reward = np.zeros((7, 3, 2, 7)), np.zeros((7, 3, 2))

    def lead(node: int, option: int, following: int, guard: int | slice = slice(None)) -> None:
        transition[node, option, guard] = np.eye(7)[following]

    for node in range(7):
        for option in range(3):
            lead(node, option, end)
    lead(start, 0, left)
    lead(start, 1, right)
    lead(left, 0, gate, guard=0)
    lead(gate, 1, chamber)
    lead(gate, 2, balcony)
    reward[start, 2] = 0.3
    reward[left, 0] = 0, -1
    reward[right, 0] = 1.5, -1
    reward[gate, 0] = 1
    reward[chamber, 0] = 3, -2
    reward[chamber, 1:] = 0.9
    reward[balcony, :] = 1.5, 1.2
    reward[chamber, 2] = 0
    return MarkovGame(transition, reward, discount, np.eye(7)[start])


def true_guard() -> Array:
    """The target's policy, (7, 2)."""
    return np.array([[0.5, 0.5], [0.8, 0.2], [0, 1], [0.5, 0.5], [0, 1], [0.5, 0.5], [1, 0]])


def behaviour() -> Array:
    """The policy of ours that the data were recorded with, (7, 3): left, push, exit."""
    return np.eye(3)[np.zeros(7, dtype=int)]


def pinned_guard() -> list[ConsistentSet]:
    """The guard as infinitely many data would show it: pinned at covered nodes, free elsewhere."""
    return [Pinned(law) if seen else Free(2) for law, seen in zip(true_guard(), COVERED, strict=True)]
