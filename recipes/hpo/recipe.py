"""Train hybrid discrete-continuous policies in a differentiable simulator, and measure their gap to the optimum.

``python -m recipes.run hpo.yaml`` trains a policy for the single-item inventory and leaves in the run folder its
checkpoint, ``curves.csv`` (cost and gap against simulator steps and seconds), the table of gaps on test episodes and a
picture of the policy. With ``methods`` (changes of the training), ``grid`` (values of one argument of the simulator)
and ``seeds``, every combination is a cell of its own: a finished cell is not trained again by ``--resume``, and the
interrupted one goes on from its newest checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError, check_name, check_positive
from recipes.front.schema import did_you_mean
from recipes.running.environment import process_rank
from recipes.running.files import write_json
from recipes.running.quiet import hush_libraries
from recipes.running.trainer import TrainerConfig, build_trainer

if TYPE_CHECKING:
    from recipes.running.folder import RunFolder

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


def check(recipe: Recipe) -> Iterator[str]:
    """Make every simulator and try it; write nothing."""
    from rl.envs.check import check_simulator
    from rl.hpo.estimators import check_options
    from rl.hpo.module import HPOModule

    _check_devices(recipe)
    estimators = {}
    for method, changes in recipe.methods.items():
        training = dataclasses.replace(recipe.training, **changes)
        try:
            check_options(HPOModule.__init__, dataclasses.asdict(training))
        except ValueError as error:
            raise RecipeError(f"training (method {method}): {error}") from error
        if method != SB3:  # it takes no gradient of the simulator
            estimators[method] = training.estimator
    # The score function needs the least of a simulator, and all the others need the same.
    asked = next((each for each in estimators.items() if each[1] != "score"), ("", "score"))
    for value in recipe.grid.each():
        try:
            simulator = make_simulator(recipe, value)
        except ValueError as error:
            raise RecipeError(f"simulator: {error}") from error
        try:
            notes = check_simulator(simulator, estimator=asked[1])
        except ValueError as error:
            raise RecipeError(f"simulator: {error}" + (f" (method {asked[0]})" if asked[0] else "")) from error
        where = "" if value is None else f" at {recipe.grid.argument} {value}"
        yield (
            f"simulator {recipe.simulator.class_path}{where}: {simulator.n_modes} modes, {simulator.action_dim} "
            f"continuous actions, {simulator.horizon} steps{_listed(notes)}"
        )
    if SB3 in recipe.methods:
        import importlib.util

        if importlib.util.find_spec("stable_baselines3") is None:
            raise RecipeError(f"methods.{SB3}: Stable-Baselines3 is not installed; pip install 'gapbridge[peers]'")
    updates = (recipe.trainer.max_epochs or 0) * recipe.episodes.updates_per_epoch
    steps = updates * recipe.episodes.batch_size * simulator.horizon
    yield f"plan: {len(cells(recipe))} trainings of {updates} updates, {steps:,} simulator steps each"


def _check_devices(recipe: Recipe) -> None:
    """Refuse a batch that cannot be dealt out to the devices, before anything is simulated."""
    devices = recipe.trainer.devices
    count = devices if isinstance(devices, int) else len(devices) if isinstance(devices, list) else 1
    count = max(count, 1) * recipe.trainer.num_nodes
    for name in ("batch_size", "validation_episodes", "test_episodes"):
        episodes, size = getattr(recipe.episodes, name), recipe.episodes.group_size
        if (episodes // size) % count:
            raise RecipeError(
                f"episodes.{name}: {episodes} episodes in groups of group_size {size} cannot be dealt out to {count} "
                f"devices evenly; give a batch_size that is a multiple of group_size times devices, or a smaller "
                "group_size".replace("batch_size", name)
            )


def _listed(notes: list[str]) -> str:
    return f"; {'; '.join(notes)}" if notes else ""


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Train every cell, then report."""
    from recipes.hpo.report import report

    hush_libraries()
    rows = []
    for cell in cells(recipe):
        where = folder.path / "cells" / f"{cell.name}.json"
        if where.is_file():
            row = json.loads(where.read_text(encoding="utf-8"))
            folder.say(f"{cell.name}: found, gap {_percent(row['gap'])}")
        else:
            row = train_cell(recipe, cell, folder)
            folder.say(f"{cell.name}: test cost {row['cost']:.4g}, gap {_percent(row['gap'])}")
        rows.append(row)
    report(recipe, rows, folder)


def _percent(gap: float | None) -> str:
    return "unknown" if gap is None else f"{gap:+.2%}"


def train_cell(recipe: Recipe, cell: Cell, folder: RunFolder) -> dict[str, Any]:
    """Train one method on one simulator from one seed, and test its last policy.

    Args:
        recipe: The recipe.
        cell: Which training.
        folder: Run folder, for progress, metrics, checkpoints and the cell's own file.

    Returns:
        The cell's row: cost and gap on the test episodes, the best known policy's cost on them, and the curve.

    Raises:
        RunError: When the simulator breaks its protocol.
    """
    from rl.errors import SimulatorError
    from rl.hpo.best_known import best_known
    from rl.hpo.data import SeedDataModule
    from rl.hpo.module import HPOModule

    arguments = {**recipe.simulator.init_args, **({} if cell.value is None else {recipe.grid.argument: cell.value})}
    training = dataclasses.replace(recipe.training, **recipe.methods[cell.method])
    module = HPOModule(recipe.simulator.class_path, arguments, **dataclasses.asdict(training), seed=cell.seed)
    data = SeedDataModule(**dataclasses.asdict(recipe.episodes), seed=cell.seed)
    noises = {
        split: module.draw(next(iter(loader)), greedy=True, noisy=False)[0]
        for split, loader in (("validation", data.val_dataloader()), ("test", data.test_dataloader()))
    }
    known = {split: best_known(module.simulator, noise) for split, noise in noises.items()}
    module.references = {split: found.cost for split, found in known.items() if found is not None}
    start = time.monotonic()
    try:
        train = _train_sb3 if cell.method == SB3 else _train
        tested, curve = train(recipe, cell, module, data, noises, folder)
    except SimulatorError as error:
        raise RunError(f"simulator: {error}") from error
    best = known["test"]
    row = {
        "method": cell.method,
        "value": cell.value,
        "seed": cell.seed,
        **tested,
        "gap": None if best is None else tested["cost"] / best.cost - 1,
        "reference": None if best is None else best.name,
        "reference_cost": None if best is None else best.cost,
        "others": {} if best is None else best.others,
        "simulator_steps": curve[-1]["simulator_steps"] if curve else 0,
        "seconds": curve[-1]["seconds"] if curve else time.monotonic() - start,
        "curve": curve,
    }
    if process_rank() == 0:
        write_json(folder.path / "cells" / f"{cell.name}.json", row)
    return row


Trained = tuple[dict[str, float], list[dict[str, Any]]]  # costs on the test episodes, and the learning curve


def _train(recipe: Recipe, cell: Cell, module: Any, data: Any, noises: dict[str, Any], folder: RunFolder) -> Trained:
    """Train by Lightning, and save the last policy."""
    from recipes.hpo.curves import Curve

    curve = Curve(recipe.episodes.batch_size * module.simulator.horizon)
    config = dataclasses.replace(
        recipe.trainer,
        enable_model_summary=bool(recipe.trainer.enable_model_summary),
        log_every_n_steps=recipe.trainer.log_every_n_steps or 1,  # an update simulates whole episodes: a line is cheap
        num_sanity_val_steps=0,
    )
    trainer = build_trainer(config, folder, cell.name, callbacks=[curve])
    resume = None
    if folder.resume and folder.resume.parent == folder.checkpoints / cell.name:
        resume = folder.resume
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    tested = trainer.test(module, datamodule=data, verbose=False)[0]
    trainer.save_checkpoint(folder.path / "policies" / f"{cell.name}.ckpt", weights_only=True)
    return {name: tested[f"test/{name}"] for name in ("cost", "sampled_cost")}, curve.rows


def _train_sb3(
    recipe: Recipe, cell: Cell, module: Any, data: Any, noises: dict[str, Any], folder: RunFolder
) -> Trained:
    """Train by Stable-Baselines3 for as many simulator steps, from the start: it cannot go on in the middle."""
    from recipes.hpo.sb3 import cost_of, train_sb3

    simulator, episodes, rows = module.simulator, recipe.episodes, []
    updates = (recipe.trainer.max_epochs or 1) * episodes.updates_per_epoch
    start = time.monotonic()
    with folder.phase(f"train {cell.name}", updates) as progress:

        def report(done: int, model: Any) -> None:
            progress.update(done)
            steps = {"updates": done, "simulator_steps": done * episodes.batch_size * simulator.horizon}
            point = {
                **steps,
                "seconds": time.monotonic() - start,
                "cost": cost_of(model, simulator, noises["validation"]),
            }
            if "validation" in module.references:
                point["gap"] = point["cost"] / module.references["validation"] - 1
            rows.append(point)

        model = train_sb3(
            simulator,
            updates=updates,
            batch=episodes.batch_size,
            seed=cell.seed,
            hidden=list(module.hparams["hidden"]),
            learning_rate=module.hparams["learning_rate"],
            discount=module.discount,
            every=episodes.updates_per_epoch,
            report=report,
        )
    return {"cost": cost_of(model, simulator, noises["test"])}, rows
