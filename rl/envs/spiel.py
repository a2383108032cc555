"""Games of OpenSpiel: sequence form for the exact solvers, scoring by its best response, and the RoShamBo bots."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from rl.exact.extensive import InformationSet, SequenceGame
from rl.exact.markov import MarkovGame

if TYPE_CHECKING:
    import pyspiel

Array = NDArray[np.float64]
LARGEST = 1_000_000  # histories of a tree that is walked
LONGEST = 500  # moves of a game whose tree is walked


def load_game(name: str) -> pyspiel.Game:
    """A game of OpenSpiel by its name, as ``kuhn_poker`` or ``leduc_poker(players=2)``.

    Raises:
        ImportError: If OpenSpiel is not installed.
        ValueError: If it has no such game, or cannot make it with these parameters.
    """
    pyspiel = _pyspiel()
    try:
        return pyspiel.load_game(name)
    except (pyspiel.SpielError, IndexError, RuntimeError) as error:  # some games miss a parameter less politely
        if name.partition("(")[0] in pyspiel.registered_names():
            said = (str(error) or "it gives no reason").splitlines()[0].rstrip(".")
            raise ValueError(
                f"OpenSpiel does not make '{name}' with these parameters ({said}); give them as in "
                "goofspiel(num_cards=4,players=2)"
            ) from error
        raise ValueError(f"OpenSpiel has no game '{name}'; pyspiel.registered_names() lists them") from error


def load_tree_game(name: str) -> pyspiel.Game:
    """A game whose whole tree can be walked, and for which a worst case against us means what it says.

    Args:
        name: As for :func:`load_game`.

    Returns:
        The game: two players, zero-sum, with moves in turn and chance that can be enumerated.

    Raises:
        ImportError: If OpenSpiel is not installed.
        ValueError: If the game is unknown or of another kind, in one sentence that says of which, and what to do.
    """
    game, kind = load_game(name), _pyspiel().GameType
    described = game.get_type()
    full = name if "(" in name else f"{name}()"
    if game.num_players() != 2:
        raise ValueError(
            f"'{name}' is for {game.num_players()} players, but a target and we are two; give players=2 where it can "
            "be played so"
        )
    if described.utility == kind.Utility.IDENTICAL:
        raise ValueError(
            f"'{name}' pays both players alike, so a target that does us harm harms itself and its worst case means "
            "nothing; choose a zero-sum game"
        )
    if described.utility not in {kind.Utility.ZERO_SUM, kind.Utility.CONSTANT_SUM}:
        raise ValueError(
            f"'{name}' is general-sum, so a target that does us harm may harm itself and its worst case means little; "
            f"play 'zerosum(game={full})', in which each player is paid how far it is ahead"
        )
    if described.dynamics != kind.Dynamics.SEQUENTIAL:
        raise ValueError(
            f"the players of '{name}' move at the same time, but a tree needs moves in turn; play "
            f"'turn_based_simultaneous_game(game={full})', where the second to move does not see the first's move"
        )
    if described.chance_mode == kind.ChanceMode.SAMPLED_STOCHASTIC:
        raise ValueError(f"chance in '{name}' can only be sampled, but walking its tree needs all outcomes")
    if (length := game.max_game_length()) > LONGEST:
        raise ValueError(
            f"'{name}' can take {length} moves, so its tree is too large to be walked; choose one of at most {LONGEST}"
        )
    return game


def information_key(state: pyspiel.State, player: int) -> str:
    """What names the information set of a player: OpenSpiel's string, or all moves where it has none.

    A game without such strings has perfect information, so that all moves are known.
    """
    described = state.get_game().get_type()
    if described.provides_information_state_string:
        return str(state.information_state_string(player))
    return " ".join(map(str, state.history()))


def is_open(described: pyspiel.GameType) -> bool:
    """Whether a game's type is one of perfect information, so that the board tells all."""
    return bool(described.information == _pyspiel().GameType.Information.PERFECT_INFORMATION)


def require_keys(game: pyspiel.Game, name: str) -> None:
    """Refuse a game whose information sets have no name.

    Raises:
        ValueError: In one sentence.
    """
    described = game.get_type()
    if not described.provides_information_state_string and not is_open(described):
        raise ValueError(
            f"OpenSpiel has no information states for '{name}', a game of hidden information, so nobody can tell what "
            "a player remembers there; choose a game that has them"
        )


def too_large(name: str, histories: int) -> ValueError:
    """That a tree has more histories than can be held."""
    return ValueError(
        f"the tree of '{name}' has more than {histories} histories, too many to be held; choose smaller parameters of "
        "the game"
    )


def sequence_form(name: str) -> SequenceGame:
    """A two-player zero-sum game of OpenSpiel in sequence form.

    Args:
        name: As for :func:`load_game`. The whole tree is walked: for games of up to about a million histories.

    Returns:
        The game; keys of information sets are OpenSpiel's information state strings.

    Raises:
        ImportError: If OpenSpiel is not installed.
        ValueError: If the game is unknown, of another kind (see :func:`load_tree_game`), too large, or its players
            forget what they knew.
    """
    game = load_tree_game(name)
    require_keys(game, name)
    offset = (game.utility_sum() or 0.0) / 2  # of a constant sum each player is paid what is above its half
    sets: tuple[dict[Hashable, InformationSet], dict[Hashable, InformationSet]] = ({}, {})
    sizes, payoff = [1, 1], dict[tuple[int, int], float]()
    walked = 0

    def walk(state: pyspiel.State, last: tuple[int, int], chance: float) -> None:
        nonlocal walked
        walked += 1
        if walked > LARGEST:
            raise too_large(name, LARGEST)
        if state.is_terminal():
            payoff[last] = payoff.get(last, 0.0) + chance * (state.player_return(0) - offset)
        elif state.is_chance_node():
            for action, probability in state.chance_outcomes():
                walk(state.child(action), last, chance * probability)
        else:
            player = state.current_player()
            key, actions = information_key(state, player), state.legal_actions()
            if key not in sets[player]:
                sequences = tuple(range(sizes[player], sizes[player] + len(actions)))
                sizes[player] += len(actions)
                sets[player][key] = InformationSet(last[player], sequences, tuple(actions))
            elif sets[player][key].parent != last[player]:
                raise ValueError(
                    f"a player of '{name}' forgets what it did on the way to {key!r}, but a sequence form needs "
                    "players that remember; choose the variant of the game with perfect recall"
                )
            for action, sequence in zip(actions, sets[player][key].sequences, strict=True):
                following = (sequence, last[1]) if player == 0 else (last[0], sequence)
                walk(state.child(action), following, chance)

    walk(game.new_initial_state(), (0, 0), 1.0)
    rows, columns = np.array(list(payoff)).T
    return SequenceGame(scipy.sparse.csr_array((list(payoff.values()), (rows, columns)), shape=tuple(sizes)), sets)


def record_counts(
    name: str, behaviours: tuple[Mapping[Hashable, Array], Mapping[Hashable, Array]], games: int, seat: int, seed: int
) -> dict[str, Array]:
    """Play games and count what one player did at every information set.

    Args:
        name: As for :func:`load_game`.
        behaviours: Of both players by information set, over legal actions; uniform where there is none.
        games: Number of games.
        seat: Whose actions are counted, 0 or 1.
        seed: Of the games.

    Returns:
        Counts of the legal actions by information set, for those that were visited.
    """
    game, generator = load_tree_game(name), np.random.default_rng(seed)
    require_keys(game, name)
    counts: dict[str, Array] = {}
    for _ in range(games):
        state = game.new_initial_state()
        while not state.is_terminal():
            if state.is_chance_node():
                actions, law = zip(*state.chance_outcomes(), strict=True)
                state.apply_action(actions[_draw(np.array(law), generator)])
                continue
            player, actions = state.current_player(), state.legal_actions()
            key = information_key(state, player)
            chosen = _draw(behaviours[player].get(key, np.ones(len(actions))), generator)
            if player == seat:
                counts.setdefault(key, np.zeros(len(actions)))[chosen] += 1
            state.apply_action(actions[chosen])
    return counts


def best_response_values(
    name: str, game: SequenceGame, behaviours: tuple[Mapping[Hashable, Array], Mapping[Hashable, Array]]
) -> tuple[float, float]:
    """What each player gets by OpenSpiel's own best response to the other's behaviour; the sum is NashConv.

    Args:
        name: As for :func:`load_game`.
        game: Its sequence form.
        behaviours: Of both players by information set, over legal actions.

    Returns:
        Value of player 0's best response to player 1, and of player 1's to player 0.
    """
    spiel = load_game(name)
    tabular = import_module("open_spiel.python.policy").TabularPolicy(spiel)
    for sets, behaviour in zip(game.information_sets, behaviours, strict=True):
        for key, (_, _, actions) in sets.items():
            row = tabular.action_probability_array[tabular.state_lookup[key]]
            row[:] = 0
            row[list(actions)] = behaviour[key]
    response = import_module("open_spiel.python.algorithms.best_response").BestResponsePolicy
    first, second = (float(response(spiel, seat, tabular).value(spiel.new_initial_state())) for seat in (0, 1))
    return first, second


def roshambo_bots() -> list[str]:
    """Names of the bots of the RoShamBo programming competition that OpenSpiel ships: real targets with habits."""
    return list(_pyspiel().roshambo_bot_names())


def play_roshambo(
    bot: str, throw: Callable[[Sequence[int], Sequence[int]], int], rounds: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One match against a bot, whose own chance cannot be seeded.

    Args:
        bot: One of :func:`roshambo_bots`.
        throw: Our policy: takes our throws and the bot's so far, gives 0 rock, 1 paper or 2 scissors.
        rounds: Length of the match.

    Returns:
        Our throws and the bot's, (rounds,) each.

    Raises:
        ImportError: If OpenSpiel is not installed.
        ValueError: If there is no such bot.
    """
    if bot not in roshambo_bots():
        raise ValueError(f"there is no RoShamBo bot '{bot}'; there are {', '.join(roshambo_bots())}")
    player = _pyspiel().make_roshambo_bot(1, bot, rounds)
    state = load_game(f"repeated_game(stage_game=matrix_rps(),num_repetitions={rounds})").new_initial_state()
    ours, theirs = list[int](), list[int]()
    while not state.is_terminal():
        mine, its = throw(ours, theirs), player.step(state)
        state.apply_actions([mine, its])
        ours.append(mine)
        theirs.append(its)
    return np.array(ours), np.array(theirs)


def roshambo_game(discount: float = 0.95) -> MarkovGame:
    """Rock, paper, scissors against a target that remembers the last round: state 3 a + b after (a, b), 9 at first.

    Its consistent sets come from :func:`roshambo_counts` of a match.
    """
    ours, theirs = np.arange(3)[:, None], np.arange(3)[None]
    transition = np.broadcast_to(np.eye(10)[3 * ours + theirs], (10, 3, 3, 10))
    reward = np.broadcast_to(np.array([0.0, 1.0, -1.0])[(ours - theirs) % 3], (10, 3, 3))
    return MarkovGame(transition.copy(), reward.copy(), discount, np.eye(10)[9])


def roshambo_counts(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> Array:
    """How often the target threw what after every last round, (10, 3), the states of :func:`roshambo_game`."""
    states = np.concatenate([[9], 3 * ours[:-1] + theirs[:-1]])
    counts = np.zeros((10, 3))
    np.add.at(counts, (states, theirs), 1)
    return counts


def _draw(law: Array, generator: np.random.Generator) -> int:
    """One index with probabilities proportional to the law."""
    return int(generator.choice(len(law), p=law / law.sum()))


def _pyspiel() -> ModuleType:
    """OpenSpiel's module, or a sentence that says how to get it."""
    try:
        return import_module("pyspiel")
    except ImportError as error:
        raise ImportError(
            "this game needs OpenSpiel, which is not installed: pip install 'gapbridge[games]'"
        ) from error
