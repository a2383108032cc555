"""Batched games of OpenSpiel against the exact values of their sequence form."""

import numpy as np
import pytest
import torch

from rl.csp.dataset import check_dataset, record_target
from rl.envs.check_batched import check_game
from rl.envs.spiel import sequence_form
from rl.envs.spiel_game import SpielGame
from rl.exact import solve_extensive

pytest.importorskip("pyspiel")


def uniform(observation, mask, generator):
    return torch.multinomial(mask.flatten(0, 1).float(), 1, generator=generator).reshape(mask.shape[:2])


@pytest.mark.parametrize(("name", "ours"), [("kuhn_poker", 0), ("kuhn_poker", 1), ("leduc_poker", 1)])
def test_the_mean_return_of_played_games_is_the_exact_value(name, ours):
    game, exact = SpielGame(name, ours), sequence_form(name)
    assert len(check_game(game)) == 3
    batch, source = 20_000, torch.Generator().manual_seed(0)
    state, total = game.reset(batch, source), torch.zeros(batch)
    for _ in range(game.horizon):
        seen, masks = game.observe(state), game.action_mask(state)
        actions = {seat: uniform(seen[seat], masks[seat], source) for seat in game.seats}
        state, reward, done = game.step(state, actions, source)
        total += reward
    assert done.all()
    plans = [exact.realisation(seat, {}) for seat in (0, 1)]
    value = exact.value(ours, plans[ours], plans[1 - ours])
    assert abs(total.mean() - value) < 4 * total.std() / batch**0.5


def test_information_states_are_those_of_the_sequence_form():
    game, exact = SpielGame("leduc_poker"), sequence_form("leduc_poker")
    for number, seat in enumerate(game.seats):
        keys, observations, legal = game.information_states(seat)
        assert set(keys) == set(exact.information_sets[number])
        assert len(np.unique(observations[:, 0].numpy(), axis=0)) == len(keys)
        for key, row in zip(keys, legal[:, 0], strict=True):
            assert tuple(row.nonzero().flatten().tolist()) == exact.information_sets[number][key].actions


def test_only_the_player_in_turn_sees_and_chooses():
    game = SpielGame("kuhn_poker")
    state = game.reset(4, torch.Generator().manual_seed(0))
    assert game.observe(state)["player_0"].any(2).all()
    assert not game.observe(state)["player_1"].any()
    assert game.action_mask(state)["player_1"][:, 0].tolist() == [[True, False]] * 4
    data = record_target(game, uniform, uniform, 50, torch.Generator().manual_seed(0))
    assert "legal" in check_dataset(data, game)[2]


def test_refusals():
    with pytest.raises(ValueError, match="our player is 2"):
        SpielGame("kuhn_poker", 2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("matrix_rps", r"move at the same time, .* play 'turn_based_simultaneous_game\(game=matrix_rps\(\)\)'"),
        ("bargaining", r"'bargaining' is general-sum, .* play 'zerosum\(game=bargaining\(\)\)'"),
        ("tiny_hanabi", "pays both players alike"),
        ("kuhn_poker(players=3)", "is for 3 players, but a target and we are two"),
        ("chess", "can take 17695 moves, so its tree is too large"),
        ("coordinated_mp", "gives the players of 'coordinated_mp' no tensor of all that they know"),
        ("phantom_go", r"can take \d+ moves|has no information states for 'phantom_go'"),
        ("efg_game", r"does not make 'efg_game' with these parameters"),
        ("nfg_game", r"does not make 'nfg_game' with these parameters"),
        ("whist", "OpenSpiel has no game 'whist'"),
    ],
)
def test_games_that_cannot_be_played_get_one_true_sentence(name, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        SpielGame(name)
    assert "\n" not in str(caught.value)
    assert ". " not in str(caught.value)


def test_a_tree_that_is_too_large_is_refused_before_it_is_held(monkeypatch):
    monkeypatch.setattr("rl.envs.spiel_game.LARGEST", 1000)
    with pytest.raises(ValueError, match="the tree of 'tic_tac_toe' has more than 1000 histories, too many"):
        SpielGame("tic_tac_toe")


def test_a_game_of_open_information_shows_the_board():
    """Nim has no information state tensor: it crashed."""
    game = SpielGame("nim(pile_sizes=1;2)")
    assert len(check_game(game)) == 3
    # Who moves second wins the pile of 1 and 2 with best play only if the first errs; misere decides which by size.
    value = solve_extensive(sequence_form("nim(pile_sizes=1;2)")).value
    assert abs(value) == pytest.approx(1)


def test_the_remedies_that_are_named_work():
    turns = "turn_based_simultaneous_game(game=matrix_rps())"
    assert len(check_game(SpielGame(turns))) == 3
    assert solve_extensive(sequence_form(turns)).value == pytest.approx(0, abs=1e-9)  # the second mover sees nothing
    dilemma = "turn_based_simultaneous_game(game=zerosum(game=matrix_pd()))"
    assert len(check_game(SpielGame(dilemma))) == 3


def test_a_sequence_form_needs_players_that_remember():
    with pytest.raises(ValueError, match="forgets what it did on the way to"):
        sequence_form("dark_hex_ir(board_size=2)")


def test_who_waits_is_not_active():
    game = SpielGame("leduc_poker")
    state = game.reset(20, torch.Generator().manual_seed(0))
    for _ in range(3):
        active, looks = game.active(state), game.observe(state)
        for seat in game.seats:
            assert torch.equal(active[seat], looks[seat].any(-1))
        both = torch.cat(list(active.values()), 1).sum(1)
        assert torch.equal(both == 1, ~state["done"])
        moves = {seat: mask.float().argmax(-1) for seat, mask in game.action_mask(state).items()}
        state, _, _ = game.step(state, moves, torch.Generator().manual_seed(1))
