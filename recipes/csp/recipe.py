"""Adapt a policy to a target known only through data, for the worst target that agrees with the data.

``python -m recipes.run csp.yaml`` records (or reads) the target's data, trains Constrained Self-Play and its baselines
on the same budget, sweeps the constraint, and leaves in the run folder every policy, the value ladder, the coverage of
the data, the consistency of the proxies over the whole run, and a replay against every named adversary. Values that an
exact solver gave are called exact or certified; those that learned adversaries gave, estimated (optimistic). A trained
policy is not trained again by ``--resume``, and an interrupted one goes on from its newest checkpoint. Card games are
solved exactly, see :mod:`recipes.csp.cards`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from recipes.csp.games import CARDS, Scenario, build, missing_package
from recipes.csp.schema import Recipe
from recipes.csp.words import file_name
from recipes.errors import RecipeError, RunError
from recipes.running.environment import process_rank
from recipes.running.files import write_json
from recipes.running.lengths import check_batches
from recipes.running.quiet import hush_libraries
from recipes.running.seals import seal, sealed
from recipes.running.trainer import build_trainer, check_trainer

if TYPE_CHECKING:
    from recipes.running.folder import RunFolder
    from rl.csp.module import CSPModule
    from rl.csp.pairs import Pairs
    from rl.envs.markov_game import BatchedGame

__all__ = ["Recipe", "check", "run"]
FIXED = (
    "trainer.max_epochs",
)  # it divides the iterations: another number would mean other epochs, not a longer training


# ------------------------------------------------------------------ pre-flight


def check(recipe: Recipe) -> Iterator[str]:
    """Make the game, read the data, say what is trained; write nothing."""
    if package := missing_package(recipe.game.name):
        raise RecipeError(
            f"game.name: {recipe.game.name} needs {package}, which is not installed; see the extra 'games'"
        )
    if recipe.game.name in CARDS:
        yield f"game: {recipe.game.name}, solved exactly"
        yield f"data: {recipe.data.episodes} games with {recipe.data.behaviour} behaviour of our seat"
        return
    scenario = _scenario(recipe, RecipeError)
    ours, theirs = scenario.game.seats
    yield f"game: {type(scenario.game).__name__}, we are {ours}, the target is {theirs}"
    if recipe.game.name == "own":
        yield from (f"game: {line}" for line in _play_own(scenario.game))
    if recipe.data.path:
        from rl.csp.copies import data_warnings
        from rl.csp.dataset import check_dataset, load_data
        from rl.csp.scales import scale_warnings

        try:
            data = load_data(recipe.data.path)
            yield from (f"data: {line}" for line in check_dataset(data, scenario.game))
            told = [*data_warnings(data.pairs()), *scale_warnings(data.pairs(), scenario.game)]
            yield from (f"data: warning: {line}" for line in told)
        except (OSError, ValueError) as error:
            raise RecipeError(f"data.path: {error}") from error
    else:
        yield f"data: {recipe.data.episodes} episodes of the shipped target, to be recorded"
    rows = plan(recipe)
    updates = _check_training(recipe, scenario, rows)
    length = "as many iterations as trainer.max_time allows" if updates is None else f"{updates} iterations"
    yield f"plan: {len(rows)} trainings of {length}: {', '.join(rows)}"


def _check_training(recipe: Recipe, scenario: Scenario, rows: dict[str, dict[str, Any]]) -> int | None:
    """Make every module that would be trained, on the data or on two recorded episodes, and the trainer.

    Returns:
        The iterations of a training; None where its end is a time.
    """
    import torch

    from rl.csp.dataset import record_target
    from rl.csp.loading import load_pairs
    from rl.csp.module import CSPModule

    processes = check_trainer(recipe.trainer, scores=("training",))
    for key, episodes in (
        ("adaptation.episodes", recipe.adaptation.episodes),
        ("attack.test_episodes", recipe.attack.test_episodes),
    ):
        if episodes % processes:
            raise RecipeError(
                f"{key}: {episodes} episodes cannot be dealt out to {processes} processes; give a multiple"
            )
    every, per_epoch = (
        recipe.trainer.val_check_interval,
        recipe.adaptation.iterations // (recipe.trainer.max_epochs or 1),
    )
    if isinstance(every, int) and every > per_epoch and recipe.trainer.check_val_every_n_epoch is not None:
        raise RecipeError(
            f"trainer.val_check_interval: expected at most {per_epoch}, the iterations of an epoch, got {every}"
        )
    if recipe.data.path:
        pairs = load_pairs(recipe.data.path, scenario.game)
    else:
        seat = torch.Generator().manual_seed(recipe.seed)
        pairs = record_target(
            scenario.recorded, cast("Any", scenario.ours), cast("Any", scenario.target), 2, seat
        ).pairs()
    for row, changes in rows.items():
        model = scenario.true_target() if row == "oracle" else None
        arguments = recipe.adaptation.arguments() | changes
        try:
            CSPModule(scenario.game, pairs, model=model, seed=recipe.seed, **arguments)
        except ValueError as error:
            raise RecipeError(f"adaptation ({row}): {error}") from error
    return check_batches(recipe.trainer, {"train": per_epoch, "validation": 1})


def _play_own(game: BatchedGame) -> list[str]:
    """Try a user's game in random episodes, in which its faults show that training would only stumble on."""
    from rl.envs import ParallelGame, check_game, check_parallel_env
    from rl.trial import reason_of

    try:
        if isinstance(game, ParallelGame):
            sides = game.agents["ours"], game.agents["target"]
            return check_parallel_env(game.new_environment, *sides, game.horizon, must_end=False, must_repeat=False)
        return check_game(game, must_repeat=False)
    except ValueError as error:
        raise RecipeError(f"game: {error}") from error
    except Exception as error:  # whatever a user's own code raises
        raise RecipeError(
            f"game: it fails in random episodes ({type(error).__name__}: {reason_of(error)}); rl.envs.check_game plays "
            "them in Python"
        ) from error


def _scenario(recipe: Recipe, error: type[Exception]) -> Scenario:
    try:
        scenario = build(recipe.game.name, recipe.game.class_path, recipe.game.init_args)
    except (ValueError, ImportError) as reason:
        raise error(f"game: {reason}") from reason
    seats = scenario.game.seats
    if recipe.game.target not in ("", seats[1]):
        raise error(f"game.target: the target's seat is {seats[1]!r} and ours {seats[0]!r}, got {recipe.game.target!r}")
    return scenario


def plan(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Every training by the name of its row: what it changes in the module's arguments, `imitation` apart."""
    from rl.csp.baselines import BASELINES

    rows: dict[str, dict[str, object]] = {"csp": {}}
    rows |= {name: BASELINES[name] for name in recipe.baselines or [] if name != "imitation"}
    for value in recipe.sweep.coefficients:
        if value != recipe.adaptation.coefficient:
            rows[f"csp C={value:g}"] = {"coefficient": value}
    for value in recipe.sweep.shares:
        rows[f"rnr p={value:g}"] = BASELINES["rnr"] | {"model_share": value}
    for value in recipe.sweep.limits:
        rows[f"dbr P={value:g}"] = BASELINES["dbr"] | {"gate_limit": value}
    return rows


# ------------------------------------------------------------------ the run


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Data, trainings, values, report."""
    hush_libraries()
    if recipe.game.name in CARDS:
        from recipes.csp import cards

        cards.run(recipe, folder)
        return
    from recipes.csp import report

    scenario = _scenario(recipe, RunError)
    pairs, own = read_or_record(recipe, scenario, folder)
    modules, histories = {}, {}
    for row, changes in plan(recipe).items():
        modules[row], histories[row] = train(recipe, scenario, pairs, row, changes, folder)
    agents = {row: module.agent for row, module in modules.items()}
    if own is not None and "imitation" in (recipe.baselines or []):
        from rl.csp.baselines import imitate

        agents["imitation"] = imitate(modules["csp"], own, recipe.seed)
    report.finish(recipe, scenario, modules["csp"], agents, histories, folder)


def inputs(recipe: Recipe) -> list[Path]:
    """The user's own files that a run reads."""
    told = recipe.game.init_args.get("path") if recipe.game.class_path.endswith(".FileGame") else None
    return [Path(path) for path in (recipe.data.path, told) if path]


def finished(path: Path) -> list[str]:
    """Names of the trainings of a run folder that are finished, as their checkpoints are named."""
    return sorted(file.stem for file in (path / "policies").glob("*.json"))


def read_or_record(recipe: Recipe, scenario: Scenario, folder: RunFolder) -> tuple[Pairs, Pairs | None]:
    """The target's pairs, and our seat's where they are recorded; a recording is kept as `data.npz`."""
    import torch

    from rl.csp.dataset import record_target, save_data
    from rl.csp.loading import load_pairs
    from rl.csp.policies import ScriptedPolicy
    from rl.csp.rollout import pairs_of, play

    if recipe.data.path:
        try:
            return load_pairs(recipe.data.path, scenario.game), None
        except (OSError, ValueError) as error:
            raise RunError(f"data.path: {error}") from error
    if scenario.ours is None or scenario.target is None:
        raise RunError("data.path: this game ships without a target; give a data file")

    generator = torch.Generator().manual_seed(recipe.seed)
    recorded = record_target(scenario.recorded, scenario.ours, scenario.target, recipe.data.episodes, generator)
    if process_rank() == 0:
        save_data(folder.path / "data.npz", recorded)
    policies = (ScriptedPolicy(scenario.ours), ScriptedPolicy(scenario.target))
    generator.manual_seed(recipe.seed)
    episodes = play(scenario.recorded, policies, recipe.data.episodes, generator)
    return recorded.pairs(), pairs_of(episodes, scenario.game.seats[0])


def train(
    recipe: Recipe, scenario: Scenario, pairs: Pairs, row: str, changes: dict[str, Any], folder: RunFolder
) -> tuple[CSPModule, list[dict[str, float]]]:
    """Train one row, or read it when it is there.

    Args:
        recipe: The recipe.
        scenario: Its game.
        pairs: The data.
        row: Name of the row.
        changes: Of the module's arguments.
        folder: Where `policies/<row>.pt` and its history go.

    Returns:
        The module and what it logged, iteration by iteration.
    """
    import lightning
    import torch

    from recipes.csp.history import History
    from rl.csp.data import RolloutDataModule
    from rl.csp.module import CSPModule

    lightning.seed_everything(recipe.seed, workers=True, verbose=False)  # a user's game may draw from what is global
    hp = recipe.adaptation
    model = scenario.true_target() if row == "oracle" else None
    module = CSPModule(scenario.game, pairs, model=model, seed=recipe.seed, **(hp.arguments() | changes))
    name = file_name(row)
    file, log = folder.path / "policies" / f"{name}.pt", folder.path / "policies" / f"{name}.json"
    if log.is_file() and (broken := [part for part in (file, log) if not sealed(part)]):
        folder.say(f"{broken[0]} is not what this run wrote: {row} is trained again")
    elif log.is_file():
        module.load_state_dict(torch.load(file, weights_only=True))
        return module.eval(), json.loads(log.read_text(encoding="utf-8"))
    history = History()
    trainer = build_trainer(recipe.trainer, folder, name, callbacks=[history])
    epochs = max(1, recipe.trainer.max_epochs or 1)
    data = RolloutDataModule(
        max(1, hp.iterations // epochs), hp.episodes, validation_episodes=recipe.attack.test_episodes, seed=recipe.seed
    )
    trainer.fit(module, datamodule=data, ckpt_path=folder.checkpoint_of(name))
    if trainer.is_global_zero:
        file.parent.mkdir(exist_ok=True)
        torch.save(module.state_dict(), file)
        seal(file)
        write_json(log, history.rows)
        seal(log)
    trainer.strategy.barrier()
    module.cpu().eval()
    return module, history.rows
