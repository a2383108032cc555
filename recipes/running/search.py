"""Searches: Optuna chooses the values of a recipe's keys, trial by trial, towards a number that the runs end with."""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.errors import RecipeError, RunError
from recipes.front.parse import Parsed, parse
from recipes.front.schema import did_you_mean
from recipes.front.show import to_yaml
from recipes.running.execute import check
from recipes.running.files import METRICS, write_json, write_text
from recipes.running.folder import RunFolder
from recipes.running.lock import locked
from recipes.running.sweep import (
    ABOUT,
    CELLS,
    MOST,
    RANGE,
    RECIPE,
    Cell,
    Sweep,
    check_inputs,
    check_seeds,
    ended,
    folder_of,
    plan_of,
    run_all,
)
from recipes.running.sweep_table import finish, numbers

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

TRIALS = "trials.json"
LOGGED = "metrics:"  # begins the name of a column of metrics.csv, whose last value counts
_SEEDS = 10_000  # further apart than the trials of one search

Setting = str | int | float


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        plan: Keys with their values or ranges, and the seeds of every trial.
        trials: How many.
        number: What is optimised.
        largest: Whether more is better.
    """

    plan: Sweep
    trials: int
    number: str
    largest: bool

    def spaces(self) -> dict[str, BaseDistribution]:
        """What Optuna draws the keys from: numbers of a range, or one of the values."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        made: dict[str, BaseDistribution] = {}
        for key, values in self.plan.values.items():
            found = RANGE.fullmatch(values[0]) if len(values) == 1 else None
            if found is None:
                made[key] = CategoricalDistribution(values)
                continue
            low, high, log = found.groups()
            whole = all(end.lstrip("+-").isdigit() for end in (low, high))
            try:
                kind = IntDistribution if whole else FloatDistribution
                made[key] = kind(int(low) if whole else float(low), int(high) if whole else float(high), log=bool(log))  # type: ignore[arg-type]
            except ValueError as error:
                raise RecipeError(
                    f"--sweep {key}={values[0]}: {error}; a range is LOW..HIGH or LOW..HIGH:log"
                ) from error
        return made

    def cells(self, settings: Mapping[str, Setting]) -> list[Cell]:
        """The runs of a trial: one for each seed."""
        return [Cell({key: str(value) for key, value in settings.items()}, seed) for seed in self.plan.seeds]

    def runs(self, chosen: Iterable[Mapping[str, Setting]]) -> list[Cell]:
        """The runs of some trials; settings that were chosen twice are run, and counted, once."""
        return list({cell.name: cell for settings in chosen for cell in self.cells(settings)}.values())


def search(path: Path, base: Parsed, options: argparse.Namespace) -> int:
    """Check the ends of every range, run trial after trial, and write table, figures, page and the best settings.

    A trial of several seeds counts by its mean. With `--jobs` above the number of seeds, trials are chosen and run
    together. The first of them are drawn at random, later ones by the tree-structured Parzen estimator. A search that
    goes on chooses what it would have chosen.

    Args:
        path: The recipe file.
        base: The recipe before its keys are searched.
        options: The command line.

    Returns:
        The exit code: 1 where a run failed; a failed trial counts for nothing, and the others go on.
    """
    wanted = _wanted(base, options)
    spaces = wanted.spaces()
    _check(path, wanted, spaces, options)
    if options.check:
        return 0
    folder = folder_of(base, wanted.plan, options)
    run = RunFolder(folder, f"search of {base.name}-{base.recipe.name}", quiet=options.quiet)
    about = {"keys": wanted.plan.values, "seeds": wanted.plan.seeds, "for": wanted.number, "largest": wanted.largest}
    if options.resume is not None and json.loads((folder / ABOUT).read_text(encoding="utf-8")) != about:
        raise RecipeError(
            f"--resume: the search in {folder} was over other values, under other seeds or for another number; put "
            "them back (only --trials may grow), or start a new one"
        )
    with locked(folder):
        write_text(folder / RECIPE, to_yaml(base.recipe))
        write_json(folder / ABOUT, about)
        try:
            failed = _search(wanted, spaces, run, base, options)
        except KeyboardInterrupt:
            print(f"interrupted; go on with the same command with --resume --out {folder}", file=sys.stderr)
            return 130
    return ended(run, failed, f"{len(failed)} runs failed; the others are reported")


def _wanted(base: Parsed, options: argparse.Namespace) -> Search:
    if find_spec("optuna") is None:
        raise RecipeError("--trials: optuna is not installed; run: pip install 'gapbridge[tune]'")
    if not 1 <= options.trials <= MOST:
        raise RecipeError(f"--trials {options.trials}: expected how many combinations are tried, 1 to {MOST}")
    named = [word for word in (options.minimise, options.maximise) if word]
    if len(named) != 1:
        raise RecipeError("--trials: say what the trials are for, by either --minimise NUMBER or --maximise NUMBER")
    if not options.sweep:
        raise RecipeError(
            "--trials: name the keys that are searched, such as --sweep training.learning_rate=1e-5..1e-3:log"
        )
    return Search(plan_of(base, options), options.trials, named[0], bool(options.maximise))


def _check(path: Path, wanted: Search, spaces: Mapping[str, BaseDistribution], options: argparse.Namespace) -> None:
    """The pre-flight with both ends of every range, and with every value; in full of the first."""
    ends = {
        key: [getattr(s, end) for end in ("low", "high")] if hasattr(s, "low") else wanted.plan.values[key]
        for key, s in spaces.items()
    }
    first = {key: values[0] for key, values in ends.items()}
    tried = [first, *({**first, key: value} for key, values in ends.items() for value in values[1:])]
    for place, settings in enumerate(tried):
        words = [*options.words[1:], *(f"{key}={value}" for key, value in settings.items())]
        parsed = parse(path, words)
        check_seeds(parsed, wanted.plan)
        if options.check or options.resume is None:
            check(parsed, quiet=options.quiet or place > 0)
    if not options.quiet:
        how = f"{'largest' if wanted.largest else 'smallest'} {wanted.number}"
        print(f"search: {wanted.trials} trials of {', '.join(spaces)} for the {how}", flush=True)


def _search(
    wanted: Search, spaces: Mapping[str, BaseDistribution], run: RunFolder, base: Parsed, options: argparse.Namespace
) -> list[Cell]:
    """Run the trials that are missing; the runs that failed."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder, jobs = run.path, options.jobs or 1
    study = optuna.create_study(direction="maximize" if wanted.largest else "minimize")
    chosen: list[dict[str, Setting]] = _read(folder / TRIALS)
    failed: list[Cell] = []
    values: list[float | None] = []
    together = max(1, jobs // len(wanted.plan.seeds))
    while len(values) < wanted.trials:
        while len(chosen) < min(len(values) + together, wanted.trials):
            chosen.append(_choose(study, spaces, base.recipe.seed, len(chosen)))
        write_json(folder / TRIALS, chosen)
        now = chosen[len(values) : min(len(values) + together, wanted.trials)]
        cells = [cell for cell in wanted.runs(now) if cell not in failed]  # which are not tried again at once
        _check_trials(run, options, cells)
        failed += run_all(cells, run, jobs, options.on)
        for settings in now:
            values.append(_value(wanted, folder, settings))
            _tell(study, settings, spaces, values[-1])
            run.say(
                f"trial {len(values)}: {_told(settings)}: {'failed' if values[-1] is None else f'{values[-1]:.6g}'}"
            )
    _finish(wanted, run, chosen[: len(values)], values, options.show or [])  # more may have been tried before
    return failed


def _choose(study: Study, spaces: Mapping[str, BaseDistribution], seed: int, number: int) -> dict[str, Setting]:
    """The settings of the next trial, which depend on the seed, its number and the trials before it alone."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    study.sampler = TPESampler(seed=(seed * _SEEDS + number) % 2**32, constant_liar=True)
    trial = study.ask(dict(spaces))
    study.tell(trial, state=TrialState.FAIL)  # it is told with its value once it has run
    return dict(trial.params)


def _tell(
    study: Study, settings: Mapping[str, Setting], spaces: Mapping[str, BaseDistribution], value: float | None
) -> None:
    from optuna.trial import create_trial

    if value is not None:
        study.add_trial(create_trial(params=dict(settings), distributions=dict(spaces), value=value))


def _read(file: Path) -> list[dict[str, Setting]]:
    if not file.is_file():
        return []
    try:
        return [dict(settings) for settings in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{file} cannot be read ({error}); start a new search") from error


def _check_trials(run: RunFolder, options: argparse.Namespace, cells: Sequence[Cell]) -> None:
    """Refuse settings that the recipe does not take together, and changed files of the user's."""
    parsed = {str(cell.settings): parse(run.path / RECIPE, cell.words) for cell in cells}
    check_inputs(cells, run.path, parsed)


def _value(wanted: Search, folder: Path, settings: Mapping[str, Setting]) -> float | None:
    """The mean over seeds of what is optimised; None where a run failed or ended with no finite number.

    Raises:
        RecipeError: When the runs have no such number.
    """
    found = []
    for cell in wanted.cells(settings):
        place = folder / CELLS / cell.name
        if not (place / "result.json").is_file():
            return None
        found.append(
            _logged(place / METRICS, wanted.number)
            if wanted.number.startswith(LOGGED)
            else _ended(place, wanted.number)
        )
    return statistics.fmean(found) if all(map(math.isfinite, found)) else None


def _ended(place: Path, number: str) -> float:
    known = dict(numbers(json.loads((place / "result.json").read_text(encoding="utf-8"))))
    if number not in known:
        raise RecipeError(f"{number}: no result has this number; {did_you_mean(number, list(known))}")
    return known[number]


def _logged(metrics: Path, number: str) -> float:
    column = number.removeprefix(LOGGED)
    if not metrics.is_file():
        raise RecipeError(f"{number}: the runs of this recipe log no {METRICS}; name a number of result.json")
    with metrics.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    told = [row[column] for row in rows if row.get(column)]
    if not told:
        columns = list(rows[0]) if rows else []
        raise RecipeError(f"{number}: {metrics} has no such column; {did_you_mean(column, columns)}")
    return float(told[-1])


def _finish(
    wanted: Search,
    run: RunFolder,
    chosen: Sequence[Mapping[str, Setting]],
    values: Sequence[float | None],
    asked: Sequence[str],
) -> None:
    """The table of all trials, the best of them first named."""
    known = [(value, place) for place, value in enumerate(values) if value is not None]
    if not known:
        return
    value, place = (max if wanted.largest else min)(
        known, key=lambda one: (one[0], -one[1] if wanted.largest else one[1])
    )
    best = chosen[place]
    told = f"Best of {len(values)} trials by {wanted.number}: {_told(best)} with {value:.6g}."
    more = {
        "best": {"settings": dict(best), "value": value, "trial": place + 1},
        "trials": [{"settings": dict(s), "value": v} for s, v in zip(chosen, values, strict=True)],
    }
    cells = wanted.runs(chosen)
    shown = list(dict.fromkeys([*([] if wanted.number.startswith(LOGGED) else [wanted.number]), *asked]))
    finish(run, [(cell.settings, cell.seed, run.path / CELLS / cell.name) for cell in cells], shown, more, told)
    run.say(told)


def _told(settings: Mapping[str, Setting]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())
