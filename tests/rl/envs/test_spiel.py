"""Games of OpenSpiel: recorded counts, bots with habits, and refusals."""

import numpy as np
import pytest

from rl.envs.spiel import play_roshambo, record_counts, roshambo_bots, roshambo_counts, roshambo_game, sequence_form
from rl.exact import TotalVariation, consistent_sets, robust_plan, root_radius, solve_extensive, worst_answer

pytest.importorskip("pyspiel")


def test_counts_tend_to_the_behaviour():
    game = sequence_form("kuhn_poker")
    target = game.behaviour(1, solve_extensive(game, seat=1).plan)
    counts = record_counts("kuhn_poker", ({}, target), 3000, seat=1, seed=0)
    assert set(counts) == set(target)
    for key, row in counts.items():
        np.testing.assert_allclose(row / row.sum(), target[key], atol=0.08)
    assert sum(row.sum() for row in counts.values()) == 3000  # the second player acts once a game


def test_a_plan_from_few_games_does_not_claim_more_than_it_gets():
    game = sequence_form("kuhn_poker")
    bluffer = {key: np.full(len(one.actions), 0.5) for key, one in game.information_sets[1].items()}
    counts = record_counts("kuhn_poker", ({}, bluffer), 300, seat=1, seed=1)
    sets = {key: TotalVariation(row / row.sum(), root_radius(row.sum())) for key, row in counts.items()}
    found = solve_extensive(game, sets)
    true = game.value(0, found.plan, game.realisation(1, bluffer))
    assert -1 / 18 < found.value <= true
    assert worst_answer(game, found.plan).value < found.value


def test_a_bot_that_rotates_is_read_from_one_match_and_beaten_in_the_next():
    rng = np.random.default_rng(0)
    ours, theirs = play_roshambo("rotatebot", lambda *_: int(rng.integers(3)), 300)
    game = roshambo_game()
    sets = consistent_sets(roshambo_counts(ours, theirs), lambda m, n: TotalVariation(m, root_radius(n)))
    plan = robust_plan(game, sets).plan

    def throw(mine, its):
        state = 3 * mine[-1] + its[-1] if mine else 9
        return int(rng.choice(3, p=plan[state]))

    mine, its = play_roshambo("rotatebot", throw, 300)
    wins = ((mine - its) % 3 == 1).mean() - ((mine - its) % 3 == 2).mean()
    assert wins > 0.5
    assert len(roshambo_bots()) >= 43


def test_refusals():
    with pytest.raises(ValueError, match="OpenSpiel has no game 'whist'"):
        sequence_form("whist")
    with pytest.raises(
        ValueError, match="the players of 'matrix_rps' move at the same time, but a tree needs moves in turn"
    ):
        sequence_form("matrix_rps")
    with pytest.raises(ValueError, match="there is no RoShamBo bot 'hal9000'"):
        play_roshambo("hal9000", lambda *_: 0, 3)
