"""A package outside this repository adds its own parts, installed as its users would install it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder that the example package is installed in."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "example_package"
    subprocess.run(["cp", "-r", str(ROOT / "tests" / "example_package"), str(source)], check=True)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)], check=True)
    return target


@pytest.fixture
def outside(installed, tmp_path):
    """Run Python in an empty folder with the package installed, as its user's shell would."""

    def run(*words):
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{installed}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def inside(installed, tmp_path, nursery):
    """Run code in an empty folder with the package installed."""

    def run(code):
        [done] = nursery.run(("-c", code), folder=tmp_path, PYTHONPATH=f"{ROOT}:{installed}")
        return done

    return run


def test_a_recipe_from_outside_gets_the_same_front(outside, tmp_path):
    listed = outside("-m", "gapbridge", "--list")
    assert "count       count what a file holds (from gapbridge-example)\n              count.yaml" in listed.stdout
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    assert json.loads(outside("-m", "gapbridge", "--schema", "count").stdout)["required"] == ["path"]
    assert outside("-m", "gapbridge", "--new", "count").stdout.startswith("# Count the lines")
    checked = outside("-m", "gapbridge", "count.yaml", "path=none.txt", "--check")
    assert checked.returncode == 2
    assert "path: none.txt does not exist; give a text file" in checked.stderr
    mistaken = outside("-m", "gapbridge", "count.yaml", "paht=x")
    assert "unknown key; did you mean 'path'?" in mistaken.stderr
    done = outside("-m", "gapbridge", "count.yaml", "path=three.txt")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs/count-lines/1/result.json").read_text())["lines"] == 3
    assert "3 lines." in (tmp_path / "runs/count-lines/1/report.html").read_text()


def test_the_command_finds_our_recipes_when_another_package_has_that_name(tmp_path):
    stranger = tmp_path / "recipes"
    stranger.mkdir()
    (stranger / "__init__.py").write_text("raise ImportError('the recipes of another project')\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    found = [
        subprocess.run(
            [sys.executable, "-m", module, "--list"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for module in ("recipes.run", "gapbridge")
    ]
    assert "another project" in found[0].stderr
    assert found[1].returncode == 0, found[1].stderr
    assert "merge.yaml" in found[1].stdout


MERGED = """
import torch, twinmerge
from gapbridge_example.midpoint import midpoint
from torch import nn

base = nn.Linear(2, 1, bias=False)
base.weight.data.zero_()
experts = {"a": {"weight": torch.tensor([[1.0, 0.0]])}, "b": {"weight": torch.tensor([[3.0, 0.0]])}}
print(twinmerge.shared_expert(base, experts, "midpoint", scale=0.5)["weight"].tolist())
print(twinmerge.shared_expert(base, experts, midpoint)["weight"].tolist())
from recipes.merge.baselines import Baselines, Shared
print(Shared("midpoint", {"scale": 0.5}), ("midpoint", {"scale": 0.3}) in Baselines().grid())
Shared("midpoint", {"density": 0.5})
"""


def test_a_merge_method_from_outside_is_used_by_name_in_yaml_and_as_a_function(inside):
    done = inside(MERGED)
    assert done.stdout.splitlines() == [
        "[[1.0, 0.0]]",
        "[[2.0, 0.0]]",
        "Shared(method='midpoint', options={'scale': 0.5}, tune={}) True",
    ]
    assert "options.density: midpoint has no such option" in done.stderr


DISTILLED = """
import torch
from distill import DistillLoss
from distill.terms import Outputs

student, teacher = Outputs(torch.tensor([[1.0, 0.0]])), Outputs(torch.tensor([[3.0, 0.0]]))
print(float(DistillLoss({"mean_gap": {"power": 2.0}})(student, teacher, torch.tensor([0]))["mean_gap"]))
DistillLoss({"mean_gap": {"power": 0.0}})
"""


def test_a_loss_from_outside_is_used_by_name(inside):
    done = inside(DISTILLED)
    assert done.stdout == "2.0\n"
    assert "power: expected a finite number > 0, got 0.0" in done.stderr


ACTED = """
import logging, torch
from functools import partial
from gapbridge_example.linear_policy import LinearPolicy
from lightning import Trainer
from rl.envs.newsvendor import Newsvendor
from rl.hpo import HPOModule, SeedDataModule

simulator = Newsvendor()
module = HPOModule(
    simulator,
    networks=LinearPolicy(simulator.observation_dim, simulator.n_modes, simulator.action_dim),
    optimizer=partial(torch.optim.SGD, momentum=0.5),
)
before = module.policy.critic.weight.clone()
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, **options).fit(
    module, SeedDataModule(batch_size=64, updates_per_epoch=2, group_size=64, validation_episodes=64)
)
print(type(module.optimizers().optimizer).__name__, bool((module.policy.critic.weight != before).any()))

import numpy
from gapbridge_example.seat_policy import linear_seats
from rl.csp.loading import load_game
from rl.csp.data import RolloutDataModule
from rl.csp.dataset import record_target
from rl.csp.module import CSPModule
game = load_game("gapbridge_example.coin.Coin", {})
even = game.policy(numpy.full((2, 2), 0.5))
data = record_target(game, even, even, 20, torch.Generator()).pairs()
held = CSPModule(game, data, policy=linear_seats(game), optimizer=torch.optim.SGD)
Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, **options).fit(held, RolloutDataModule(2, 8))
print(type(game).__name__, type(held.agent).__name__, type(held.optimizers()[0].optimizer).__name__)
"""


def test_a_policy_an_optimizer_and_a_game_from_outside_are_trained_with(inside):
    done = inside(ACTED)
    assert done.stdout.split() == ["SGD", "True", "Coin", "LinearSeat", "SGD"], done.stderr
