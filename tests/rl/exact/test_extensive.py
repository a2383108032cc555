"""Sequence form against OpenSpiel's best responses, matrix games and known values of poker."""

import numpy as np
import pytest
import scipy.sparse

from rl.exact import (
    Contamination,
    ForwardKL,
    InformationSet,
    Pinned,
    SequenceGame,
    TotalVariation,
    pinned_sets,
    restricted_nash,
    solve_extensive,
    solve_matrix,
    worst_answer,
)
from tests.rl.exact.games import ROCK_PAPER_SCISSORS


def one_shot(M):
    """A matrix game as an extensive-form game with one information set a player."""
    A, B = M.shape
    payoff = np.zeros((A + 1, B + 1))
    payoff[1:, 1:] = M
    sets = tuple({"root": InformationSet(0, tuple(range(1, n + 1)), tuple(range(n)))} for n in M.shape)
    return SequenceGame(scipy.sparse.csr_array(payoff), sets)


@pytest.fixture(scope="module")
def poker():
    pytest.importorskip("pyspiel")
    from rl.envs.spiel import sequence_form

    return {name: sequence_form(name) for name in ("kuhn_poker", "leduc_poker")}


@pytest.mark.parametrize(("name", "value"), [("kuhn_poker", -1 / 18), ("leduc_poker", -0.08560642)])
def test_value_and_nash_conv_of_poker(poker, name, value):
    from rl.envs.spiel import best_response_values

    game = poker[name]
    first, second = (solve_extensive(game, seat=seat) for seat in (0, 1))
    assert first.value == pytest.approx(value, abs=1e-7 if name == "kuhn_poker" else 1e-8)
    assert second.value == pytest.approx(-first.value, abs=1e-9)
    behaviours = game.behaviour(0, first.plan), game.behaviour(1, second.plan)
    assert sum(best_response_values(name, game, behaviours)) < 1e-9


def weak_target(game, seat=1):
    """Folds too often."""
    return {
        key: (weights := np.where(np.array(actions) == 0, 3.0, 1.0)) / weights.sum()
        for key, (_, _, actions) in game.information_sets[seat].items()
    }


def test_a_best_response_is_the_same_from_programme_tree_and_open_spiel(poker):
    from rl.envs.spiel import best_response_values

    game = poker["leduc_poker"]
    target = weak_target(game)
    pinned = solve_extensive(game, pinned_sets(target))
    uniform = {key: np.full(len(one.actions), 1 / len(one.actions)) for key, one in game.information_sets[0].items()}
    assert pinned.value == pytest.approx(best_response_values("leduc_poker", game, (uniform, target))[0], abs=1e-9)
    assert restricted_nash(game, target, 1.0).value == pytest.approx(pinned.value, abs=1e-9)
    # The target's own best response, as a maximiser, is the tree recursion seen from the other seat.
    answer = worst_answer(game, game.realisation(0, uniform))
    assert -answer.value == pytest.approx(best_response_values("leduc_poker", game, (uniform, target))[1], abs=1e-9)


def test_guarantees_of_programme_and_tree_agree_for_every_kind_of_set(poker):
    game = poker["kuhn_poker"]
    target, free = weak_target(game), solve_extensive(game).value
    keys = list(target)
    last = solve_extensive(game, pinned_sets(target)).value
    for make in (lambda m: TotalVariation(m, 0.1), lambda m: Contamination(m, 0.8), lambda m: ForwardKL(m, 0.05)):
        sets = {key: make(target[key]) for key in keys[:-1]}
        found = solve_extensive(game, sets)
        assert free - 1e-9 <= found.value <= last + 1e-9
        assert found.value == pytest.approx(game.value(0, found.plan, found.answer), abs=1e-12)
        # The answer is a member and, by the saddle, no other plan does better against the best mixture of answers.
        assert found.value <= game.value(0, found.plan, game.realisation(1, target)) + 1e-9


def test_contamination_lies_inside_the_ball_of_the_same_size(poker):
    game = poker["leduc_poker"]
    target = weak_target(game)
    ball = solve_extensive(game, {key: TotalVariation(law, 0.2) for key, law in target.items()}).value
    mixture = solve_extensive(game, {key: Contamination(law, 0.8) for key, law in target.items()}).value
    assert ball <= mixture + 1e-9


@pytest.mark.parametrize("seat", [0, 1])
def test_a_one_shot_game_is_a_matrix_game(seat):
    rng = np.random.default_rng(0)
    for _ in range(10):
        M, model = rng.normal(size=(3, 4)), rng.dirichlet(np.ones(4))
        game = one_shot(M if seat == 0 else -M.T)
        for consistent in (TotalVariation(model, 0.1), Contamination(model, 0.7), ForwardKL(model, 0.1), Pinned(model)):
            expected = solve_matrix(M, consistent)
            found = solve_extensive(game, {"root": consistent}, seat=seat)
            assert found.value == pytest.approx(expected.value, abs=1e-7)


def test_restricted_nash_of_rock_paper_scissors():
    game = one_shot(ROCK_PAPER_SCISSORS)
    found = restricted_nash(game, {"root": np.array([0.5, 0.3, 0.2])}, 0.8)
    assert found.value == pytest.approx(1 / 15)
    assert game.behaviour(0, found.plan)["root"] == pytest.approx([1 / 3, 2 / 3, 0])


def test_refusals():
    game = one_shot(ROCK_PAPER_SCISSORS)
    with pytest.raises(ValueError, match="'leaf' is no information set of seat 1"):
        solve_extensive(game, {"leaf": Pinned([1.0])})
    with pytest.raises(ValueError, match="over 2 actions, but the target has 3"):
        solve_extensive(game, {"root": Pinned([0.5, 0.5])})
    with pytest.raises(ValueError, match="our seat is 2"):
        solve_extensive(game, seat=2)
    with pytest.raises(ValueError, match="confidence in the model is 2"):
        restricted_nash(game, {}, 2)
