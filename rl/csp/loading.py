"""Games by import path and data by file name, as plain hyper-parameters name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from rl.csp.dataset import check_dataset, load_data
from rl.csp.pairs import Pairs
from rl.envs.markov_game import BatchedGame
from rl.loading import find, make, refuse_strangers


def load_game(path: str, arguments: Mapping[str, object] | None = None) -> BatchedGame:
    """Make a game from the import path of its class.

    Args:
        path: As in ``rl.envs.vault_maze.VaultMaze``.
        arguments: Of its constructor.

    Raises:
        ValueError: When there is no such class, it is no `BatchedGame`, or an untrusted checkpoint names it.
    """
    refuse_strangers("game", path, arguments)
    found = find("game", path)
    if not (isinstance(found, type) and issubclass(found, BatchedGame)):
        raise ValueError(f"game {path!r} is no subclass of rl.envs.BatchedGame; derive the class from it.")
    return cast(BatchedGame, make("game", path, found, arguments))


def load_pairs(path: str, game: BatchedGame) -> Pairs:
    """Read a data file of the target and check it against its game.

    Args:
        path: An ``.npz`` or ``.parquet`` file, see :class:`rl.csp.dataset.TargetData`.
        game: The game; the target is its second seat.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the data are not the target's of this game, in one sentence.
    """
    data = load_data(path)
    check_dataset(data, game)
    return data.pairs()
