"""What an hpo recipe says: the simulator, the training and the methods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from recipes.fields import LAST_SEED, FieldError, check_name, check_positive, check_seed
from recipes.front.schema import did_you_mean
from recipes.front.signature import FedBlock, takes
from recipes.running.trainer import TrainerConfig

if TYPE_CHECKING:
    from rl.envs.hybrid import HybridSimulator

SB3 = "sb3"  # a method of its own: Stable-Baselines3's PPO on the flattened simulator
SB3_READS = ("hidden", "learning_rate", "discount")  # of a training
SB3_NEEDS = {"estimator": "score", "cross": "full", "branch": False}  # of the simulator: nothing but to be played
AUTO = "auto"  # the estimator that is advised for the simulator


@dataclass
class Simulator:
    """What is simulated.

    Attributes:
        class_path: A subclass of rl.envs.HybridSimulator, or a function annotated to return one.
        init_args: Its arguments.
    """

    class_path: str = "rl.envs.inventory.single_item"
    init_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Episodes:
    """How many episodes are simulated.

    Attributes:
        batch_size: Episodes of an update, of all devices together.
        updates_per_epoch: Updates between two validations.
        group_size: Episodes that share a seed; the other numbers are multiples of it.
        validation_episodes: Episodes of a validation, the same each time.
        test_episodes: Episodes of the test.
    """

    batch_size: int = 128
    updates_per_epoch: int = 50
    group_size: int = 64
    validation_episodes: int = 1024
    test_episodes: int = 4096

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be dealt out."""
        for name in ("batch_size", "updates_per_epoch", "group_size", "validation_episodes", "test_episodes"):
            check_positive(getattr(self, name), name)
        for name in ("batch_size", "validation_episodes", "test_episodes"):
            if getattr(self, name) % self.group_size:
                raise FieldError(
                    name, f"expected a multiple of group_size, {self.group_size}, got {getattr(self, name)}"
                )


@takes(
    "rl.hpo.module:HPOModule",
    leave_out={
        "simulator": "the block simulator says what is simulated",
        "simulator_args": "the block simulator has them as init_args",
        "seed": "the keys seed and seeds of the recipe seed every training",
        "networks": "a network is no plain value",
        "optimizer": "a function is no plain value",
        "reference": "the block reference says what costs are compared with, on the very episodes of each stage",
    },
)
@dataclass
class Training(FedBlock):
    """How a policy is trained: every argument of rl.hpo.HPOModule."""

    if TYPE_CHECKING:  # what the recipe itself reads of the module's arguments
        estimator: str = field(init=False)
        cross: str = field(init=False)
        branch: bool = field(init=False)
        hidden: list[int] = field(init=False)
        diagnose_every: int = field(init=False)

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        if not self.hidden:
            raise FieldError("hidden", "expected at least one width, got none")
        if self.cross == "auto" and not self.diagnose_every:
            raise FieldError("diagnose_every", "expected 1 or more for cross auto, which measures, got 0")
        if self.estimator == "score" and self.branch:
            raise FieldError("branch", "expected false for estimator score, which has no value of a mode, got true")


@dataclass
class Reference:
    """What costs are compared with: the best known of a simulator of ours, a cost, or a policy of your own.

    Attributes:
        cost: Optimal cost as the simulator reports it, or the best one known; null looks it up or plays the policy.
        policy: Import path of a function that takes the simulator and returns what decides: a function of state and
            step that gives modes and actions. It is played on the same episodes as what is trained.
        name: What the report calls either.
    """

    cost: float | None = None
    policy: str | None = None
    name: str = "reference"

    def __post_init__(self) -> None:
        """Refuse two references at once."""
        if self.cost is not None and not math.isfinite(self.cost):
            raise FieldError("cost", f"expected a finite number, got {self.cost}")
        if self.cost == 0:
            raise FieldError("cost", "expected a number other than 0, as gaps are in units of it, got 0")
        if self.cost is not None and self.policy is not None:
            raise FieldError("policy", f"expected none beside a cost, {self.cost}, got {self.policy}")


@dataclass
class Recipe:
    """Train hybrid policies and measure their gap to the optimum.

    Attributes:
        recipe: Always hpo.
        name: Name of the run.
        seed: First seed, of initial weights and episodes.
        seeds: How many seeds are trained.
        simulator: What is simulated.
        training: How every method is trained, where it does not say otherwise.
        methods: Methods by name, each the changes of training that make it; sb3 is Stable-Baselines3's PPO, and auto
            begins with what is advised for the simulator.
        reference: What costs are compared with.
        episodes: How many episodes.
        trainer: Arguments of lightning.Trainer.
    """

    recipe: Literal["hpo"] = "hpo"
    name: str = "inventory"
    seed: int = 0
    seeds: int = 1
    simulator: Simulator = field(default_factory=Simulator)
    training: Training = field(default_factory=Training)
    methods: dict[str, dict[str, Any]] = field(default_factory=lambda: {"hpo": {}})
    reference: Reference = field(default_factory=Reference)
    episodes: Episodes = field(default_factory=Episodes)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=20))

    def __post_init__(self) -> None:
        """Refuse methods that change what training does not have."""
        check_name(self.name, "name")
        check_seed(self.seed)
        check_positive(self.seeds, "seeds")
        if self.seed + self.seeds - 1 > LAST_SEED:
            raise FieldError("seeds", f"expected seed + seeds to stay below {LAST_SEED + 2}, got {self.seeds}")
        if self.trainer.gradient_clip_val:
            raise FieldError("trainer.gradient_clip_val", "expected none: training.max_norm limits the gradients")
        if self.trainer.accumulate_grad_batches != 1:
            raise FieldError(
                "trainer.accumulate_grad_batches", "expected 1: episodes.batch_size says what an update is"
            )
        if not self.methods:
            raise FieldError("methods", "expected at least one, got none")
        for name, changes in self.methods.items():
            check_name(name, f"methods.{name}")
            for key in changes:
                known = [item.name for item in dataclasses.fields(Training)]
                if key not in known:
                    raise FieldError(f"methods.{name}.{key}", f"unknown key; {did_you_mean(key, known)}")
                if name == SB3 and key not in SB3_READS:
                    raise FieldError(
                        f"methods.{name}.{key}", f"Stable-Baselines3's PPO does not read it, but {', '.join(SB3_READS)}"
                    )
            try:
                dataclasses.replace(self.training, **changes)
            except FieldError as error:
                raise FieldError(f"methods.{name}.{error.where}", error.message) from error


def training_of(recipe: Recipe, method: str, advised: Mapping[str, object] | None = None) -> Training:
    """How a method trains.

    Args:
        recipe: The recipe.
        method: One of its methods.
        advised: What `rl.hpo.advise` says of the simulator, for the method auto; its own changes come first.
    """
    first = {SB3: SB3_NEEDS, AUTO: advised or {}}.get(method, {})
    changes: dict[str, Any] = {**first, **recipe.methods[method]}
    return dataclasses.replace(recipe.training, **changes)


class Cell(NamedTuple):
    """One training: a method from a seed."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.method}-{self.seed}"


def cells(recipe: Recipe) -> list[Cell]:
    """Every training of a recipe."""
    return [Cell(method, seed) for method in recipe.methods for seed in range(recipe.seed, recipe.seed + recipe.seeds)]


def make_simulator(recipe: Recipe) -> HybridSimulator:
    """The simulator of a recipe."""
    from rl.hpo.simulators import load_simulator

    return load_simulator(recipe.simulator.class_path, recipe.simulator.init_args)
