"""Policies out of the laboratory: acting on observations, files without the simulator, own networks."""

import json
import math
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from rl.envs.bouncing import BouncingPoint
from rl.envs.from_gymnasium import GymnasiumSimulator
from rl.envs.hybrid import HybridSimulator, chosen_action
from rl.envs.inventory import Inventory, joint_replenishment, single_item
from rl.envs.newsvendor import Newsvendor
from rl.envs.stores import Stores, several_stores
from rl.envs.switched_lqr import switched_lqr
from rl.errors import SimulatorError
from rl.hpo.module import HPOModule
from rl.hpo.policies import HybridPolicy
from rl.hpo.policy_file import export_policy, load_policy, save_policy
from rl.hpo.surrogate import mixed_surrogate
from rl.programs import digest
from tests.nursery import Nursery
from tests.rl.hpo.test_module import batch, fit
from tests.rl.hpo.train_ddp import QUIET, data, module

pytestmark = [pytest.mark.filterwarnings("ignore:The dataloader.*does not have many workers")]

SIMULATORS: dict[str, HybridSimulator] = {
    "quantities": joint_replenishment(3, horizon=10),
    "levels": joint_replenishment(3, "up_to", horizon=10),
    "no lead time": Inventory([5.0], 1.0, 9.0, fixed_cost=10.0, horizon=10),
    "stores": Stores([5.0, 6.0, 7.0], horizon=10),
    "levels of stores": several_stores(3),
    "LQR": switched_lqr(3, 2),
    "newsvendor": Newsvendor(),
    "bouncing": BouncingPoint(),
}


def bold(simulator: HybridSimulator, **options: Any) -> HybridPolicy:
    """A policy whose decisions vary."""
    torch.manual_seed(0)
    policy = HybridPolicy(simulator.observation_dim, simulator.n_modes, simulator.action_dim, [8], **options)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    policy.bind(simulator)
    return policy


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_policy_acts_outside_as_it_does_inside_and_so_does_its_file(name: str, tmp_path: Path) -> None:
    simulator = SIMULATORS[name]
    policy = bold(simulator)
    save_policy(policy, tmp_path / "policy.safetensors")
    saved = load_policy(tmp_path / "policy.safetensors")
    noise = simulator.sample_noise(16, torch.Generator().manual_seed(0))
    state = simulator.reset(noise)
    for t in range(min(simulator.horizon, 6)):
        observation = simulator.observe(state, t)
        mode = policy.log_probs(observation).argmax(-1)
        inside = chosen_action(simulator.action_map(policy.raw_actions(observation), state), mode)
        for actor in (policy, saved):
            action = actor.act(observation)
            assert torch.equal(action.mode, mode)
            torch.testing.assert_close(action.parameters, inside, rtol=1e-4, atol=1e-4)
            one = actor.act(observation[3].tolist())
            assert int(one.mode) == int(mode[3])
            torch.testing.assert_close(one.parameters, inside[3], rtol=1e-4, atol=1e-4)
        state, _ = simulator.step(state, mode, inside.detach(), noise, t)


def test_a_file_loads_without_the_simulator_in_another_process(tmp_path: Path, nursery: Nursery) -> None:
    class Own(Newsvendor):
        def action_map(self, raw: torch.Tensor, state: Any) -> torch.Tensor:
            return 3.0 * torch.sigmoid(raw)

    policy = bold(Own())
    save_policy(policy, tmp_path / "policy.safetensors")
    program = (
        "import sys; from rl.hpo.policy_file import load_policy; "
        f"print(load_policy({str(tmp_path / 'policy.safetensors')!r}).act([0.25]).parameters.item()); "
        "assert 'rl.envs.newsvendor' not in sys.modules"
    )
    [done] = nursery.run(("-c", program), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(policy.act([0.25]).parameters.item(), rel=1e-5)
    (tmp_path / "other.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="holds no policy"):
        load_policy(tmp_path / "other.safetensors")


@pytest.mark.parametrize("call", ["os.system", "aten.from_file.default", "aten.add_.Tensor", "aten.nothing.at_all"])
def test_a_file_calls_only_operations_that_change_nothing(tmp_path: Path, call: str) -> None:
    policy = bold(Newsvendor())
    save_policy(policy, tmp_path / "policy.safetensors")
    with safe_open(tmp_path / "policy.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["policy"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    header["calls"][0]["call"] = call
    text = json.dumps(header)
    told = {"policy": text, "sha256": digest(text, tensors)}  # a stranger can make a digest too
    save_file(tensors, tmp_path / "other.safetensors", metadata=told)
    with pytest.raises(ValueError, match="which a policy file cannot hold"):
        load_policy(tmp_path / "other.safetensors")


@pytest.mark.parametrize("at", [4, 200, 2000, -3])  # the header's length, its text, the calls, the weights
def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path, at: int) -> None:
    path = tmp_path / "policy.safetensors"
    save_policy(bold(Newsvendor()), path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[at] ^= 4
    for content in (bytes(flipped), whole[:at], whole + b"x"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"copy it again|holds no policy") as caught:
            load_policy(path)
        assert "\n" not in str(caught.value)


def test_a_file_asks_for_masks_as_the_policy_does(tmp_path: Path) -> None:
    plant = switched_lqr(2, 2)
    plant.mode_mask = lambda state, t: torch.ones(len(state["x"]), 2, dtype=torch.bool)
    save_policy(bold(plant), tmp_path / "policy.safetensors")
    saved = load_policy(tmp_path / "policy.safetensors")
    with pytest.raises(ValueError, match="trained with mode masks"):
        saved.act([0.0, 1.0])
    assert [int(saved.act([0.0, 1.0], np.arange(2) == allowed).mode) for allowed in (0, 1)] == [0, 1]


def test_what_a_trace_would_freeze_is_refused() -> None:
    class Branching(Newsvendor):
        def action_map(self, raw: torch.Tensor, state: Any) -> torch.Tensor:
            return raw if raw.sum() > 0 else 2 * raw

    class Random(Newsvendor):
        def action_map(self, raw: torch.Tensor, state: Any) -> torch.Tensor:
            return raw + torch.rand_like(raw)

    for simulator, message in ((Branching(), "cannot be traced"), (Random(), "decide otherwise")):
        with pytest.raises(ValueError, match=message):
            save_policy(bold(simulator), "/nowhere/policy.safetensors")


def test_the_exported_program_gives_logits_and_actions() -> None:
    policy = bold(SIMULATORS["levels"])
    program = export_policy(policy).module()
    seen = torch.randn(5, policy.observation_dim)
    logits, actions = program(seen)
    torch.testing.assert_close(logits.log_softmax(-1), policy.log_probs(seen))
    mode, parameters = policy.act(seen)
    torch.testing.assert_close(actions[torch.arange(5), mode], parameters)


def test_drawn_modes_follow_their_law() -> None:
    policy = bold(Newsvendor())
    law = policy.log_probs(torch.tensor([[0.3]])).exp()[0]
    modes = policy.act(
        torch.full((20_000, 1), 0.3), deterministic=False, generator=torch.Generator().manual_seed(0)
    ).mode
    assert modes.float().mean().item() == pytest.approx(law[1].item(), abs=0.015)
    assert policy.act([0.3]).mode == law.argmax()


def test_what_cannot_be_decided_is_refused() -> None:
    plant = switched_lqr(2, 2)
    policy = bold(plant)
    with pytest.raises(ValueError, match=r"shape \(1, 3\), but it must be \(batch, 2\)"):
        policy.act([0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="not finite"):
        policy.act([0.0, math.nan])
    with pytest.raises(ValueError, match="bound to no simulator"):
        HybridPolicy(2, 2, 2).act([0.0, 1.0])
    plant.mode_mask = lambda state, t: torch.ones(len(state["x"]), 2, dtype=torch.bool)
    policy.bind(plant)
    with pytest.raises(ValueError, match="trained with mode masks, but none is given"):
        policy.act([0.0, 1.0])
    with pytest.raises(ValueError, match="allow a mode in every row"):
        policy.act([0.0, 1.0], [False, False])
    for allowed in (0, 1):
        assert policy.act([0.0, 1.0], np.arange(2) == allowed).mode == allowed

    class Hidden(Newsvendor):
        def action_map(self, raw: torch.Tensor, state: Any) -> torch.Tensor:
            return raw.exp() + state["stock"][:, None, None].abs()

    with pytest.raises(ValueError, match="define seen_state"):
        bold(Hidden()).act([0.0])
    assert bold(Hidden()).act([[0.0]], state={"stock": torch.tensor([50.0])}).parameters > 50


def test_trainer_predict_decides_for_every_batch() -> None:
    trained = module()
    seen = torch.randn(10, 2)
    found = lightning.Trainer(**QUIET, devices=1).predict(trained, DataLoader(seen, batch_size=4))
    assert [len(action.mode) for action in found] == [4, 4, 2]
    whole = trained.policy.act(seen)
    torch.testing.assert_close(torch.cat([action.parameters for action in found]), whole.parameters)


class Parts(nn.Module):
    """Networks of a user, for the LQR of dimension 2."""

    def __init__(self, **changes: nn.Module) -> None:
        super().__init__()
        for name, width in (("discrete", 2), ("continuous", 4), ("critic", 1)):
            given = nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, width))
            setattr(self, name, changes.get(name, given))


class Centred(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        return super().forward(input - input.mean(0))


class Detached(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        return super().forward(input.detach()) + input.sum(-1, keepdim=True)


def test_networks_and_an_optimizer_of_ones_own_are_trained(tmp_path: Path) -> None:
    made: list[Any] = []

    def optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made.append([group["lr"] for group in groups])
        return torch.optim.SGD(groups, momentum=0.9)

    own = Parts()
    options: dict[str, Any] = {"networks": own, "optimizer": optimizer, "learning_rate": 0.01}
    trained = HPOModule(switched_lqr(2, 2), **options)
    before = [parameter.clone() for parameter in own.parameters()]
    fit(trained, 1).save_checkpoint(tmp_path / "last.ckpt")
    assert made == [[0.01, 0.005, 0.003]] * 2  # tried when the module is made, and again for the training
    assert any(not torch.equal(a, b) for a, b in zip(before, own.parameters(), strict=True))
    assert trained.policy.continuous is own.continuous
    again = HPOModule.load_from_checkpoint(
        tmp_path / "last.ckpt", weights_only=True, simulator=switched_lqr(2, 2), networks=Parts()
    )
    seen = torch.randn(5, 2)
    torch.testing.assert_close(again.policy.act(seen).parameters, trained.policy.act(seen).parameters)
    save_policy(trained.policy, tmp_path / "policy.safetensors")
    torch.testing.assert_close(
        load_policy(tmp_path / "policy.safetensors").act(seen).parameters, trained.policy.act(seen).parameters
    )


SHARED = nn.Linear(2, 4)


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (nn.Linear(2, 2), "no child module 'discrete'"),
        (Parts(continuous=nn.Linear(2, 3)), r"networks.continuous maps observations \(2, 3, 2\) to \(2, 3, 3\)"),
        (
            Parts(discrete=nn.Sequential(SHARED, nn.Linear(4, 2)), critic=nn.Sequential(SHARED, nn.Linear(4, 1))),
            "shares",
        ),
        (
            Parts(discrete=nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))),
            "networks.discrete gives a row another output",
        ),
        (Parts(critic=nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(2), nn.Linear(2, 1))), "networks.critic fails on"),
        (Parts(critic=Centred(2, 1)), "networks.critic gives a row another output"),
        (Parts(continuous=Detached(2, 4)), "networks.continuous has a gradient of"),
    ],
)
def test_networks_that_training_would_use_wrongly_are_refused(networks: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HPOModule(switched_lqr(2, 2), networks=networks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "mixd"}, "estimator: expected one of .*, got 'mixd'; did you mean 'mixed'?"),
        ({"cross": "of"}, "cross: expected one of 'full', 'off', 'auto', got 'of'"),
        ({"cross": False}, "cross: expected .*, got False"),
        ({"learning_rate": -1e-3}, "learning_rate: expected .*, got -0.001"),
        ({"discrete_rate": math.inf}, "discrete_rate: expected .*, got inf"),
        ({"critic_rate": math.nan}, "critic_rate: expected .*, got nan"),
        ({"discount": 1.5}, "discount: expected a finite number > 0 and <= 1 or None, got 1.5"),
        ({"trace": 2}, "trace: expected .*, got 2"),
        ({"hidden": [0]}, r"hidden: expected .*, got \[0\]"),
        ({"hidden": []}, r"hidden: expected .*, got \[\]"),
        ({"minibatches": 0}, "minibatches: expected .*, got 0"),
        ({"reuse": -1}, "reuse: expected .*, got -1"),
        ({"window": 1.5}, "window: expected .*, got 1.5"),
        ({"clip": 0}, "clip: expected .*, got 0"),
        ({"branch": "no"}, "branch: expected True or False, got 'no'"),
        ({"temperature": 0.0}, "temperature: expected .*, got 0.0"),
        ({"entropy_start": -0.1}, "entropy_start: expected .*, got -0.1"),
        ({"diagnose_every": -5}, "diagnose_every: expected .*, got -5"),
        ({"reference": "40"}, "reference: expected .*, got '40'"),
    ],
)
def test_arguments_that_would_train_something_else_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_a_simulator_without_gradients_trains_by_score_only() -> None:
    simulator = GymnasiumSimulator("CartPole-v1", horizon=3)
    for estimator in ("mixed", "pathwise", "straight_through"):
        with pytest.raises(ValueError, match=r"declared not differentiable: .* give 'score'"):
            HPOModule(simulator, estimator=estimator)
    HPOModule(simulator, estimator="score")


def test_masks_that_the_continuous_policy_moves_stop_the_training_that_they_bias() -> None:
    def masked(allows: Any) -> HybridSimulator:
        plant = switched_lqr(2, 2)
        plant.mode_mask = lambda state, t: torch.stack([torch.ones_like(allows(state, t)), allows(state, t)], 1)
        return plant

    moving = masked(lambda state, t: state["x"][:, 0].detach() > 0)
    with pytest.raises(SimulatorError, match=r"step \d: the mode mask changes .* estimator mixed is biased"):
        fit(HPOModule(moving, hidden=(8,)), 1)
    fit(HPOModule(moving, hidden=(8,), estimator="score"), 1)
    fit(HPOModule(masked(lambda state, t: torch.full((len(state["x"]),), t % 2 == 0)), hidden=(8,)), 1)


def test_straight_through_modes_have_their_gradient_once() -> None:
    """Their law is moved by the mixture of steps alone: a score beside it would count it twice."""
    trained = module(estimator="straight_through", reuse=0, entropy_start=0.0).train()
    trained.log = lambda *_, **__: None
    trained.log_dict = lambda *_, **__: None
    trained._trainer = lightning.Trainer(**QUIET, max_epochs=0)
    phi = list(trained.policy.discrete.parameters())
    many = batch(groups=1, episodes=64)
    roll = trained._rollout(many, cross=True)
    _, advantages, _, scale = trained._advantages(roll)
    weight = 1 / (scale * trained.decisions)
    parts = mixed_surrogate(roll.costs, roll.log_probs, roll.modes, advantages)
    expected = torch.autograd.grad((parts.pathwise * weight).mean(), phi)
    found = torch.autograd.grad(trained.training_step(many, 0), phi)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_data_is_small() -> None:
    assert data().hparams["batch_size"] == 16
    assert single_item().seen_state(torch.tensor([[1.0, 2.0]]))["stock"].tolist() == [[10.0]]
