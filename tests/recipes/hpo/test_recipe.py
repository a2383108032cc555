"""The hpo recipe through the real command: cells, report, resume, refusals, and a user's own simulator."""

import dataclasses
import inspect
import json

import pytest

from recipes.fields import FieldError
from recipes.hpo import recipe as hpo
from recipes.hpo.schema import Episodes
from rl.hpo.data import SeedDataModule

pytestmark = [pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists.*")]


def test_the_episodes_have_the_arguments_of_the_data_module():
    episodes = {item.name: item.default for item in dataclasses.fields(Episodes)}
    data = inspect.signature(SeedDataModule).parameters
    assert episodes == {name: value.default for name, value in data.items() if name != "seed"}


def test_the_tiny_recipe_runs_is_resumed_and_reports(front, tmp_path):
    done = front("hpo_tiny.yaml", "--out", "run", "seeds=1")
    assert done.code == 0, done.err
    folder = tmp_path / "run"
    result = json.loads((folder / "result.json").read_text())
    assert [row["method"] for row in result["rows"]] == ["hpo", "hppo"]
    assert result["rows"][0]["reference"] == "optimum"
    assert result["gap"] == pytest.approx(result["cost"] / result["rows"][0]["reference_cost"] - 1)
    for name in ("curves_simulator_steps", "curves_seconds", "policy_hpo-0"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 1000
    curve = (folder / "curves.csv").read_text().splitlines()
    assert curve[0].startswith("method,seed,updates,simulator_steps,seconds,")
    assert [line.split(",")[3] for line in curve[1:3]] == ["1600", "3200"]
    metrics = (folder / "metrics.csv").read_text()
    for name in ("train/pathwise_norm", "train/cross_variance", "train/cosine", "train/kl", "validation/gap"):
        assert name in metrics
    assert "Test cost and gap" in (folder / "report.html").read_text()

    (folder / "result.json").unlink()
    (folder / "cells" / "hppo-0.json").unlink()  # as if it had been stopped there
    again = front("hpo_tiny.yaml", "--out", "run", "seeds=1", "--resume")
    assert again.code == 0, again.err
    assert "hpo-0: found" in again.out
    assert json.loads((folder / "result.json").read_text())["cost"] == result["cost"]


def test_a_sweep_over_the_simulator_draws_a_line_a_method(front, tmp_path):
    words = ("--sweep", "simulator.init_args.dimension=2,3", "--show", "gaps", "--out", "s")
    done = front("hpo_dims_tiny.yaml", *words, "methods={hpo: {}, without: {cross: 'off'}}")
    assert done.code == 0, done.err
    drawn = (tmp_path / "s/figures/gaps.csv").read_text().splitlines()
    assert drawn[0] == "simulator.init_args.dimension,line,mean,low,high"
    assert [line.split(",")[:2] for line in drawn[1:]] == [[n, m] for m in ("hpo", "without") for n in ("2.0", "3.0")]
    rows = json.loads((tmp_path / "s/result.json").read_text())["rows"]
    for row in rows:
        cell = tmp_path / f"s/cells/simulator.init_args.dimension={row['simulator.init_args.dimension']},seed=0"
        trained = json.loads((cell / "cells/without-0.json").read_text())
        assert row["gaps.without"]["mean"] == trained["gap"]


def test_the_outside_baseline_takes_as_many_steps(front, tmp_path):
    pytest.importorskip("stable_baselines3")
    done = front("hpo_slqr_tiny.yaml", "--out", "run", "methods={sb3: {}}")
    assert done.code == 0, done.err
    cell = json.loads((tmp_path / "run/cells/sb3-0.json").read_text())
    assert cell["simulator_steps"] == 4 * 8 * 20
    assert cell["gap"] > 0


def test_a_check_differentiates_the_simulator_and_writes_nothing(front, tmp_path):
    done = front("hpo_slqr.yaml", "--check")
    assert done.code == 0, done.err
    assert "gradients agree with finite differences" in done.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["hpo", "hpo_slqr", "hpo_dims"])
def test_the_shipped_recipes_are_recipes(front, name):
    assert front(f"{name}.yaml", "--print-config").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["training.estimator=mixd"], "training.estimator"),
        (["episodes.batch_size=100"], "episodes.batch_size: expected a multiple of group_size, 64, got 100"),
        (["methods={hpo: {croos: off}}"], "methods.hpo.croos: unknown key; did you mean 'cross'?"),
        (["methods={hpo: {clip: 0}}"], "methods.hpo.clip"),
        (["training.cross=auto", "training.diagnose_every=0"], "diagnose_every"),
        (["training.discount=1.5"], "training.discount: expected a finite number > 0 and <= 1 or None, got 1.5"),
        (
            ["methods={hpo: {}, many: {minibatches: 0}}"],
            "methods.many.minibatches: expected a whole number >= 1, got 0",
        ),
        (["methods={hpo: {reuse: -1}}"], "methods.hpo.reuse: expected a whole number >= 0, got -1"),
        (["simulator.class_path=os.system", "simulator.init_args={command: 'true'}"], "neither a subclass"),
        (["simulator.class_path=rl.envs.inventory.two_items"], "cannot be imported"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(front, words, message):
    done = front("hpo.yaml", "--check", *words)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) <= 2


USERS = """
import torch
from rl.envs.switched_lqr import SwitchedLQR, switched_lqr

class Opaque(SwitchedLQR):
    differentiable = False

class Masked(SwitchedLQR):
    def mode_mask(self, state, t):
        return torch.stack([torch.ones(len(state["x"]), dtype=torch.bool), state["x"][:, 0].detach() > 0.0], 1)

class Unfinished(SwitchedLQR):
    def observe(self, state, t):
        return state["y"]

def make(cls) -> SwitchedLQR:
    made = switched_lqr(2, 2)
    made.__class__ = cls
    return made

def opaque(dimension, modes) -> SwitchedLQR:
    return make(Opaque)

def masked(dimension, modes) -> SwitchedLQR:
    return make(Masked)

def unfinished(dimension, modes) -> SwitchedLQR:
    return make(Unfinished)

def shut(simulator):
    return lambda state, t: (torch.ones(len(state["x"]), dtype=torch.long), state["x"])
"""


@pytest.mark.parametrize(
    ("name", "message", "kept"),
    [
        ("opaque", "declared not differentiable, so estimator mixed has no gradient", "declared not differentiable"),
        ("masked", "the mode mask changes with the continuous actions", "moving masks were not checked"),
    ],
)
def test_a_check_refuses_estimators_that_the_simulator_does_not_allow(
    front, tmp_path, monkeypatch, name, message, kept
):
    (tmp_path / f"users_{name}.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    words = [f"simulator.class_path=users_{name}.{name}"]
    refused = front("hpo_slqr_tiny.yaml", "--check", *words, "methods={hpo: {}, hppo: {estimator: score}}")
    assert refused.code == 2
    assert message in refused.err
    assert "estimator score" in refused.err
    assert "(method hpo)" in refused.err
    accepted = front("hpo_slqr_tiny.yaml", "--check", *words, "methods={hppo: {estimator: score}}")
    assert accepted.code == 0, accepted.err
    assert kept in accepted.out
    assert "gradients agree" not in accepted.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["simulator.class_path=users_all.masked", "methods={auto: {estimator: mixed}}"], "the mode mask changes"),
        (
            ["simulator.class_path=users_all.masked", "methods={auto: {}}", "training.branch=true"],
            "methods.auto: estimator score is advised: training.branch: expected false",
        ),
        (
            ["simulator.class_path=users_all.masked", "methods={p: {estimator: pathwise}}"],
            "estimator pathwise is biased",
        ),
        (
            ["simulator.class_path=users_all.unfinished"],
            "simulator: observe fails with KeyError ('y'), at ",
        ),
        (
            [
                "simulator.class_path=users_all.masked",
                "methods={h: {estimator: score}}",
                "reference.policy=users_all.shut",
            ],
            "step 0: mode 1 is chosen in episode",
        ),
        (
            ["methods={hpo: {minibatches: 100}}"],
            "training (method hpo): minibatches is 100, but an update has 8 episodes",
        ),
        (
            ["trainer.devices=2", "episodes.group_size=2"],
            "group_size is 2 and minibatches is 4, but on several processes",
        ),
        (["trainer.gradient_clip_val=1"], "trainer.gradient_clip_val: expected none: training.max_norm"),
        (["trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches: expected 1: episodes.batch_size"),
        (["reference.cost=0"], "cost: expected a number other than 0, as gaps are in units of it"),
        (["methods={sb3: {reuse: 2}}"], "methods.sb3.reuse: Stable-Baselines3's PPO does not read it, but hidden, "),
    ],
)
def test_what_would_fail_or_be_ignored_later_is_refused_by_a_check(front, tmp_path, monkeypatch, words, message):
    (tmp_path / "users_all.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    refused = front("hpo_slqr_tiny.yaml", "--check", *words)
    assert refused.code == 2, refused.out
    assert message in refused.err
    assert ("users_all.py:14 (method hpo)" in refused.err) == ("KeyError" in message)
    assert len(refused.err.strip().splitlines()) <= 2


def test_the_outside_baseline_needs_no_gradient_of_the_simulator(front, tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3")
    (tmp_path / "users_sb3.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["hpo_slqr_tiny.yaml", "simulator.class_path=users_sb3.opaque", "methods={sb3: {}}"]
    done = front(*words, "--out", "run", "trainer.max_epochs=5", "trainer.max_steps=3")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run/cells/sb3-0.json").read_text())["simulator_steps"] == 3 * 8 * 20
    endless = front(*words, "--check", "trainer.max_epochs=null", "trainer.max_time=00:00:00:05")
    assert "methods.sb3: it trains a number of updates" in endless.err


def test_a_batch_that_two_devices_cannot_share_is_refused_by_name(front):
    done = front("hpo.yaml", "--check", "episodes.batch_size=64", "trainer.devices=2")
    assert done.code == 2
    assert "episodes.batch_size: 64 episodes in groups of group_size 64 cannot be dealt out to 2 devices" in done.err


def test_a_method_without_changes_is_the_training_itself():
    recipe = hpo.Recipe(methods={"plain": {}, "off": {"cross": "off"}}, seeds=2)
    assert [cell.name for cell in hpo.cells(recipe)] == ["plain-0", "plain-1", "off-0", "off-1"]
    with pytest.raises(FieldError, match="at least one"):
        hpo.Recipe(methods={})


def test_the_method_auto_trains_as_advised_and_a_check_says_so(front, tmp_path):
    checked = front("hpo_tiny.yaml", "--check", "methods={auto: {}}")
    assert checked.code == 0, checked.err
    assert "advice: estimator mixed, for a number is chosen at a time" in checked.out
    done = front("hpo_slqr_tiny.yaml", "--out", "run", "methods={auto: {reuse: 2}}", "reference.cost=40")
    assert done.code == 0, done.err
    row = json.loads((tmp_path / "run/result.json").read_text())["rows"][0]
    assert (row["method"], row["reference"], row["reference_cost"]) == ("auto", "reference", 40.0)
    assert row["gap"] == pytest.approx(row["cost"] / 40 - 1)


def test_a_policy_of_ones_own_is_the_reference(front, tmp_path, monkeypatch):
    (tmp_path / "rules.py").write_text(
        "def never(simulator):\n"
        "    zero = lambda state: state['x'][:, 0].long() * 0\n"
        "    return lambda state, t: (zero(state), state['x'] * 0)\n"
        "def broken(simulator):\n    return 3\n"
        "def one(simulator):\n    return lambda state, t: (never(simulator)(state, t)[0][:1], state['x'] * 0)\n"
        "def narrow(simulator):\n    return lambda state, t: (never(simulator)(state, t)[0], state['x'][:, :1] * 0)\n"
        "def lost(simulator):\n    return lambda state, t: (never(simulator)(state, t)[0], state['x'] * float('nan'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tiny = ("hpo_slqr_tiny.yaml", "reference.name=idle")
    done = front(*tiny, "--out", "run", "reference.policy=rules.never")
    assert done.code == 0, done.err
    row = json.loads((tmp_path / "run/result.json").read_text())["rows"][0]
    assert row["reference"] == "idle"
    assert row["reference_cost"] > 45  # doing nothing costs more than the optimum of the plane
    for path, why in (
        ("rules.broken", "reference.policy: rules.broken cannot be played"),
        ("rules.none", "cannot be"),
        ("rules.one", "step 0: the modes have shape (1,), but they must be (8,)"),
        ("rules.narrow", "step 0: the actions have shape (8, 1), but they must be a tensor of shape (8, 2)"),
        ("rules.lost", "its cost is nan"),
    ):
        refused = front(*tiny, "--check", f"reference.policy={path}")
        assert refused.code == 2, refused.out
        assert why in refused.err
    refused = front(*tiny, "--check", "reference.policy=rules.never", "reference.cost=1.0")
    assert "expected none beside a cost" in refused.err
