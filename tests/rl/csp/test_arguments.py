"""What `CSPModule`, its data and its checks refuse when they are made, and the data that they take."""

import numpy as np
import pytest
import torch
from torch import nn

from rl.csp import CSPModule, RolloutDataModule, ScriptedPolicy, estimate_worst_case, record_target
from rl.envs import BatchedGame, VaultMaze, check_game
from tests.rl.csp.games import Dilemma, dilemma_data


def recorded(episodes=20):
    game = Dilemma()
    even = game.policy(np.full((2, 3), 1 / 3)), game.policy(np.full((2, 2), 0.5))
    return record_target(game, *even, episodes, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": 3}, "optimizer: expected a function or None, got 3"),
        ({"optimizer": "adam"}, "optimizer: expected a function or None, got 'adam'"),
        ({"optimizer": lambda: None}, "optimizer fails on the 1 groups of parameters that it is given"),
        ({"optimizer": lambda groups: None}, "optimizer makes a NoneType of its groups of parameters"),
        ({"model": nn.Linear(1, 1)}, "the Linear given for seat 'them' has no memory"),
        ({"model": 3}, "model: expected a Module or None, got 3"),
        ({"model": ScriptedPolicy(lambda seen, mask, g: torch.zeros(1))}, "draws actions of shape"),
        ({"policy": 3}, "policy: expected a function or None, got 3"),
        ({"policy": nn.Linear(2, 2)}, "policy fails for the seat 'us'"),
        ({"policy": lambda seat: 3}, "the policy for seat 'us' is int without anything to train"),
        ({"floor": 10.0, "ceiling": 1.0}, "floor is 10.0 and ceiling is 1.0, but C lies between them"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
        ({"game": VaultMaze}, r"got the class VaultMaze; make one of it, as VaultMaze\(...\)"),
        ({"game": 5}, "game: expected text or a BatchedGame, got 5"),
        ({"game_args": {"x": 1}}, "game_args are given beside a game that is made already"),
        ({"data": 5}, "data: expected text or a Pairs or a TargetData, got 5"),
        ({"game": VaultMaze()}, "observations of the data have shape"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_sentence(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        CSPModule(**({"game": Dilemma(), "data": dilemma_data(20), "hidden": [4]} | given))
    assert "\n" not in str(caught.value)


def test_recorded_data_are_taken_as_they_are():
    data = recorded()
    held, other = (CSPModule(Dilemma(), given, hidden=[4]) for given in (data, data.pairs()))
    assert torch.equal(held.train_pairs.actions, other.train_pairs.actions)
    with pytest.raises(ValueError, match="row 0 of the data is of the seat 'them', but the target is 'guard'"):
        CSPModule(VaultMaze(), data, hidden=[4])
    wrong = data.pairs()._replace(actions=data.pairs().actions + 5)
    with pytest.raises(ValueError, match=r"actions of the data have shape .* but them has 2 discrete actions"):
        CSPModule(Dilemma(), wrong, hidden=[4])


@pytest.mark.parametrize("name", ["iterations_per_epoch", "episodes", "validation_episodes", "test_episodes"])
def test_wrong_rollouts_are_refused(name):
    for value in (0, True, 1.5):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number >= 1"):
            RolloutDataModule(**{name: value})
    with pytest.raises(ValueError, match="seed: expected a whole number >= 0"):
        RolloutDataModule(seed=-1)


def test_a_worst_case_without_training_is_refused():
    problem = CSPModule(Dilemma(), dilemma_data(20), hidden=[4])
    for given in ({"iterations": 0}, {"episodes": -1}, {"test_episodes": 1}, {"seed": -1}, {"slack": float("nan")}):
        (name,) = given
        with pytest.raises(ValueError, match=f"^{name}: expected "):
            estimate_worst_case(problem, **given)


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (lambda seen, mask, g: torch.zeros(len(seen), dtype=torch.long), r"draws actions of shape \(4,\)"),
        (lambda seen, mask, g: torch.zeros(len(seen), 1), "torch.float32"),
        (lambda seen, mask, g: torch.full((len(seen), 1), 7), "draws actions from 7 to 7; this seat has 0 to 2"),
        (lambda seen, mask, g: [0] * len(seen), "gives a list as actions"),
    ],
)
def test_recording_refuses_actions_of_another_shape(ours, message):
    game = Dilemma()
    with pytest.raises(ValueError, match=message):
        record_target(game, ours, game.policy(np.full((2, 2), 0.5)), 4, torch.Generator())
    with pytest.raises(ValueError, match="episodes: expected a whole number >= 1"):
        record_target(game, ours, ours, 0, torch.Generator())


class Careless(Dilemma):
    """A game whose first state is changed by a function."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def reset(self, batch, generator):
        return self.change(super().reset(batch, generator))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {k: v for k, v in state.items() if k != "done"}, "state of reset must hold done, boolean"),
        (lambda state: state | {"done": state["done"].float()}, "state of reset must hold done, boolean"),
        (lambda state: list(state.values()), "state of reset must be a dict of tensors, but is a list"),
        (lambda state: state | {"more": torch.zeros(3)}, "more in the state of reset has shape"),
    ],
)
def test_a_game_whose_state_is_none_is_refused(change, message):
    assert check_game(Dilemma())
    with pytest.raises(ValueError, match=message):
        check_game(Careless(change))


def test_a_game_is_told_how_many_methods_it_needs():
    text = " ".join((BatchedGame.__doc__ or "").split())
    assert len(BatchedGame.__abstractmethods__) == 3
    assert "three abstract methods" in text
    assert all(f":meth:`{name}`" in text for name in BatchedGame.__abstractmethods__)
