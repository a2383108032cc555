"""Players that have left or wait: they enter no data, no coverage, no loss and no memory."""

import pytest
import torch

from rl.csp.cloning import likelihood
from rl.csp.pairs import Coverage
from rl.csp.policies import Critic, SeatPolicy
from rl.csp.rollout import join, pairs_of, play
from rl.csp.update import Settings, update_side
from rl.envs.check_batched import check_game
from rl.envs.markov_game import BatchedGame


class Shrinking(BatchedGame):
    """Two of the target's players for four steps; the second leaves after the first step, and sees zeros from then on.

    A player that is there sees (1, step) and decides between two actions.
    """

    seats = ("us", "them")
    horizon = 4

    def __init__(self):
        self.players = {"us": 1, "them": 2}
        self.observation_dim = {"us": 2, "them": 2}
        self.n_actions, self.action_dim = {"us": 2, "them": 2}, {"us": 0, "them": 0}

    def reset(self, batch, generator):
        return {"time": torch.zeros(batch, dtype=torch.int64), "done": torch.zeros(batch, dtype=torch.bool)}

    def active(self, state):
        there = torch.ones(len(state["time"]), 2, dtype=torch.bool)
        there[:, 1] = state["time"] < 1
        return {"us": torch.ones(len(there), 1, dtype=torch.bool), "them": there}

    def observe(self, state):
        seen = torch.stack([torch.ones(len(state["time"])), state["time"].float()], 1)[:, None]
        return {"us": seen, "them": seen.repeat(1, 2, 1) * self.active(state)["them"][..., None]}

    def step(self, state, actions, generator):
        reward = (actions["us"][:, 0] == actions["them"][:, 0]).float().masked_fill(state["done"], 0)
        time = state["time"] + ~state["done"]
        return {"time": time, "done": time >= self.horizon}, reward, time >= self.horizon


def test_the_game_keeps_to_the_protocol():
    assert len(check_game(Shrinking())) == 3


def lived(memory=0, episodes=6):
    torch.manual_seed(0)
    game = Shrinking()
    policies = [SeatPolicy(2, 2, 0, [8], memory=memory) for _ in game.seats]
    return game, policies, play(game, policies, episodes, torch.Generator().manual_seed(1))


def test_data_and_coverage_are_of_players_that_are_there():
    """Four steps of one player and one of the other; the data know the first two steps: 2 of 5 are never seen."""
    _, _, episodes = lived()
    pairs = pairs_of(episodes, "them")
    assert len(pairs.actions) == 6 * 5
    assert pairs.observations[:, 0].all()
    counts = Coverage(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))(pairs.observations)
    assert float((counts < 1).float().mean()) == pytest.approx(2 / 5)  # with the dead player's zeros it was 5 of 8
    assert len(pairs_of(join([episodes, episodes]), "them").actions) == 2 * 6 * 5


@pytest.mark.parametrize("memory", [0, 4])
def test_what_stands_for_a_player_that_left_changes_no_weight(memory):
    _, policies, episodes = lived(memory)
    torch.manual_seed(3)
    weights = []
    for spoilt in (False, True):
        policy, critic = SeatPolicy(2, 2, 0, [8], memory=memory), Critic(6, [8])
        policy.load_state_dict(policies[1].state_dict())
        with torch.no_grad():
            for number, parameter in enumerate(critic.parameters()):
                parameter.fill_(0.1 * (number + 1))
        experience = episodes.experience("them", sign=-1.0)
        if spoilt:
            gone = ~experience.active
            experience = experience._replace(
                observations=torch.where(gone[..., None], 7.0, experience.observations),
                actions=torch.where(gone, 1 - experience.actions, experience.actions),
                log_probs=torch.where(gone, -9.0, experience.log_probs),
            )
        optimizer = torch.optim.SGD([*policy.parameters(), *critic.parameters()], 0.1)

        def descend(loss, optimizer=optimizer):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        settings = Settings(0.9, entropy=0.1, epochs=2, chunk=2 if memory else 1)
        report = update_side(policy, critic, experience, settings, descend, torch.Generator().manual_seed(0))
        weights.append([*(p.detach().clone() for p in policy.parameters()), report["entropy"], report["kl"]])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other)


def test_a_memory_holds_what_its_player_decided_on_alone():
    """In a game of turns the policy says the same of its data, which hold its own turns, as it said in play."""
    pytest.importorskip("pyspiel")
    from rl.envs.spiel_game import SpielGame

    torch.manual_seed(0)
    game = SpielGame("leduc_poker")
    seats = [SeatPolicy(game.observation_dim[s], game.n_actions[s], 0, [8], memory=5) for s in game.seats]
    episodes = play(game, seats, 40, torch.Generator().manual_seed(0))
    for seat, policy in zip(game.seats, seats, strict=True):
        decided = episodes.live[..., None] & episodes.active[seat]
        said = -episodes.log_probs[seat][decided].mean()
        assert likelihood(policy, pairs_of(episodes, seat)) == pytest.approx(float(said), abs=1e-6)
        experience = episodes.experience(seat, sign=1.0)
        optimizer = torch.optim.SGD(policy.parameters(), 0.0)
        report = update_side(
            policy,
            Critic(2 * game.observation_dim[seat], [8]),
            experience,
            Settings(1.0, epochs=1, chunk=3),
            lambda loss, optimizer=optimizer: optimizer.step(),
            torch.Generator(),
        )
        assert float(report["kl"]) == pytest.approx(0, abs=1e-6)  # chunks go on from where memories stood in play
