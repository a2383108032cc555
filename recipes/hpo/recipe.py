"""Train hybrid discrete-continuous policies in a differentiable simulator, and measure their gap to the optimum.

``python -m recipes.run hpo.yaml`` trains a policy for the single-item inventory and leaves in the run folder its
checkpoint, ``curves.csv`` (cost and gap against simulator steps and seconds), the table of gaps on test episodes and a
picture of the policy. With ``methods`` (changes of the training) and ``seeds``, every combination is a cell of its own:
a finished cell is not trained again by ``--resume``, and the interrupted one goes on from its newest checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError
from recipes.front.schema import show
from recipes.hpo.reference import known as reference_of
from recipes.hpo.schema import AUTO, SB3, Cell, Recipe, cells, make_simulator, training_of
from recipes.running.environment import process_rank
from recipes.running.files import write_json
from recipes.running.lengths import check_batches
from recipes.running.quiet import hush_libraries
from recipes.running.seals import seal, sealed
from recipes.running.trainer import TrainerConfig, build_trainer, check_trainer

if TYPE_CHECKING:
    from pathlib import Path

    from recipes.running.folder import RunFolder
    from rl.envs.hybrid import HybridSimulator, Noise
    from rl.hpo.data import SeedDataModule
    from rl.hpo.module import HPOModule

__all__ = ["Recipe", "check", "run"]


def check(recipe: Recipe) -> Iterator[str]:
    """Make the simulator and try it; write nothing."""
    from rl.hpo.advice import advise

    devices, updates = _check_devices(recipe)
    asked = _check_methods(recipe)
    simulator, notes = _checked(recipe, asked)
    advice = advise(simulator, smooth=asked[1] != "score")  # the check above has looked for what it looks for
    _check_trainings(recipe, simulator, advice.options, devices)
    modes = f"{len(simulator.heads)} heads" if simulator.heads else f"{simulator.n_modes} modes"
    yield (
        f"simulator {recipe.simulator.class_path}: {modes}, {simulator.action_dim} "
        f"continuous actions, {simulator.horizon} steps{_listed(notes)}"
    )
    yield f"advice: estimator {advice.options['estimator']}, for {advice.reason}"
    if SB3 in recipe.methods:
        import importlib.util

        if importlib.util.find_spec("stable_baselines3") is None:
            raise RecipeError(f"methods.{SB3}: Stable-Baselines3 is not installed; pip install 'gapbridge[peers]'")
        if updates is None:
            raise RecipeError(f"methods.{SB3}: it trains a number of updates; give trainer.max_epochs without max_time")
    count = len(cells(recipe))
    if updates is None:
        yield f"plan: {count} trainings until trainer.max_time"
        return
    steps = updates * recipe.episodes.batch_size * simulator.horizon
    yield f"plan: {count} trainings of {updates} updates, {steps:,} simulator steps each"


def _check_methods(recipe: Recipe) -> tuple[str, str]:
    """Refuse methods that contradict themselves; the method that asks most of the simulator, and its estimator."""
    from rl.hpo.estimators import check_options

    asked = "", "score"
    for method in recipe.methods:
        training = training_of(recipe, method)
        try:
            check_options(training.arguments())
        except ValueError as error:
            raise RecipeError(f"training (method {method}): {error}") from error
        # The score function needs the least of a simulator, and all the others need the same. Auto takes what the
        # simulator has, unless it is told otherwise.
        if asked[1] == "score" and (method != AUTO or "estimator" in recipe.methods[AUTO]):
            asked = (method, training.estimator) if training.estimator != "score" else asked
    return asked


def _checked(recipe: Recipe, asked: tuple[str, str]) -> tuple[HybridSimulator, list[str]]:
    """A simulator that was tried for what its methods ask of it, beside its reference; what was checked."""
    from rl.envs.check import check_simulator

    try:
        simulator = make_simulator(recipe)
    except ValueError as error:
        raise RecipeError(f"simulator: {error}") from error
    try:
        notes = check_simulator(simulator, estimator=cast(Any, asked[1]))
    except Exception as error:  # whatever a user's own code raises
        method = f" (method {asked[0]})" if asked[0] else ""
        raise RecipeError(f"simulator: {_told(error, simulator)}{method}") from error
    if recipe.reference.policy is not None:
        import torch

        reference_of(recipe.reference, simulator, simulator.sample_noise(8, torch.Generator().manual_seed(0)))
    return simulator, notes


def _check_trainings(recipe: Recipe, simulator: HybridSimulator, advised: dict[str, object], devices: int) -> None:
    """Refuse what a method asks of this simulator or of these episodes in vain."""
    from rl.hpo.estimators import check_minibatches, check_options

    size = recipe.episodes.group_size
    groups = recipe.episodes.batch_size // size // devices
    for method in recipe.methods:
        try:
            arguments = training_of(recipe, method, advised).arguments()
        except FieldError as error:
            raise RecipeError(f"methods.{method}: estimator score is advised: training.{error}") from error
        try:
            check_options(arguments, simulator)
            if method != SB3:
                check_minibatches(arguments, groups, size, simulator.horizon - simulator.buffer, devices)
        except ValueError as error:
            raise RecipeError(f"training (method {method}): {error}") from error


def _told(error: Exception, simulator: HybridSimulator) -> str:
    """A refusal as it is; of any other error of a simulator's code what it says, and where."""
    if isinstance(error, ValueError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    module = sys.modules[type(simulator).__module__]
    own = [frame for frame in frames if frame.filename == getattr(module, "__file__", None)] or frames
    reason = " ".join(str(error).split()).rstrip(".")
    return f"{own[-1].name} fails with {type(error).__name__} ({reason}), at {own[-1].filename}:{own[-1].lineno}"


def _check_devices(recipe: Recipe) -> tuple[int, int | None]:
    """Refuse a trainer that cannot be, or a batch that cannot be dealt out to it; devices, updates of a training."""
    config = _config(recipe)
    count = check_trainer(config, scores=("test",))
    if config.endless:
        raise RecipeError(
            f"trainer.max_epochs: expected a number of epochs, trainer.max_steps or trainer.max_time, got "
            f"{show(config.max_epochs)}"
        )
    every, updates = config.val_check_interval, recipe.episodes.updates_per_epoch
    if isinstance(every, int) and every > updates and config.check_val_every_n_epoch is not None:
        raise RecipeError(
            f"trainer.val_check_interval: expected at most episodes.updates_per_epoch, {updates}, got {every}"
        )
    for name in ("batch_size", "validation_episodes", "test_episodes"):
        episodes, size = getattr(recipe.episodes, name), recipe.episodes.group_size
        if (episodes // size) % count:
            raise RecipeError(
                f"episodes.{name}: {episodes} episodes in groups of group_size {size} cannot be dealt out to {count} "
                f"devices evenly; give a batch_size that is a multiple of group_size times devices, or a smaller "
                "group_size".replace("batch_size", name)
            )
    return count, check_batches(config, {"train": updates, "validation": 1, "test": 1})


def _config(recipe: Recipe) -> TrainerConfig:
    """The trainer of every cell."""
    return dataclasses.replace(
        recipe.trainer,
        log_every_n_steps=recipe.trainer.log_every_n_steps or 1,  # an update simulates whole episodes: a line is cheap
        num_sanity_val_steps=0,
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
        parts = [where] if cell.method == SB3 else [where, policy_of(folder.path, cell.name)]
        broken = [part for part in parts if where.is_file() and not sealed(part)]
        if broken:
            folder.say(f"{broken[0]} is not what this run wrote: the cell is trained again")
        if where.is_file() and not broken:
            row = json.loads(where.read_text(encoding="utf-8"))
            folder.say(f"{cell.name}: found, gap {_percent(row['gap'])}")
        else:
            row = train_cell(recipe, cell, folder)
            folder.say(f"{cell.name}: test cost {row['cost']:.4g}, gap {_percent(row['gap'])}")
        rows.append(row)
    report(recipe, rows, folder)


def finished(path: Path) -> list[str]:
    """Names of the cells of a run folder that are trained."""
    return sorted(file.stem for file in (path / "cells").glob("*.json"))


def policy_of(path: Path, cell: str) -> Path:
    """Where the last policy of a cell is in a run folder."""
    return path / "policies" / f"{cell}.ckpt"


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
    import lightning

    from rl.envs.hybrid import relative_gap
    from rl.errors import SimulatorError
    from rl.hpo.advice import advise
    from rl.hpo.data import SeedDataModule
    from rl.hpo.module import HPOModule

    lightning.seed_everything(cell.seed, workers=True, verbose=False)  # a user's simulator may draw from what is global
    simulator = make_simulator(recipe)
    training = training_of(recipe, cell.method, advise(simulator).options if cell.method == AUTO else None)
    module = HPOModule(recipe.simulator.class_path, recipe.simulator.init_args, **training.arguments(), seed=cell.seed)
    data = SeedDataModule(**dataclasses.asdict(recipe.episodes), seed=cell.seed)
    noises = {
        split: module.draw(next(iter(loader)), greedy=True, noisy=False)[0]
        for split, loader in (("validation", data.val_dataloader()), ("test", data.test_dataloader()))
    }
    known = {split: reference_of(recipe.reference, module.simulator, noise) for split, noise in noises.items()}
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
        "seed": cell.seed,
        **tested,
        "gap": None if best is None else relative_gap(tested["cost"], best.cost),
        "reference": None if best is None else best.name,
        "reference_cost": None if best is None else best.cost,
        "others": {} if best is None else best.others,
        "simulator_steps": curve[-1]["simulator_steps"] if curve else 0,
        "seconds": curve[-1]["seconds"] if curve else time.monotonic() - start,
        "curve": curve,
    }
    if process_rank() == 0:
        write_json(folder.path / "cells" / f"{cell.name}.json", row)
        seal(folder.path / "cells" / f"{cell.name}.json")
    return row


Trained = tuple[dict[str, float], list[dict[str, Any]]]  # costs on the test episodes, and the learning curve


def _train(
    recipe: Recipe, cell: Cell, module: HPOModule, data: SeedDataModule, noises: dict[str, Noise], folder: RunFolder
) -> Trained:
    """Train by Lightning, and save the last policy."""
    from recipes.hpo.curves import Curve

    curve = Curve(recipe.episodes.batch_size * module.simulator.horizon)
    trainer = build_trainer(_config(recipe), folder, cell.name, callbacks=[curve])
    trainer.fit(module, datamodule=data, ckpt_path=folder.checkpoint_of(cell.name))
    tested = trainer.test(module, datamodule=data, verbose=False)[0]
    trainer.save_checkpoint(policy_of(folder.path, cell.name), weights_only=True)
    if trainer.is_global_zero:
        seal(policy_of(folder.path, cell.name))
    return {name: tested[f"test/{name}"] for name in ("cost", "sampled_cost")}, curve.rows


def _train_sb3(
    recipe: Recipe, cell: Cell, module: HPOModule, data: SeedDataModule, noises: dict[str, Noise], folder: RunFolder
) -> Trained:
    """Train by Stable-Baselines3 for as many simulator steps, from the start: it cannot go on in the middle."""
    from recipes.hpo.sb3 import cost_of, train_sb3
    from rl.envs.hybrid import relative_gap

    simulator, episodes, rows = module.simulator, recipe.episodes, []
    updates = cast(int, _check_devices(recipe)[1])
    start = time.monotonic()
    with folder.phase(f"train {cell.name}", updates) as progress:

        def report(done: int, model: object) -> None:
            progress.update(done)
            steps = {"updates": done, "simulator_steps": done * episodes.batch_size * simulator.horizon}
            point = {
                **steps,
                "seconds": time.monotonic() - start,
                "cost": cost_of(model, simulator, noises["validation"]),
            }
            if "validation" in module.references:
                point["gap"] = relative_gap(point["cost"], module.references["validation"])
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
