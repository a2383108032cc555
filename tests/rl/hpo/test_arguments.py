"""What `HPOModule`, its policy and its data refuse when they are made."""

from functools import partial

import pytest
import torch
from torch import nn

from rl.envs.newsvendor import Newsvendor
from rl.envs.switched_lqr import switched_lqr
from rl.hpo.data import SeedDataModule, Seeds, group_seeds
from rl.hpo.estimators import check_minibatches
from rl.hpo.module import HPOModule
from rl.hpo.policies import HybridPolicy


def one_group(groups):
    return torch.optim.SGD([value for group in groups for value in group["params"]], lr=0.1)


def without_initial(groups):
    return torch.optim.SGD([{"params": group["params"], "lr": group["lr"]} for group in groups])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": 3}, "optimizer: expected a function or None, got 3"),
        ({"optimizer": "adam"}, "optimizer: expected a function or None, got 'adam'"),
        ({"optimizer": lambda: None}, "optimizer fails on the 3 groups of parameters that it is given"),
        ({"optimizer": lambda groups: None}, "optimizer makes a NoneType of its groups of parameters"),
        ({"optimizer": one_group}, "optimizer makes other groups of parameters than it is given"),
        ({"optimizer": without_initial}, "optimizer drops 'initial' of its groups"),
        ({"networks": 3}, "networks: expected a Module or None, got 3"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
        ({"seed": True}, "seed: expected a whole number >= 0"),
        ({"simulator": 5}, "simulator: expected text or a HybridSimulator, got 5"),
        ({"simulator": None}, "simulator: expected text or a HybridSimulator, got None"),
        ({"simulator": Newsvendor}, r"got the class Newsvendor; make one of it, as Newsvendor\(...\)"),
        ({"simulator": "foo"}, "simulator 'foo' is no import path; give that of a class, such as package.module.Class"),
        ({"window": 99}, "window is 99, but an episode has 1 decisions"),
        ({"estimator": "pathwise", "branch": True}, "branch is on, but estimator pathwise has no score"),
        ({"estimator": "score", "cross": "off"}, "cross is 'off', but estimator score has no cross term"),
        ({"estimator": "pathwise", "cross": "auto"}, "cross is 'auto', but estimator pathwise has no cross term"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_sentence(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        HPOModule(**({"simulator": Newsvendor(), "hidden": (4,)} | given))
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_keeps_its_groups_is_taken_and_tried_on_copies():
    made = []

    def sgd(groups):
        made.append(groups)
        return torch.optim.SGD(groups, momentum=0.5)

    module = HPOModule(Newsvendor(), hidden=(4,), optimizer=sgd)
    own = {id(value) for value in module.parameters()}
    assert len(made) == 1
    assert not own & {id(value) for group in made[0] for value in group["params"]}
    assert HPOModule(Newsvendor(), hidden=(4,), optimizer=partial(torch.optim.SGD, momentum=0.5)) is not None


def test_more_minibatches_than_an_update_fills_are_refused():
    module = HPOModule(switched_lqr(2, 2), hidden=(4,), minibatches=500)
    with pytest.raises(ValueError, match=r"minibatches is 500, but an update has 8 episodes of .* decisions"):
        module.training_step(Seeds(group_seeds(0, "train", 0, range(2)), 4), 0)
    options = {"minibatches": 4, "reuse": 1}
    check_minibatches(options, 2, 4, decisions=20, processes=1)
    with pytest.raises(ValueError, match="group_size must be a multiple of minibatches"):
        check_minibatches(options, 2, 6, decisions=20, processes=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"updates_per_epoch": 0}, "updates_per_epoch: expected a whole number >= 1, got 0"),
        ({"updates_per_epoch": True}, "updates_per_epoch: expected a whole number >= 1, got True"),
        ({"group_size": 0}, "group_size: expected a whole number >= 1, got 0"),
        ({"batch_size": 1.5}, "batch_size: expected a whole number >= 1, got 1.5"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
        ({"batch_size": 65}, "batch_size is 65, but it must be a multiple of group_size, 64"),
    ],
)
def test_wrong_data_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        SeedDataModule(**given)


@pytest.mark.parametrize(
    ("sizes", "given", "message"),
    [
        ((0, 2, 1), {}, "observation_dim: expected a whole number >= 1, got 0"),
        ((1, 0, 1), {}, "n_modes: expected a whole number >= 1, got 0"),
        ((1, 2, 1), {"hidden": (0,)}, "hidden: expected a list of at least one, each a whole number >= 1"),
        ((1, 2, 1), {"log_std": float("nan")}, "log_std: expected a finite number, got nan"),
        ((1, 2, 1), {"networks": nn.Linear}, "networks: expected a Module or None, got the class Linear"),
    ],
)
def test_a_policy_without_size_is_refused(sizes, given, message):
    with pytest.raises(ValueError, match=message):
        HybridPolicy(*sizes, **given)
