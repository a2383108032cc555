"""What an hpo recipe says: the simulator, the training, the methods and the grid of trainings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from recipes.fields import FieldError, check_name, check_positive
from recipes.front.schema import did_you_mean
from recipes.running.trainer import TrainerConfig

SB3 = "sb3"  # a method of its own: Stable-Baselines3's PPO on the flattened simulator


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


@dataclass
class Training:
    """How a policy is trained; the arguments of rl.hpo.HPOModule.

    Attributes:
        estimator: mixed (HPO), score (hybrid PPO), pathwise or straight_through.
        cross: Whether the scores' gradient reaches the continuous policy: full, off, or auto by its signal.
        branch: Advantages of all modes from one simulated step of each.
        stochastic: Reparametrised Gaussian continuous actions in training.
        window: Steps after which states are detached and valued by the critic; 0 for whole episodes.
        hidden: Widths of the layers of each network.
        learning_rate: Of the continuous policy.
        discrete_rate: Of the modes' policy.
        critic_rate: Of the value.
        final_rate: Fraction of the rates that is left at the end.
        entropy_start: Weight of the modes' entropy at the start.
        entropy_end: At the end.
        discount: Of the advantages; null takes the simulator's.
        trace: Lambda of the advantages.
        reuse: Passes over the episodes after the first step.
        minibatches: Steps of a pass.
        clip: PPO's epsilon.
        kl_limit: Above this divergence the modes stand still for the rest of the passes.
        max_norm: Largest gradient norm of each network.
        temperature: Of straight_through.
        log_std: Initial log standard deviation of Gaussian actions.
        diagnose_every: Updates between two gradient reports; 0 for none.
        compile_step: Compile the simulator's step.
    """

    estimator: Literal["mixed", "score", "pathwise", "straight_through"] = "mixed"
    cross: Literal["full", "off", "auto"] = "full"
    branch: bool = False
    stochastic: bool = False
    window: int = 0
    hidden: list[int] = field(default_factory=lambda: [64, 64])
    learning_rate: float = 3e-3
    discrete_rate: float = 5e-3
    critic_rate: float = 3e-3
    final_rate: float = 0.0
    entropy_start: float = 0.5
    entropy_end: float = 0.0
    discount: float | None = None
    trace: float = 0.98
    reuse: int = 1
    minibatches: int = 4
    clip: float = 0.15
    kl_limit: float = 0.015
    max_norm: float = 5.0
    temperature: float = 1.0
    log_std: float = -0.5
    diagnose_every: int = 50
    compile_step: bool = False

    def __post_init__(self) -> None:
        """Refuse what no training could use."""
        for key in ("learning_rate", "discrete_rate", "critic_rate", "clip", "kl_limit", "max_norm", "temperature"):
            check_positive(getattr(self, key), key)
        if not self.hidden or min(self.hidden) < 1:
            raise FieldError("hidden", f"expected at least one width of 1 or more, got {self.hidden}")
        if self.cross == "auto" and not self.diagnose_every:
            raise FieldError("diagnose_every", "expected 1 or more for cross auto, which measures, got 0")


@dataclass
class Grid:
    """One argument of the simulator that takes several values.

    Attributes:
        argument: Its name.
        values: Its values; none trains on the simulator as it is.
    """

    argument: str = "dimension"
    values: list[int] = field(default_factory=list)

    def each(self) -> Sequence[int | None]:
        """The values, or None alone for a simulator that is taken as it is."""
        return self.values or [None]


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
        methods: Methods by name, each the changes of training that make it; sb3 is Stable-Baselines3's PPO.
        grid: Values of one argument of the simulator.
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
    grid: Grid = field(default_factory=Grid)
    episodes: Episodes = field(default_factory=Episodes)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=20))

    def __post_init__(self) -> None:
        """Refuse methods that change what training does not have."""
        check_name(self.name, "name")
        check_positive(self.seeds, "seeds")
        if not self.methods:
            raise FieldError("methods", "expected at least one, got none")
        for name, changes in self.methods.items():
            check_name(name, f"methods.{name}")
            for key in changes:
                known = [item.name for item in dataclasses.fields(Training)]
                if key not in known:
                    raise FieldError(f"methods.{name}.{key}", f"unknown key; {did_you_mean(key, known)}")
            try:
                dataclasses.replace(self.training, **changes)
            except FieldError as error:
                raise FieldError(f"methods.{name}.{error.where}", error.message) from error


class Cell(NamedTuple):
    """One training: a method on a simulator from a seed."""

    method: str
    value: int | None
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return "-".join(str(part) for part in self if part is not None)


def cells(recipe: Recipe) -> list[Cell]:
    """Every training of a recipe."""
    return [
        Cell(method, value, seed)
        for value in recipe.grid.each()
        for method in recipe.methods
        for seed in range(recipe.seed, recipe.seed + recipe.seeds)
    ]


def make_simulator(recipe: Recipe, value: int | None = None) -> Any:
    """The simulator of a recipe, with one value of its grid."""
    from rl.hpo.simulators import load_simulator

    arguments = {**recipe.simulator.init_args, **({} if value is None else {recipe.grid.argument: value})}
    return load_simulator(recipe.simulator.class_path, arguments)
