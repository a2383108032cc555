"""Observations are shifted and scaled by their moments so far, which resume and policy files keep to the bit."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from rl.hpo import HPOModule, HybridPolicy, SeedDataModule, load_policy, save_policy

pytestmark = [pytest.mark.filterwarnings("ignore:The dataloader.*does not have many workers")]
PLANT: tuple[str, dict[str, Any]] = ("rl.envs.switched_lqr.switched_lqr", {"dimension": 3, "modes": 2})


def fit(module: HPOModule, folder: Path, epochs: int, ckpt: Path | None = None) -> lightning.Trainer:
    data = SeedDataModule(2, 32, group_size=32, validation_episodes=32, test_episodes=32)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, data, ckpt_path=None if ckpt is None else str(ckpt))
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return trainer


def test_the_moments_are_those_of_all_observations_so_far() -> None:
    policy = HybridPolicy(2, 2, 1, [4], normalise=True).double()
    generator = torch.Generator().manual_seed(0)
    parts = [3 * torch.randn(5, 4, 2, generator=generator, dtype=torch.float64) + 7 for _ in range(3)]
    for part in parts:
        policy.follow(part)
    rows = torch.cat([part.reshape(-1, 2) for part in parts])
    torch.testing.assert_close(policy.seen_mean, rows.mean(0))
    torch.testing.assert_close(policy.seen_variance, rows.var(0, correction=0))
    seen = policy._normal(rows)
    torch.testing.assert_close(seen.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    plain = HybridPolicy(2, 2, 1, [4]).double()
    plain.load_state_dict(policy.state_dict(), strict=False)
    torch.testing.assert_close(policy.log_probs(rows), plain.log_probs(seen))
    torch.testing.assert_close(policy.raw_actions(rows), plain.raw_actions(seen))
    torch.testing.assert_close(policy.value(rows), plain.value(seen))


def test_an_observation_that_never_changes_is_only_shifted() -> None:
    policy = HybridPolicy(2, 2, 1, [4], normalise=True)
    policy.follow(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert policy._normal(torch.tensor([[1.0, 5.5]])).tolist() == [[-1.0, 0.5]]


def test_resuming_ends_in_the_same_moments_and_files_hold_them(tmp_path: Path) -> None:
    def make() -> HPOModule:
        return HPOModule(*PLANT, hidden=[8], normalise=True, diagnose_every=0)

    whole, first, second = make(), make(), make()
    # the share of a training that is done sets its rates, so all are told of as many epochs
    fit(whole, tmp_path, 2)
    trainer = lightning.Trainer(
        max_epochs=2, limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        accelerator="cpu", enable_model_summary=False, callbacks=[Stop()],
    )  # fmt: skip
    trainer.fit(first, SeedDataModule(2, 32, group_size=32, validation_episodes=32, test_episodes=32))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    fit(second, tmp_path, 2, tmp_path / "half.ckpt")
    assert whole.policy.seen_updates == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    save_policy(whole.policy, tmp_path / "policy.safetensors")
    seen = 5 * torch.randn(6, 3)
    for one, other in zip(load_policy(tmp_path / "policy.safetensors").act(seen), whole.policy.act(seen), strict=True):
        torch.testing.assert_close(one, other)


class Stop(lightning.Callback):
    """Ends a training after its first epoch."""

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trainer.should_stop = True
