"""A policy and an optimizer of one's own in the module: trained, kept in checkpoints, or refused."""

from functools import partial

import pytest
import torch
from torch import nn

from rl.csp.data import RolloutDataModule
from rl.csp.module import CSPModule
from rl.csp.policies import CategoricalLaw, GaussianLaw
from rl.csp.worst_case import estimate_worst_case
from tests.rl.csp.games import PUSH, Dilemma, dilemma_data, probabilities, trainer

FAST = {"agent_rate": 0.3, "proxy_rate": 0.3, "entropy_start": 0.05, "epochs": 2}


class Table(nn.Module):
    """A linear policy; what is wrong with it is given by keyword."""

    memory = 0

    def __init__(self, game, seat, wrong=""):
        super().__init__()
        self.wrong = wrong
        self.layer = nn.Linear(game.observation_dim[seat], game.n_actions[seat])
        if wrong == "memory":
            self.memory = 3
        if wrong == "no memory":
            self.memory = None

    def forward(self, observations, masks=None, memories=None):
        logits = self.layer(observations)
        if self.wrong == "random":
            logits = logits + torch.rand_like(logits)
        if self.wrong == "rows":
            logits = logits * logits.shape[1]
        if self.wrong == "detached":
            logits = logits.detach()
        if self.wrong == "fails":
            raise RuntimeError("a shape of mine\nand a trace")
        if self.wrong == "law":
            return logits, None
        if self.wrong == "real":
            return GaussianLaw(logits, torch.zeros(())), None
        if self.wrong == "sum":
            return HalfLaw(logits, masks), None
        return CategoricalLaw(logits, masks), None


class HalfLaw(CategoricalLaw):
    def log_prob(self, actions):
        return super().log_prob(actions) - 0.7


@pytest.mark.parametrize("constraint", ["penalty", "gate"])
def test_a_policy_and_an_optimizer_of_ones_own_solve_the_dilemma(constraint, tmp_path):
    game, optimizer = Dilemma(), partial(torch.optim.SGD, momentum=0.5)
    own = {"policy": partial(Table, game), "optimizer": optimizer}
    module = CSPModule(game, dilemma_data(), constraint=constraint, **own, **FAST)
    assert all(isinstance(policy, Table) for policy in (module.agent, module.free, *module.models))
    made = trainer()
    made.fit(module, RolloutDataModule(25, 64))
    assert [type(one.optimizer) for one in module.optimizers()] == [torch.optim.SGD] * 2
    assert probabilities(module.agent, game)[0][PUSH] > 0.9
    if constraint == "penalty":
        found = estimate_worst_case(module, iterations=2, episodes=8, test_episodes=16)
        assert all(isinstance(adversary.policy, Table) for adversary in found.adversaries)
    made.save_checkpoint(tmp_path / "m.ckpt")
    given = {"game": game, "data": dilemma_data(), **own}
    again = CSPModule.load_from_checkpoint(tmp_path / "m.ckpt", **given)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in module.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):  # without it the weights fit nothing, and nothing is loaded
        CSPModule.load_from_checkpoint(tmp_path / "m.ckpt", game=game, data=dilemma_data())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("memory", r"says memory 3 and gives memories None; they must be \(3, 1, 3\)"),
        ("no memory", "has memory None; set it to the width of its memory, or to 0 for none"),
        ("random", "gives a row another law at random or with other rows beside it"),
        ("rows", "gives a row another law at random or with other rows beside it"),
        ("detached", "gives log-probabilities without a gradient; do not detach them"),
        ("fails", r"fails on observations of shape \(1, 3, 1, 2\): a shape of mine; see rl.csp.contract.check_policy"),
        ("law", "gives a law of type Tensor without dimension, log_prob, entropy, kl, sample; give a CategoricalLaw"),
        ("real", r"draws actions of shape .* and torch.float32 .*; this seat takes integers of shape \(1, 3, 1\)"),
        ("sum", r"gives probabilities that sum to 0\.4966, of which 0 for an action that is not legal"),
    ],
)
def test_a_policy_that_breaks_its_contract_is_refused(wrong, message):
    game = Dilemma()
    with pytest.raises(ValueError, match=message):
        CSPModule(game, dilemma_data(), policy=partial(Table, game, wrong=wrong))


def test_a_policy_that_plays_what_is_not_legal_or_is_made_once_is_refused():
    class Masked(Dilemma):
        def action_mask(self, state):
            found = {seat: torch.ones(len(state["done"]), 1, self.n_actions[seat]).bool() for seat in self.seats}
            found[self.seats[0]][..., 0] = False
            return found

    class Careless(Table):
        def forward(self, observations, masks=None, memories=None):
            return super().forward(observations, None, memories)

    game, masked = Dilemma(), Masked()
    with pytest.raises(ValueError, match="for an action that is not legal; they must sum to 1 over the legal ones"):
        CSPModule(masked, dilemma_data(), policy=partial(Careless, masked))
    once = {seat: Table(game, seat) for seat in game.seats}
    with pytest.raises(ValueError, match="is made with parameters that an earlier one has"):
        CSPModule(game, dilemma_data(), policy=once.__getitem__)
    with pytest.raises(ValueError, match="is Identity without anything to train; give a torch module"):
        CSPModule(game, dilemma_data(), policy=lambda seat: nn.Identity())
