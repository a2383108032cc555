"""Batched games of OpenSpiel against the exact values of their sequence form."""

import numpy as np
import pytest
import torch

from rl.csp.dataset import check_dataset, record_target
from rl.envs.check_game import check_game
from rl.envs.spiel import sequence_form
from rl.envs.spiel_game import SpielGame

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
    with pytest.raises(ValueError, match="'matrix_rps' is not a game of two players with moves in turn"):
        SpielGame("matrix_rps")
