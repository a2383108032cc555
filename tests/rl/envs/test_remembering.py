"""A simulator with a memory: the same problem, seen through its last observations; and networks that read them."""

import pytest
import torch
from lightning import Trainer
from torch import nn

from rl.envs import Remembering, check_simulator
from rl.envs.hybrid import play
from rl.envs.inventory import joint_replenishment
from rl.envs.newsvendor import Newsvendor
from rl.envs.switched_lqr import switched_lqr
from rl.hpo import HPOModule, SeedDataModule


def test_costs_are_those_of_the_simulator_inside():
    inner = switched_lqr(4, 2)
    seen = Remembering(inner, steps=3)
    noise = inner.sample_noise(5, torch.Generator().manual_seed(0))
    gains = torch.randn(inner.observation_dim, inner.action_dim)

    def decide(simulator, width):
        def chosen(state, t):
            now = simulator.observe(state, t)[:, -width:]
            return (now[:, 0] > 0).long(), 0.1 * now @ gains

        return chosen

    width = inner.observation_dim
    torch.testing.assert_close(play(seen, decide(seen, width), noise), play(inner, decide(inner, width), noise))


def test_the_window_holds_the_last_observations_in_their_order():
    inner = switched_lqr(4, 2)
    seen = Remembering(inner, steps=3)
    noise = inner.sample_noise(2, torch.Generator().manual_seed(1))
    state, shown = seen.reset(noise), []
    for t in range(5):
        shown.append(inner.observe({k: v for k, v in state.items() if k in inner.reset(noise)}, t))
        window = seen.observe(state, t).unflatten(1, (3, -1))
        older = [torch.zeros_like(shown[0])] * max(0, 2 - t) + shown[max(0, t - 2) :]
        torch.testing.assert_close(window, torch.stack(older, 1))
        state, _ = seen.step(state, torch.zeros(2, dtype=torch.long), torch.ones(2, inner.action_dim), noise, t)


def test_the_checker_and_double_precision_accept_it():
    check_simulator(Remembering(Newsvendor(), 2))
    moved = Remembering(Newsvendor(), 2).to(dtype=torch.float64)
    noise = moved.sample_noise(2, torch.Generator())
    assert moved.observe(moved.reset(noise), 0).dtype == torch.float64


@pytest.mark.parametrize("steps", [0, -1])
def test_a_memory_of_nothing_is_refused(steps):
    with pytest.raises(ValueError, match="steps"):
        Remembering(Newsvendor(), steps)


class Recurrent(nn.Module):
    """A GRU over the window, then a linear layer."""

    def __init__(self, steps, width, outputs, behind=0):
        super().__init__()
        self.steps, self.width = steps, width
        self.cell, self.out = nn.GRU(width, 8, batch_first=True), nn.Linear(8 + behind, outputs)

    def forward(self, seen):
        window, behind = seen[..., : self.steps * self.width], seen[..., self.steps * self.width :]
        rows = window.reshape(-1, self.steps, self.width)
        last = self.cell(rows)[0][:, -1].reshape(*window.shape[:-1], -1)
        return 0.1 * self.out(torch.cat([last, behind], -1))


class PerItem(nn.Module):
    """What is said of an item from its own columns and the mean over all items: equivariant under their order."""

    def __init__(self, items, outputs, pooled=False):
        super().__init__()
        self.items, self.pooled = items, pooled
        self.net = nn.Linear(4, outputs)  # stock and one order under way, of the item and on average

    def forward(self, seen):
        each = seen.unflatten(-1, (-1, self.items)).transpose(-1, -2)
        said = self.net(torch.cat([each, each.mean(-2, keepdim=True).expand_as(each)], -1))
        return 0.1 * (said.mean(-2) if self.pooled else said.transpose(-1, -2).flatten(-2))


def trained(simulator, **parts):
    """A module after two updates of networks of one's own, all of which have moved."""
    nets = nn.Module()
    for name, part in parts.items():
        setattr(nets, name, part)
    before = {name: value.clone() for name, value in nets.state_dict().items()}
    module = HPOModule(simulator, networks=nets)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_epochs=1, accelerator="cpu", **quiet)
    trainer.fit(module, SeedDataModule(2, 32, group_size=32, validation_episodes=32, test_episodes=32))
    moved = {
        name.partition(".")[0] for name, value in nets.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == set(parts)
    return module


def test_recurrent_networks_are_trained():
    simulator = Remembering(switched_lqr(4, 2), steps=4)
    width, actions = simulator.inner.observation_dim, simulator.action_dim
    nets = {"discrete": 2, "continuous": 2 * actions, "critic": 1}
    module = trained(simulator, **{name: Recurrent(4, width, outputs) for name, outputs in nets.items()})
    action = module.policy.act(torch.zeros(simulator.observation_dim))
    assert action.parameters.shape == (actions,)


def test_networks_that_do_not_mind_the_order_of_items_are_trained():
    simulator = joint_replenishment(3, horizon=10)
    nets = {"discrete": PerItem(3, 2, pooled=True), "continuous": PerItem(3, 2), "critic": PerItem(3, 1, pooled=True)}
    module = trained(simulator, **nets)
    seen = torch.rand(simulator.observation_dim)
    other = torch.tensor([2, 0, 1])
    turned = seen.unflatten(0, (-1, 3))[:, other].flatten()
    raw = [module.policy.continuous(one).unflatten(-1, (2, 3)) for one in (seen, turned)]
    torch.testing.assert_close(raw[1], raw[0][:, other])
