"""Games by import path and data by file name, as plain hyper-parameters name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from rl.csp.dataset import TargetData, check_dataset, load_data
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


def game_of(game: str | BatchedGame, arguments: Mapping[str, object] | None = None) -> BatchedGame:
    """A game as it is, or the one at an import path.

    Args:
        game: The game, or as of :func:`load_game`.
        arguments: Of the constructor at that path.

    Raises:
        ValueError: As :func:`load_game`, and for arguments beside a game that is made already.
    """
    if isinstance(game, str):
        return load_game(game, arguments)
    if arguments is not None:
        raise ValueError("game_args are given beside a game that is made already; give them to its class.")
    return game


def pairs_of(data: str | Pairs | TargetData, game: BatchedGame) -> Pairs:
    """Data as training takes them, checked against their game.

    Args:
        data: The target's, or the path of a file as of :func:`load_pairs`.
        game: The game; the target is its second seat.

    Raises:
        ValueError: When the data are not the target's of this game, in one sentence.
    """
    if isinstance(data, str):
        return load_pairs(data, game)
    if isinstance(data, TargetData):
        check_dataset(data, game)
        return data.pairs()
    seat = game.seats[1]
    if not len(data.actions):
        raise ValueError("the data hold no step; record the target for at least one episode")
    if data.observations.shape[1:] != (game.observation_dim[seat],):
        raise ValueError(
            f"observations of the data have shape {tuple(data.observations.shape)}, but {seat} sees "
            f"{game.observation_dim[seat]} numbers"
        )
    wanted = () if game.n_actions[seat] else (game.action_dim[seat],)
    if not bool(data.observations.isfinite().all() and data.actions.isfinite().all()):
        raise ValueError("the data hold NaN or infinite numbers; drop such episodes or repair them")
    outside = bool(game.n_actions[seat]) and not bool(
        ((data.actions >= 0) & (data.actions < game.n_actions[seat]) & (data.actions % 1 == 0)).all()
    )
    if tuple(data.actions.shape[1:]) != wanted or outside:
        raise ValueError(
            f"actions of the data have shape {tuple(data.actions.shape)} and go from {data.actions.min():g} to "
            f"{data.actions.max():g}, but {seat} has {game.n_actions[seat] or 'no'} discrete actions and real ones of "
            f"length {game.action_dim[seat]}"
        )
    actions = data.actions.long() if game.n_actions[seat] else data.actions.float()
    return data._replace(observations=data.observations.float(), actions=actions)
