"""Both wings go on where the trainer stands: from every kind of checkpoint, after more epochs, in a new training."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from rl.csp.data import RolloutDataModule, RolloutStream
from rl.csp.module import CSPModule
from rl.hpo.data import SeedStream
from rl.hpo.module import HPOModule
from rl.progress import share_done
from tests.rl.csp.games import Dilemma, dilemma_data
from tests.rl.hpo.train_ddp import QUIET, data as hpo_data, module as hpo_module

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dataloader.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]
PLACES = {"on_train_batch_end": 4, "on_validation_end": 3, "on_train_epoch_end": 3}


class Save(lightning.Callback):
    """Saves in one hook, once after a number of batches."""

    def __init__(self, hook: str, path: Path, batches: int) -> None:
        def save(trainer: Any, *_: Any) -> None:
            if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == batches and not path.is_file():
                trainer.save_checkpoint(path)

        setattr(self, hook, save)


class Rates(lightning.Callback):
    """Notes the first learning rate of every batch, and the batch."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.seen.append(batch.seeds.tolist() if hasattr(batch, "seeds") else batch.number)


def csp_module(**options: Any) -> CSPModule:
    return CSPModule(Dilemma(), dilemma_data(), **({"hidden": [8], "pool": 2, "pool_every": 2, "epochs": 2} | options))


def csp_data() -> RolloutDataModule:
    return RolloutDataModule(3, 16, validation_episodes=8, test_episodes=8)


WINGS = {"hpo": (hpo_module, hpo_data), "csp": (csp_module, csp_data)}


def fit(wing: str, trained: Any, epochs: int, *callbacks: Any, ckpt_path: Path | None = None, **options: Any) -> Any:
    trainer = lightning.Trainer(
        **{**QUIET, "max_epochs": epochs, "devices": 1, "callbacks": list(callbacks), **options}
    )
    trainer.fit(trained, datamodule=WINGS[wing][1](), ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.parametrize("hook", PLACES)
@pytest.mark.parametrize("wing", WINGS)
def test_a_training_resumed_from_any_place_ends_bit_equal(wing: str, hook: str, tmp_path: Path) -> None:
    make, drawn, again = WINGS[wing][0], Rates(), Rates()
    whole, resumed, file = make(), make(), tmp_path / "part.ckpt"
    fit(wing, whole, 3, Save(hook, file, PLACES[hook]), drawn)
    fit(wing, resumed, 3, again, ckpt_path=file)
    assert again.seen == drawn.seen[PLACES[hook] :]
    assert again.rates == drawn.rates[PLACES[hook] :]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize("wing", WINGS)
def test_more_epochs_after_the_end_train_on_with_new_episodes(wing: str, tmp_path: Path) -> None:
    make, first, more = WINGS[wing][0], Rates(), Rates()
    short = make()
    fit(wing, short, 2, first).save_checkpoint(tmp_path / "last.ckpt")
    longer = make()
    fit(wing, longer, 4, more, ckpt_path=tmp_path / "last.ckpt")
    assert len(more.seen) == 6
    assert not [batch for batch in more.seen if batch in first.seen]
    assert any(not torch.equal(longer.state_dict()[name], value) for name, value in short.state_dict().items())


@pytest.mark.parametrize("wing", WINGS)
def test_a_limited_epoch_skips_no_batch(wing: str) -> None:
    drawn, whole = Rates(), Rates()
    fit(wing, WINGS[wing][0](), 3, drawn, limit_train_batches=2)
    fit(wing, WINGS[wing][0](), 2, whole)
    assert drawn.seen == whole.seen


@pytest.mark.parametrize("wing", WINGS)
def test_a_stream_that_is_a_loader_itself_follows_too(wing: str, tmp_path: Path) -> None:
    make = WINGS[wing][0]

    def stream() -> Any:
        return SeedStream(0, "train", 3, 4, 4, endless=True) if wing == "hpo" else RolloutStream(0, "train", 3, 16)

    def train(*callbacks: Any, ckpt_path: Path | None = None) -> Any:
        trained = make()
        lightning.Trainer(**QUIET, max_epochs=2, devices=1, callbacks=list(callbacks)).fit(
            trained, stream(), ckpt_path=ckpt_path, weights_only=True
        )
        return trained

    whole = train(Save("on_train_epoch_end", tmp_path / "end.ckpt", 3))
    resumed = train(ckpt_path=tmp_path / "end.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_loaded_module_that_is_fitted_again_starts_its_schedule_again(tmp_path: Path) -> None:
    first, second = Rates(), Rates()
    fit("hpo", hpo_module(), 2, first).save_checkpoint(tmp_path / "last.ckpt")
    loaded = HPOModule.load_from_checkpoint(tmp_path / "last.ckpt", trust=True)
    before = {name: value.clone() for name, value in loaded.policy.state_dict().items()}
    fit("hpo", loaded, 2, second)
    assert second.rates == first.rates == pytest.approx([3e-3 * (1 - n / 6) for n in range(6)])
    moved = max(float((value - before[name]).abs().max()) for name, value in loaded.policy.state_dict().items())
    assert moved > 1e-3


@pytest.mark.parametrize("wing", WINGS)
def test_rates_fall_to_the_last_of_max_steps(wing: str) -> None:
    changes: dict[str, Any] = {"reuse": 0} if wing == "hpo" else {"final_rate": 0.0}
    seen = Rates()
    trained = WINGS[wing][0](**changes)
    probe = fit(wing, WINGS[wing][0](**changes), 1)
    steps = int(probe.global_step / 3)  # of a batch
    trainer = fit(wing, trained, -1, seen, max_steps=4 * steps)
    assert seen.rates == pytest.approx([3e-3 * (1 - n / 4) for n in range(4)])
    assert share_done(trainer) == 1.0
