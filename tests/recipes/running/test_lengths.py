"""Batches and updates of a training are counted as Lightning counts them, and a training of nothing is refused."""

import lightning
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from recipes.errors import RecipeError
from recipes.running.lengths import check_batches
from recipes.running.trainer import TrainerConfig, check_trainer

SPLITS = {"train": 7, "validation": 3, "test": 3}


class Counted(BoringModel):
    """A model over as many batches as `SPLITS` says."""

    def train_dataloader(self):
        return DataLoader(RandomDataset(32, SPLITS["train"]))

    def val_dataloader(self):
        return DataLoader(RandomDataset(32, SPLITS["validation"]))

    def test_dataloader(self):
        return DataLoader(RandomDataset(32, SPLITS["test"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def by_lightning(options: dict[str, object]) -> int | None:
    """Updates that a trainer makes; None where it refuses."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    config = dict(accelerator="cpu", devices=1, enable_model_summary=False, num_sanity_val_steps=0, **quiet)
    trainer = lightning.Trainer(**config | options)
    try:
        trainer.fit(Counted())
        trainer.test(Counted(), verbose=False)
    except lightning.fabric.utilities.exceptions.MisconfigurationException:
        return None
    except ValueError:  # of an interval that is longer than the epoch
        return None
    return trainer.global_step


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "updates"),
    [
        ({"max_epochs": 2}, 14),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 6),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 6),
        ({"max_epochs": 2, "limit_train_batches": 0.15}, 2),
        ({"max_epochs": 2, "limit_train_batches": 0.14}, None),
        ({"max_epochs": 2, "limit_train_batches": 20}, 14),
        ({"max_epochs": 2, "limit_val_batches": 0.3}, None),
        ({"max_epochs": 2, "limit_val_batches": 0}, 14),
        ({"max_epochs": 2, "limit_test_batches": 0.3}, None),
        ({"max_epochs": 2, "limit_test_batches": 0.34}, 14),
        ({"max_epochs": 2, "overfit_batches": 0.34}, 4),
        ({"max_epochs": 2, "overfit_batches": 2}, 4),
        ({"max_epochs": 2, "overfit_batches": 0.2}, None),
        ({"max_epochs": 2, "val_check_interval": 7}, 14),
        ({"max_epochs": 2, "val_check_interval": 8}, None),
        ({"max_epochs": 2, "val_check_interval": 8, "check_val_every_n_epoch": None}, 14),
        ({"max_epochs": 2, "val_check_interval": 4, "limit_train_batches": 3}, None),
        ({"max_epochs": 2, "val_check_interval": 0.01}, 14),
        ({"max_epochs": 2, "max_steps": 9}, 9),
        ({"max_steps": 9}, 9),
        ({"max_epochs": 0}, 0),
        ({"max_epochs": 2, "fast_dev_run": 3}, 3),
    ],
)
def test_updates_are_those_of_lightning(options, updates):
    if updates is None:
        with pytest.raises(RecipeError, match=r"^trainer\.\w+: "):
            check_batches(TrainerConfig(**options), SPLITS)
    else:
        assert check_batches(TrainerConfig(**options), SPLITS) == updates
    assert by_lightning(options) == updates


def test_a_training_that_ends_by_time_has_no_known_length():
    assert check_batches(TrainerConfig(max_time="00:00:01:00", max_epochs=2), SPLITS) is None
    assert check_batches(TrainerConfig(), SPLITS) is None


@pytest.mark.parametrize("options", [{"limit_train_batches": 0}, {"limit_train_batches": 0.0}, {"max_steps": 0}])
def test_a_training_of_nothing_is_refused_unless_it_is_asked_for(options):
    key = next(iter(options))
    told = f"trainer.{key}: 0 would train nothing; give more than 0, or say so with trainer.max_epochs: 0"
    with pytest.raises(RecipeError) as error:
        check_trainer(TrainerConfig(max_epochs=2, accelerator="cpu", devices=1, **options))
    assert str(error.value) == told
    assert check_trainer(TrainerConfig(max_epochs=0, accelerator="cpu", devices=1, **options)) == 1


def test_the_sentence_says_what_would_do():
    with pytest.raises(RecipeError) as error:
        check_batches(TrainerConfig(max_epochs=2, limit_train_batches=0.01), {"train": 3})
    assert str(error.value) == (
        "trainer.limit_train_batches: 0.01 of the 3 train batches is less than one; give at least 0.334, or a whole "
        "number of batches"
    )
