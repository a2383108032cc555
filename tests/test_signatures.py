"""Every argument of the modules is a key of their recipe, and both refuse the same values."""

import dataclasses
import inspect
import re
from pathlib import Path

import lightning
import pytest

from benchmarks import house
from distill.module import DistillModule
from explain import ExplainError, GapExplainer, ModelGapExplainer
from recipes.csp.schema import Adaptation
from recipes.distill.schema import Recipe as Distillation
from recipes.explain.schema import Estimation
from recipes.fields import FieldError
from recipes.front.schema import fields_of
from recipes.hpo.schema import Training
from recipes.merge.baselines import arguments_of
from recipes.running.trainer import TrainerConfig
from rl.csp.module import CSPModule
from rl.hpo.data import SeedDataModule
from rl.hpo.module import HPOModule
from tests.rl.csp.games import Dilemma, dilemma_data
from twinmerge.methods import methods

PAIRS = [(Adaptation, CSPModule), (Training, HPOModule), (Estimation, GapExplainer), (Distillation, DistillModule)]
INFINITE = float("inf")
SIMULATOR = "rl.envs.inventory.single_item"

HPO = [
    ("estimator", "mixd"),
    ("cross", "of"),
    ("learning_rate", -1e-3),
    ("discrete_rate", INFINITE),
    ("critic_rate", 0.0),
    ("discount", 1.5),
    ("trace", 2.0),
    ("hidden", [0]),
    ("minibatches", 0),
    ("reuse", -1),
    ("clip", float("nan")),
    ("branch", "yes"),
]
CSP = [
    ("constraint", "lagrange"),
    ("divergence", "kl"),
    ("agent_rate", -1e-3),
    ("proxy_rate", INFINITE),
    ("dual_rate", -1.0),
    ("discount", 1.5),
    ("trace", 2.0),
    ("hidden", [64, 0]),
    ("minibatches", 0),
    ("held_out", 1.0),
    ("pool", -1),
    ("gate_count", 0.0),
]
EXPLAIN = [
    ("outcome", "los"),
    ("interval", "walt"),
    ("folds", 1),
    ("level", 1.0),
    ("trim", 0.5),
    ("n_bins", 0),
    ("n_jobs", 0),
    ("min_shift_z", -1.0),
]
DISTILL = [("lora_rank", -1), ("chunk", -1), ("vocabulary", "masc"), ("log_gradients_every", -1)]
DISTILL += [("prompt_tokens", 0), ("sampling_temperature", -1.0), ("samples", {"a": {"own": 2.0}})]


@pytest.mark.parametrize(("block", "target"), PAIRS)
def test_every_argument_is_a_key_or_left_out_for_a_reason(block, target):
    theirs = inspect.signature(target).parameters
    keys = {item.name: item for item in fields_of(block)}
    left_out = block.feeds.left_out
    assert set(theirs) == set(block.feeds.names) | set(left_out)
    assert not set(block.feeds.names) & set(left_out)
    assert all(len(reason.split()) > 3 for reason in left_out.values())
    for name in block.feeds.names:
        default = theirs[name].default
        wanted = list(default) if isinstance(default, tuple) else default
        assert keys[name].default == wanted or (keys[name].default, wanted) == ({}, None), name
        assert len(keys[name].help.split()) > 2, f"{name} has no help that is a sentence"
        assert not keys[name].help.startswith(("Likewise", "See above", "Of ")), name


def test_every_argument_of_the_trainer_is_a_key():
    theirs = inspect.signature(lightning.Trainer).parameters
    assert set(theirs) == {item.name for item in dataclasses.fields(TrainerConfig)}


def test_no_argument_is_unreachable():
    assert house.unreachable_arguments() == []


def test_an_argument_that_is_no_key_is_counted(monkeypatch):
    monkeypatch.setattr(house, "TRAINER", "rl.hpo.data:SeedDataModule")
    assert {row["argument"] for row in house.unreachable_arguments()} == set(
        inspect.signature(SeedDataModule).parameters
    )


@pytest.mark.parametrize(("name", "value"), HPO)
def test_hpo_refuses_it_in_python_and_in_yaml(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        HPOModule(SIMULATOR, **{name: value})
    with pytest.raises(FieldError, match=f"^{name}: expected "):
        Training(**{name: value})


@pytest.mark.parametrize(("name", "value"), CSP)
def test_csp_refuses_it_in_python_and_in_yaml(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        CSPModule(Dilemma(), dilemma_data(), **{name: value})
    with pytest.raises(FieldError, match=f"^{name}: expected "):
        Adaptation(**{name: value})


@pytest.mark.parametrize(("name", "value"), EXPLAIN)
def test_explain_refuses_it_in_python_and_in_yaml(name, value):
    with pytest.raises(ExplainError, match=f"^{name}: expected "):
        GapExplainer(["w"], **{name: value})
    with pytest.raises(ExplainError, match=f"^{name}: expected "):
        GapExplainer(["w"]).set_params(**{name: value}).fit({"w": [0.0]}, {"w": [0.0]})
    with pytest.raises(FieldError, match=f"^{name}: expected "):
        Estimation(**{name: value})
    if name in inspect.signature(ModelGapExplainer).parameters:
        with pytest.raises(ExplainError, match=f"^{name}: expected "):
            ModelGapExplainer(**{name: value})


@pytest.mark.parametrize(("name", "value"), DISTILL)
def test_distill_refuses_it_in_python_and_in_yaml(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        DistillModule(**{name: value})
    with pytest.raises(FieldError, match=f"^{name}: expected "):
        Distillation(student=None, **{name: value})


def test_the_module_gets_what_the_block_says():
    module = CSPModule(Dilemma(), dilemma_data(), **Adaptation(clip=0.3, trace=0.5, max_norm=2.0).arguments())
    assert [module.hparams[name] for name in ("clip", "trace", "max_norm")] == [0.3, 0.5, 2.0]
    trained = HPOModule(SIMULATOR, **Training(clip=0.3, hidden=[8]).arguments())
    assert (trained.hparams["clip"], trained.hparams["hidden"]) == (0.3, [8])


def test_the_table_of_static_merges_has_every_method_with_its_options():
    page = (Path(__file__).parents[1] / "docs/big.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([`\w, ]+) \|", page, re.MULTILINE))
    told = {method: re.findall(r"`(\w+)`", options) for method, options in rows.items()}
    assert told == {method: arguments_of(method) for method in methods()}
