"""The module: games with known answers, resume, two processes, LightningCLI, precision, checkpoints, refusals."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from rl.csp.baselines import BASELINES, baseline, imitate
from rl.csp.data import RolloutDataModule, RolloutStream
from rl.csp.dataset import record_target, save_data
from rl.csp.module import CSPModule
from rl.csp.policies import ScriptedPolicy
from rl.envs.vault_maze import VaultMaze, behaviour, true_guard
from tests.rl.csp.games import DOOR, PUSH, YIELDS, Dilemma, dilemma_data, probabilities, record, trainer

FAST = {"hidden": [16], "agent_rate": 3e-2, "proxy_rate": 3e-2, "entropy_start": 0.05, "epochs": 2}


def fit(module, iterations=25, episodes=64, **changes):
    made = trainer(**changes)
    made.fit(module, RolloutDataModule(iterations, episodes))
    return made


def answer(module):
    return probabilities(module.agent, Dilemma())[0]


@pytest.mark.parametrize("constraint", ["penalty", "lagrangian", "gate"])
def test_held_to_the_data_it_pushes(constraint):
    module = CSPModule(Dilemma(), dilemma_data(), constraint=constraint, **FAST)
    made = fit(module)
    assert answer(module)[PUSH] > 0.9
    assert abs(float(made.callback_metrics["train/excess"])) < 0.05
    assert probabilities(module.models[0], Dilemma())[0] == pytest.approx(YIELDS[0], abs=0.06)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_the_divergences_hold_it_too(divergence):
    module = CSPModule(Dilemma(), dilemma_data(), divergence=divergence, **FAST)
    fit(module)
    assert answer(module)[PUSH] > 0.9


def test_without_the_data_it_takes_the_door():
    module = baseline("self_play", Dilemma(), dilemma_data(), **FAST)
    made = fit(module)
    assert answer(module)[DOOR] > 0.9
    assert float(made.callback_metrics["train/excess"]) > 0.3  # and the log says that the proxy has left the data


@pytest.mark.parametrize("name", ["bc_first", "bc_ensemble", "oracle", "rnr", "dbr"])
def test_baselines_that_trust_a_model_push(name):
    target = ScriptedPolicy(Dilemma().policy(YIELDS)) if name == "oracle" else None
    more = {"model_share": 0.95} if name == "rnr" else {}
    module = baseline(name, Dilemma(), dilemma_data(), target=target, **FAST, **more)
    fit(module)
    assert answer(module)[PUSH] > 0.9


def test_a_restricted_response_that_trusts_too_little_takes_the_door():
    module = baseline("rnr", Dilemma(), dilemma_data(), model_share=0.3, **FAST)
    fit(module)
    assert answer(module)[DOOR] > 0.9


def test_imitation_does_what_our_seat_did():
    game, ours = Dilemma(), np.array([[0.2, 0.7, 0.1], [1, 0, 0]])
    problem = CSPModule(game, dilemma_data(), **FAST)
    policy = imitate(problem, record(game, ours, YIELDS, 400, seat=0))
    assert probabilities(policy, game)[0] == pytest.approx(ours[0], abs=0.07)


def test_the_pool_keeps_consistent_snapshots_only():
    module = CSPModule(Dilemma(), dilemma_data(), pool=2, pool_every=3, **FAST)
    fit(module, 12)
    assert int(module.pooled) == 4
    assert len(module.opponents()) == 2
    loose = CSPModule(Dilemma(), dilemma_data(), pool=2, pool_every=3, coefficient=0.0, **FAST)
    loose.log_dict = loose.log = lambda *_, **__: None
    loose.warm_up()
    loose.free.head.bias.data += torch.tensor([-3.0, 3.0])
    assert loose.excess() > loose.hparams["slack"]


def weights(module):
    return torch.cat([p.flatten() for p in module.state_dict().values() if p.is_floating_point()])


class SaveAt(Callback):
    """Saves a checkpoint after a batch, in the middle of an epoch."""

    def __init__(self, path, batch):
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batch:
            trainer.save_checkpoint(self.path)


def test_episodes_against_a_gate_and_against_its_model_train_one_recurrent_agent():
    module = CSPModule(Dilemma(), dilemma_data(), constraint="gate", model_share=0.5, memory=4, **FAST)
    before = answer(module)[PUSH]
    fit(module, iterations=10)
    assert answer(module)[PUSH] > before


@pytest.mark.parametrize("memory", [0, 4])
def test_a_resumed_run_ends_bit_equal(tmp_path, memory):
    arguments = FAST | {"pool": 2, "pool_every": 2, "constraint": "lagrangian", "memory": memory, "minibatches": 2}
    whole, again = (CSPModule(Dilemma(), dilemma_data(), **arguments) for _ in range(2))
    trainer(2, callbacks=[SaveAt(tmp_path / "part.ckpt", 6)]).fit(whole, RolloutDataModule(4, 16))
    trainer(2).fit(again, RolloutDataModule(4, 16), ckpt_path=tmp_path / "part.ckpt", weights_only=True)
    part = torch.load(tmp_path / "part.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(weights(whole), torch.cat([x.flatten() for x in part.values() if x.is_floating_point()]))
    assert torch.equal(weights(whole), weights(again))


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")
def test_resumed_from_the_end_of_an_epoch_it_ends_bit_equal(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole, again = (CSPModule(Dilemma(), dilemma_data(), **FAST) for _ in range(2))
    trainer(3, callbacks=[keep], enable_checkpointing=True).fit(whole, RolloutDataModule(2, 16))
    trainer(3).fit(again, RolloutDataModule(2, 16), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert torch.equal(weights(whole), weights(again))


def test_two_processes_end_with_the_same_weights(tmp_path, nursery):
    for done in nursery.ranks("-m", "tests.rl.csp.ddp_program", tmp_path, folder=tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    module = CSPModule(Dilemma(), dilemma_data(), **FAST)
    module.load_state_dict(first)
    assert answer(module)[PUSH] > 0.9


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_train(precision):
    module = CSPModule(Dilemma(), dilemma_data(), **FAST)
    fit(module, 2, precision=precision)
    assert torch.isfinite(weights(module)).all()


def test_a_checkpoint_loads_without_running_code(tmp_path):
    module = CSPModule(Dilemma(), dilemma_data(), **FAST)
    made = fit(module, 2)
    made.save_checkpoint(tmp_path / "m.ckpt")
    again = CSPModule.load_from_checkpoint(tmp_path / "m.ckpt", game=Dilemma(), data=dilemma_data(), weights_only=True)
    assert torch.equal(weights(module), weights(again))
    assert again.hparams["hidden"] == [16]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"coefficient": -1.0}, "coefficient: expected a finite number >= 0, got -1.0"),
        ({"coefficient": float("nan")}, "coefficient: expected a finite number >= 0, got nan"),
        ({"model_share": 1.5}, "model_share: expected a finite number >= 0 and <= 1, got 1.5"),
        ({"proxy_updates": 0}, "proxy_updates: expected a whole number >= 1, got 0"),
        ({"pool": 3, "constraint": "gate"}, "pool is 3, but snapshots of a gate's free part are not consistent"),
        ({"game": "rl.envs.nothing.Game"}, "game 'rl.envs.nothing.Game' cannot be imported"),
        ({"game": "rl.csp.policies.SeatPolicy"}, "is no subclass of rl.envs.BatchedGame"),
        ({"game": "rl.envs.vault_maze.VaultMaze", "game_args": {"x": 1}}, r"does not take {'x': 1}"),
    ],
)
def test_wrong_values_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        CSPModule(**({"game": Dilemma(), "data": dilemma_data()} | changes))


def test_wrong_baselines_are_refused():
    with pytest.raises(ValueError, match=f"there is no baseline 'magic'; there are {', '.join(BASELINES)}"):
        baseline("magic", Dilemma(), dilemma_data())
    with pytest.raises(ValueError, match="baseline 'oracle' got no target"):
        baseline("oracle", Dilemma(), dilemma_data())
    with pytest.raises(ValueError, match="33 episodes cannot be dealt out to 2 processes"):
        RolloutStream(0, "train", 1, 33, world=2)


def test_lightning_cli_runs_it_from_a_path_and_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["test"])  # Lightning warns of words that are not its own
    game = VaultMaze()
    recorded = record_target(game, game.policy(behaviour()), game.policy(true_guard()), 20, torch.Generator())
    save_data(tmp_path / "guard.npz", recorded)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    cli = LightningCLI(
        CSPModule,
        RolloutDataModule,
        save_config_callback=None,
        seed_everything_default=0,
        args=[
            "fit",
            "--model.game=rl.envs.vault_maze.VaultMaze",
            f"--model.data={tmp_path / 'guard.npz'}",
            "--model.hidden=[8]",
            "--data.iterations_per_epoch=2",
            "--data.episodes=8",
            "--data.validation_episodes=8",
            "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            *(f"--trainer.{name}=false" for name in quiet),
        ],
    )
    logged = cli.trainer.callback_metrics
    assert {"validation/return_model", "validation/return_proxy", "validation/excess"} <= logged.keys()
    cli.trainer.save_checkpoint(tmp_path / "m.ckpt")
    again = CSPModule.load_from_checkpoint(tmp_path / "m.ckpt", trust=True)
    assert torch.equal(weights(cli.model), weights(again))
