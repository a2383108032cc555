"""Training as a LightningModule: one process and two, resume, the command line, checkpoints, precision, compilation."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from safetensors.torch import load_file

from rl.envs.hybrid import HybridSimulator
from rl.envs.switched_lqr import switched_lqr
from rl.hpo.data import SeedDataModule, Seeds, SeedStream, group_seeds
from rl.hpo.diagnostics import gradient_report, signal_and_noise
from rl.hpo.module import HPOModule
from rl.hpo.simulators import active_parts, load_simulator
from rl.processes import moments
from tests.nursery import Nursery
from tests.rl.hpo.train_ddp import QUIET, data, main, module

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists.*"),
    pytest.mark.filterwarnings("ignore:The dataloader.*does not have many workers"),
]


def fit(
    trained: HPOModule, epochs: int = 2, data_module: SeedDataModule | None = None, **options: Any
) -> lightning.Trainer:
    trainer = lightning.Trainer(**{**QUIET, "max_epochs": epochs, "devices": 1, **options})
    trainer.fit(trained, datamodule=data_module or data(), ckpt_path=options.pop("ckpt_path", None))
    return trainer


def batch(groups: int = 2, episodes: int = 4) -> Seeds:
    return Seeds(group_seeds(0, "train", 0, range(groups)), episodes)


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, nursery: Nursery) -> None:
    out = [tmp_path / f"{devices}.safetensors" for devices in (1, 2)]
    main(out[0], 1)
    for done in nursery.ranks("-m", "tests.rl.hpo.train_ddp", out[1], 2, folder=tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(file) for file in out)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("reuse", [1, 0])
def test_a_resumed_training_ends_bit_equal(tmp_path: Path, reuse: int) -> None:
    whole = module(reuse=reuse, cross="auto")
    fit(whole, 3)

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.fit_loop.epoch_loop.total_batch_idx == 3:  # in the middle of the second epoch
                trainer.save_checkpoint(tmp_path / "part.ckpt")
                raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fit(module(reuse=reuse, cross="auto"), 3, callbacks=[Stop()])
    resumed = module(reuse=reuse, cross="auto")
    lightning.Trainer(**QUIET, max_epochs=3, devices=1).fit(
        resumed, datamodule=data(), ckpt_path=tmp_path / "part.ckpt"
    )
    assert int(resumed.updates) == int(whole.updates) == 9
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")
def test_resumed_from_the_end_of_an_epoch_it_ends_bit_equal(tmp_path: Path) -> None:
    whole, resumed = module(reuse=1), module(reuse=1)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    fit(whole, 3, callbacks=[keep], enable_checkpointing=True)
    lightning.Trainer(**QUIET, max_epochs=3, devices=1).fit(
        resumed, datamodule=data(), ckpt_path=tmp_path / "epoch=0.ckpt"
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_checkpoint_loads_without_running_code(tmp_path: Path) -> None:
    trained = module()
    fit(trained, 1).save_checkpoint(tmp_path / "last.ckpt")
    again = HPOModule.load_from_checkpoint(tmp_path / "last.ckpt", trust=True)
    assert again.hparams["simulator"] == "rl.envs.switched_lqr.switched_lqr"
    for name, value in trained.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_simulator_object_is_passed_again(tmp_path: Path) -> None:
    simulator = switched_lqr(2, 2)
    fit(HPOModule(simulator, hidden=(8,)), 1).save_checkpoint(tmp_path / "last.ckpt")
    again = HPOModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True, simulator=simulator)
    assert again.simulator is simulator


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {}])
def test_training_runs_in_half_precision_with_states_in_full(options: dict[str, Any]) -> None:
    trained = module()
    trainer = fit(trained, 1, **options)
    assert torch.isfinite(trainer.callback_metrics["validation/cost"])
    assert trained.simulator.dtype == torch.float32
    assert all(torch.isfinite(p).all() for p in trained.parameters())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # asked by dynamo
def test_the_compiled_step_gives_the_same_gradients() -> None:
    plain, compiled = module(), module()
    compiled.simulator.step = torch.compile(compiled.simulator.step, backend="aot_eager")
    costs = []
    for one in (plain, compiled):
        roll = one.train()._rollout(batch(), cross=True)
        roll.costs.mean().backward()
        costs.append(roll.costs)
    torch.testing.assert_close(*costs)
    for p, q in zip(plain.policy.continuous.parameters(), compiled.policy.continuous.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_the_command_line_of_lightning_works_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "fit",
        "--seed_everything=0",
        "--model.simulator=rl.envs.switched_lqr.switched_lqr",
        "--model.simulator_args={dimension: 2, modes: 2}",
    ]
    words += ["--model.hidden=[8]", "--data.updates_per_epoch=2", "--data.batch_size=8", "--data.group_size=4"]
    words += ["--data.validation_episodes=8", "--data.test_episodes=8", "--trainer.max_epochs=1"]
    words += [f"--trainer.{key}={str(value).lower()}" for key, value in QUIET.items()]
    monkeypatch.setattr("sys.argv", ["train"])
    cli = LightningCLI(HPOModule, SeedDataModule, args=words, save_config_callback=None)
    assert "validation/cost" in cli.trainer.callback_metrics


@pytest.mark.parametrize("estimator", ["mixed", "score", "pathwise", "straight_through"])
def test_every_estimator_lowers_the_cost(estimator: str) -> None:
    trained = module(estimator=estimator, learning_rate=0.01, discrete_rate=0.01, hidden=(16,))
    before = fit(trained, 1, data(updates_per_epoch=1)).callback_metrics["validation/cost"].item()
    after = fit(trained, 2, data(updates_per_epoch=15, batch_size=32)).callback_metrics["validation/cost"].item()
    assert after < 0.9 * before


def test_all_decisions_but_the_buffer_are_trained() -> None:
    assert HPOModule("rl.envs.inventory.single_item").decisions == 80
    assert HPOModule("rl.envs.inventory.joint_replenishment", {"items": 2, "horizon": 20}).decisions == 16
    assert HPOModule(switched_lqr(2, 2)).decisions == switched_lqr(2, 2).horizon


def test_reuse_leaves_the_continuous_policy_alone() -> None:
    trained, copies = module(minibatches=2, kl_limit=1e9), []

    class Watch(lightning.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            copies.append([p.detach().clone() for p in pl_module.policy.continuous.parameters()])

    fit(trained, 1, data(updates_per_epoch=1), callbacks=[Watch()])
    last = list(trained.policy.continuous.parameters())
    assert len(copies) == 3  # one mixed step, two of reuse
    assert any(not torch.equal(a, b) for a, b in zip(copies[0], copies[1], strict=True))
    for a, b, c in zip(copies[1], copies[2], last, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(b, c)


def test_the_pathwise_and_cross_part_keep_their_exact_weights() -> None:
    """With nothing discounted and no critic, the step's gradient is proportional to that of the mean cost."""
    trained = module(discount=1.0, trace=1.0, reuse=0).double().train()
    trained.value_scale.fill_(1e-30)
    recorded = {}
    trained.log = lambda *_, **__: None
    trained.log_dict = lambda values, **_: recorded.update(values)
    trained._trainer = None
    many = batch(groups=1, episodes=4096)
    roll = trained._rollout(many, cross=True)
    totals = roll.costs.detach().flip(1).cumsum(1).flip(1)
    log_prob = roll.log_probs.gather(-1, roll.modes[..., None])[..., 0]
    plain = (roll.costs.sum(1) + (log_prob * (totals - totals.mean())).sum(1)).mean()
    kappa = list(trained.policy.continuous.parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(plain, kappa, retain_graph=True)])
    mean, scale = moments(totals)
    parts = trained._surrogate(roll, totals - mean, scale)
    found = torch.cat([g.flatten() for g in torch.autograd.grad(parts.total.mean(), kappa)])
    torch.testing.assert_close(found * scale * trained.simulator.horizon, expected, rtol=1e-9, atol=1e-9)


def test_seeds_are_a_function_of_update_and_index() -> None:
    whole = SeedStream(0, "train", 4, 6, 2, endless=True)
    halves = [SeedStream(0, "train", 4, 6, 2, world=2, rank=rank, endless=True) for rank in range(2)]
    for _ in range(2):
        for one, first, second in zip(whole, *halves, strict=True):
            assert torch.equal(one.seeds, torch.cat([first.seeds, second.seeds]))
    later = SeedStream(0, "train", 4, 6, 2, endless=True)
    later.load_state_dict({"done": 6})
    assert len(list(later)) == 2
    fixed = SeedStream(0, "validation", 1, 6, 2)
    assert torch.equal(next(iter(fixed)).seeds, next(iter(fixed)).seeds)
    seen = torch.cat([group_seeds(0, split, update, range(3)) for split in ("train", "test") for update in range(50)])
    assert len(seen.unique()) == len(seen)


def test_signal_and_noise_of_known_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.full((50,), 0.3)
    rows = truth + torch.randn(4000, 50, generator=generator)
    signal, noise = torch.stack([torch.stack(signal_and_noise(part)) for part in rows.split(4)]).mean(0)
    assert signal.item() == pytest.approx(truth.square().sum().item(), rel=0.1)
    assert noise.item() == pytest.approx(50 / 4, rel=0.05)


def test_the_gradient_report_names_its_parts() -> None:
    kappa, phi = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    pathwise = (torch.arange(8.0)[:, None] * kappa).sum(1)
    score = -pathwise + torch.arange(8.0) * phi.sum()
    found = gradient_report(pathwise, score, [kappa], [phi])
    assert found["cosine"].item() == pytest.approx(-1)
    assert found["pathwise_norm"].item() == pytest.approx(3.5 * 3**0.5)
    assert found["score_norm"].item() == pytest.approx(3.5 * 2**0.5)


def test_inert_parts_are_found() -> None:
    assert active_parts(load_simulator("rl.envs.inventory.single_item")).tolist() == [[0.0], [1.0]]
    assert active_parts(switched_lqr(3, 2)).tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("rl.envs.nothing.at_all", {}, "cannot be imported"),
        ("nothing", {}, "is no import path"),
        ("torch.nn.Linear", {}, "neither a subclass"),
        ("os.system", {"command": "true"}, "neither a subclass"),
        ("rl.envs.switched_lqr.switched_lqr", {"dimensions": 2}, "does not take"),
        ("rl.envs.switched_lqr.switched_lqr", {"dimension": 1, "modes": 2}, "2 modes for 1"),
    ],
)
def test_simulators_that_cannot_be_made_are_refused(path: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_simulator(path, arguments)
    assert isinstance(load_simulator("rl.envs.inventory.single_item"), HybridSimulator)


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="diagnose_every is 0"):
        module(cross="auto", diagnose_every=0)
    with pytest.raises(ValueError, match="branch is on"):
        module(estimator="score", branch=True)
    with pytest.raises(ValueError, match="multiple of group_size"):
        data(batch_size=7)
    with pytest.raises(ValueError, match="cannot be dealt out"):
        SeedStream(0, "train", 1, 3, 4, world=2)
