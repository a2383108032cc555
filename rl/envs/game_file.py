"""A matrix or tabular game of one's own, read from a YAML or an npz file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from rl.envs.tabular import TabularGame
from rl.exact.markov import MarkovGame

Given = Any  # of a file, whose parts are checked where they are read
Words = dict[str, Given]
Array = NDArray[np.float64]
LARGEST = 2**24  # bytes of a YAML file
MATRIX = {"payoff"}
ARRAYS = {"transition", "reward", "start", "terminal", "horizon"}
MOVES = {"states", "ours", "theirs", "start", "moves", "horizon"}
OPTIONAL = {"discount", "observations"}
ANY = "any"


class FileGame(TabularGame):
    """A game from a file, or from the same words given as arguments; the exact solvers take it.

    There are three ways to say what is played; the reward is always ours, and we are the first seat.

    - A matrix game: ``payoff``, what we get for each of our actions (rows) and the target's (columns).
    - A Markov game as arrays: ``transition`` (S, A, B, S), ``reward`` (S, A, B), ``start`` (S,), ``terminal`` (numbers
      of the states in which an episode is done), ``horizon``.
    - A Markov game by name, in YAML: ``states``, ``ours`` and ``theirs`` (names of states and actions), ``start`` (a
      state, or probabilities by state), ``horizon``, and ``moves``, a list of ``[state, our action, the target's
      action, reward, next state]``. An action may be ``any``; the next state may be probabilities by state. States
      without moves are terminal; every other needs a move for all pairs of actions, each of them once.

    With all of them go ``discount`` (0.99 unless given) and ``observations`` (S, D), what players see in a state; the
    state as a one-hot vector unless given.

    Args:
        path: A ``.yaml`` or ``.npz`` file; else give the words themselves.
        words: The words above.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If words are missing, unknown or of the wrong shape, or a state lacks a move.

    Example:
        >>> game = FileGame(payoff=[[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
        >>> game.exact.reward[0].tolist(), game.horizon
        ([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], 1)
    """

    def __init__(self, path: str | Path | None = None, **words: Given) -> None:
        if (path is None) == (not words):
            raise ValueError("give the path of a file or the words of a game, one of the two")
        given = words if path is None else _read(Path(path))
        what = "the game" if path is None else str(path)
        kind = next((kind for kind in (MATRIX, MOVES, ARRAYS) if kind <= given.keys()), None)
        if kind is None:
            raise ValueError(
                f"{what} has {', '.join(map(str, given)) or 'nothing'}; a game needs payoff, or "
                f"{', '.join(sorted(MOVES))}, or {', '.join(sorted(ARRAYS))}"
            )
        if unknown := sorted(given.keys() - kind - OPTIONAL):
            raise ValueError(
                f"{what} has the unknown word {unknown[0]!r}; beside the game's there may be discount and observations"
            )
        discount = _number(given.get("discount", 0.99), "discount", what)
        self.names: Mapping[str, Sequence[str]] = {}
        if kind is MATRIX:
            transition, reward, start, terminal, horizon = _matrix(given["payoff"], what)
        elif kind is ARRAYS:
            transition, reward, start = (_array(given[name], name, what) for name in ("transition", "reward", "start"))
            terminal = [_whole(state, "terminal", what) for state in np.atleast_1d(given["terminal"])]
            horizon = _whole(given["horizon"], "horizon", what)
        else:
            transition, reward, start, terminal = _moves(given, what)
            horizon = _whole(given["horizon"], "horizon", what)
            self.names = {name: list(map(str, given[name])) for name in ("states", "ours", "theirs")}
        if horizon < 1:
            raise ValueError(f"{what}: the horizon is {horizon}, but an episode has at least 1 step")
        states = len(start)
        if wrong := [state for state in terminal if not 0 <= state < states]:
            raise ValueError(f"{what}: terminal has the state {wrong[0]}, but there are 0 to {states - 1}")
        if np.abs(reward[terminal]).any() or not np.allclose(transition[terminal, :, :, terminal], 1):
            raise ValueError(
                f"{what}: a terminal state pays or leads elsewhere, but an episode is over there: give it reward 0 and "
                "transitions to itself"
            )
        observations = _array(given["observations"], "observations", what) if "observations" in given else None
        try:
            super().__init__(MarkovGame(transition, reward, discount, start), terminal, horizon, observations)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error


def _read(path: Path) -> Words:
    """The words of a file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no game file {path}; give a .yaml or .npz file")
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:  # what a damaged archive provokes in zip and in numpy
            raise ValueError(f"{path} is no .npz file of plain arrays; write it with numpy.savez") from error
    if path.suffix not in {".yaml", ".yml"}:
        raise ValueError(f"{path} is neither a .yaml nor an .npz file; the name must end in one of them")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, but a game in YAML has at most {LARGEST}; use .npz")
    try:
        text = path.read_text(encoding="utf-8")
        found, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML file ({' '.join(str(error).split())[:200]}); correct it") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path} holds a {type(found).__name__}; it must hold the words of a game, such as payoff")
    words = [] if node is None else [word.value for word, _ in node.value]
    if twice := sorted({word for word in words if words.count(word) > 1}):
        raise ValueError(f"{path} says {twice[0]} twice, of which one would not count; say it once")
    return found


def _matrix(payoff: ArrayLike, what: str) -> tuple[Array, Array, Array, list[int], int]:
    """One decision, then the end."""
    table = _array(payoff, "payoff", what)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"{what}: payoff has shape {table.shape}, but it must be (our actions, the target's actions)")
    reward = np.stack([table, np.zeros_like(table)])
    transition = np.zeros((2, *table.shape, 2))
    transition[..., 1] = 1
    return transition, reward, np.array([1.0, 0.0]), [1], 1


def _moves(given: Words, what: str) -> tuple[Array, Array, Array, list[int]]:
    """The arrays of a game that is told by names."""
    places = {}
    for word in ("states", "ours", "theirs"):
        names = given[word]
        if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
            raise ValueError(f"{what}: {word} is {names!r}, but it must be a list of different names")
        places[word] = {str(name): number for number, name in enumerate(names)}
    S, A, B = (len(places[word]) for word in ("states", "ours", "theirs"))
    transition, reward, told = np.zeros((S, A, B, S)), np.zeros((S, A, B)), np.zeros((S, A, B), dtype=bool)
    if not isinstance(given["moves"], list):
        raise ValueError(f"{what}: moves must be a list of [state, our action, the target's action, reward, next]")
    for number, move in enumerate(given["moves"]):
        if not isinstance(move, list) or len(move) != 5:
            raise ValueError(
                f"{what}: moves.{number} is {move!r}, but a move is [state, our action, the target's, reward, next]"
            )
        state = _place(move[0], "states", places, what, number)
        ours, theirs = (
            list(range(len(places[word])))
            if str(action) == ANY and ANY not in places[word]
            else [_place(action, word, places, what, number)]
            for word, action in (("ours", move[1]), ("theirs", move[2]))
        )
        where = np.ix_([state], ours, theirs)
        if told[where].any():
            raise ValueError(f"{what}: moves.{number} says again what follows {move[:3]}; say it once")
        told[where], reward[where] = True, _number(move[3], f"the reward of moves.{number}", what)
        transition[where] = _law(move[4], places["states"], f"moves.{number}", what)
    ends = np.asarray(~told.reshape(S, -1).any(axis=1), dtype=np.bool_)
    if (lacking := np.argwhere(~told & ~ends[:, None, None])).size:
        s, a, b = lacking[0]
        names = [str(given[word][place]) for word, place in (("states", s), ("ours", a), ("theirs", b))]
        raise ValueError(f"{what}: no move says what follows {', '.join(names)}; a state has moves for all or for none")
    terminal: list[int] = np.flatnonzero(ends).tolist()
    for state in terminal:
        transition[state, :, :, state] = 1
    return transition, reward, _law(given["start"], places["states"], "start", what), terminal


def _place(name: object, word: str, places: Mapping[str, Mapping[str, int]], what: str, number: int) -> int:
    if str(name) not in places[word]:
        raise ValueError(f"{what}: moves.{number} has {name!r}, which is none of {word}: {', '.join(places[word])}")
    return places[word][str(name)]


def _law(value: Given, states: Mapping[str, int], where: str, what: str) -> Array:
    """A state, or probabilities by state, as a vector."""
    law = np.zeros(len(states))
    for name, share in (value if isinstance(value, dict) else {value: 1.0}).items():
        if str(name) not in states:
            raise ValueError(f"{what}: {where} leads to {name!r}, which is none of the states {', '.join(states)}")
        law[states[str(name)]] = _number(share, f"a probability of {where}", what)
    if (law < 0).any() or abs(law.sum() - 1) > 1e-6:
        raise ValueError(f"{what}: the probabilities of {where} are {value}, but they must be at least 0 and sum to 1")
    return np.asarray(law / law.sum(), dtype=np.float64)


def _array(value: ArrayLike, name: str, what: str) -> Array:
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {name} is no array of numbers; give rows of equal length") from error
    if not np.isfinite(found).all():
        raise ValueError(f"{what}: {name} holds NaN or infinite numbers; give finite ones")
    return found


def _whole(value: Given, name: str, what: str) -> int:
    number = _number(value, name, what)
    if isinstance(value, bool | np.bool_) or not number.is_integer():
        raise ValueError(f"{what}: {name} is {value!r}, but it must be a whole number")
    return int(number)


def _number(value: Given, name: str, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {name} is {value!r}, but it must be a number") from error
