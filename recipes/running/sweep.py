"""Sweeps: one recipe over values of its keys and seeds, every run an ordinary run folder in a process of its own."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.errors import RecipeError, RunError
from recipes.front import table
from recipes.front.parse import Parsed, parse
from recipes.front.show import to_yaml
from recipes.running.engines import STOP, Command, check_engine, engine
from recipes.running.environment import process_rank
from recipes.running.execute import check, reads_of
from recipes.running.files import write_json, write_text
from recipes.running.folder import RUNS, RunFolder, run_numbers
from recipes.running.inputs import added, changed, read_noted
from recipes.running.lock import locked
from recipes.running.sweep_table import finish

RUN = ("-m", "gapbridge")  # how one run is started: the words after the interpreter
_NUMBER = r"([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
RANGE = re.compile(rf"{_NUMBER}\.\.{_NUMBER}(:log)?")  # LOW..HIGH, or LOW..HIGH:log
ABOUT, RECIPE, CELLS, LOGS = "sweep.json", "recipe.yaml", "cells", "logs"
MOST = 10_000  # runs of one sweep


@dataclass(frozen=True)
class Sweep:
    """What is varied.

    Attributes:
        values: Dotted key -> the values tried, as text.
        seeds: Of every combination.
    """

    values: dict[str, list[str]]
    seeds: list[int]

    def cells(self) -> list[Cell]:
        """Every combination with every seed; the seeds of a combination stand side by side."""
        made = itertools.product(*([(key, value) for value in values] for key, values in self.values.items()))
        return [Cell(dict(chosen), seed) for chosen in made for seed in self.seeds]

    def __len__(self) -> int:
        """How many runs these are."""
        count = len(self.seeds)
        for values in self.values.values():
            count *= len(values)
        return count


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    settings: dict[str, str]
    seed: int

    @property
    def words(self) -> list[str]:
        """Its overrides."""
        return [*(f"{key}={value}" for key, value in self.settings.items()), f"seed={self.seed}"]

    @property
    def name(self) -> str:
        """Name of its folder: what it sets, with a digest where that is no plain file name."""
        text = ",".join(self.words)
        plain = re.sub(r"[^A-Za-z0-9=.,_+-]", "_", text)[:80]
        return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def values_of(word: str) -> tuple[str, list[str]]:
    """The key and the values of one `--sweep KEY=A,B,C`; commas inside brackets and quotes belong to a value.

    >>> values_of("shared.options={scale: 0.2, density: 0.1},{scale: 0.3}")
    ('shared.options', ['{scale: 0.2, density: 0.1}', '{scale: 0.3}'])

    Raises:
        RecipeError: For a word of another form.
    """
    key, equals, text = word.partition("=")
    values, depth, quote, start = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth == 0:
            values.append(text[start:place].strip())
            start = place + 1
    values.append(text[start:].strip())
    if not key or not equals or "" in values:
        raise RecipeError(f"--sweep {word}: expected KEY=A,B,C, such as --sweep training.learning_rate=1e-4,2e-4")
    if key in ("recipe", "name", "seed"):
        remedy = "use --seeds" if key == "seed" else "give one file a sweep"
        raise RecipeError(f"--sweep {word}: {key} cannot be swept; {remedy}")
    if twice := [value for place, value in enumerate(values) if value in values[:place]]:
        raise RecipeError(f"--sweep {word}: {twice[0]} stands there twice; name every value once")
    return key, values


def seeds_of(text: str | None, first: int) -> list[int]:
    """The seeds that `--seeds` names: `3` is three from the recipe's own on, `0,5,7` these.

    >>> seeds_of("3", 10), seeds_of("0,5", 10), seeds_of(None, 10)
    ([10, 11, 12], [0, 5], [10])

    Raises:
        RecipeError: For anything else.
    """
    if text is None:
        return [first]
    parts = text.split(",")
    if not all(re.fullmatch(r"\d{1,9}", part) for part in parts) or len({*map(int, parts)}) < len(parts) or text == "0":
        raise RecipeError(f"--seeds {text}: expected how many, such as 3, or seeds that differ, such as 0,5,7")
    return [int(part) for part in parts] if len(parts) > 1 else list(range(first, first + int(text)))


def sweep(path: Path, base: Parsed, options: argparse.Namespace) -> int:
    """Check every combination, run what has not run yet, and write table, figures and page.

    Args:
        path: The recipe file.
        base: The recipe before its keys are varied.
        options: The command line.

    Returns:
        The exit code: 1 where a run failed; the others are reported.
    """
    plan = plan_of(base, options)
    parsed = _all_parsed(path, options.words[1:], plan)
    if options.check or options.resume is None:
        _check(plan, list(parsed.values()), quiet=options.quiet)
    if options.check:
        return 0
    folder, jobs = folder_of(base, plan, options), options.jobs or 1
    run = RunFolder(folder, f"sweep of {base.name}-{base.recipe.name}", quiet=options.quiet)
    again = f"the same command with --resume --out {folder}"
    with locked(folder):
        write_text(folder / RECIPE, to_yaml(base.recipe))
        write_json(folder / ABOUT, {"keys": plan.values, "seeds": plan.seeds})
        check_inputs(plan.cells(), folder, parsed)
        try:
            failed = run_all(plan.cells(), run, jobs, options.on)
        except KeyboardInterrupt:
            print(f"interrupted; go on with {again}", file=sys.stderr)
            return 130
        check_inputs(plan.cells(), folder, parsed)
        finish(
            run, [(cell.settings, cell.seed, folder / CELLS / cell.name) for cell in plan.cells()], options.show or []
        )
    return ended(run, failed, f"{len(failed)} of {len(plan)} runs failed; {again} tries them once more")


def ended(run: RunFolder, failed: Sequence[Cell], told: str) -> int:
    """Name the runs that failed, each with its log; the exit code where none did.

    Args:
        run: Of the sweep.
        failed: The runs.
        told: What is said of them all.

    Raises:
        RunError: Where some did.
    """
    for cell in failed:
        print(f"{cell.name} failed: {_last_line(run.path / LOGS / f'{cell.name}.log')}", file=sys.stderr)
    if failed:
        raise RunError(told)
    run.say(f"done: {run.path}")
    return 0


def plan_of(base: Parsed, options: argparse.Namespace) -> Sweep:
    """What is varied.

    Args:
        base: The recipe before its keys are varied.
        options: The command line.

    Raises:
        RecipeError: For what a sweep does not take.
    """
    if process_rank() != 0 or "WORLD_SIZE" in os.environ:
        raise RecipeError("--sweep: a sweep starts its runs itself; start it once, and not under torchrun or SLURM")
    varied = [values_of(word) for word in options.sweep]
    if len(dict(varied)) < len(varied):
        raise RecipeError("--sweep: a key stands there twice; name all its values at once")
    for key, values in varied:
        for value in filter(RANGE.fullmatch, values):
            if options.trials is None:
                raise RecipeError(f"--sweep: {value} is a range, which --trials N tries values of; or name the values")
            if len(values) > 1:
                raise RecipeError(f"--sweep {key}: expected one range or some values, got {value} among values")
    plan = Sweep(dict(varied), seeds_of(options.seeds, base.recipe.seed))
    if options.trials is None and len(plan) > MOST:
        raise RecipeError(f"--sweep: these are {len(plan)} runs; at most {MOST} are made")
    if options.jobs is not None and options.jobs < 1:
        raise RecipeError(f"--jobs {options.jobs}: expected how many runs go on at once, at least 1")
    check_engine(options.on)
    if options.force:
        raise RecipeError("--force: a sweep is never replaced; name another folder with --out, or remove it yourself")
    if options.resume:
        raise RecipeError(f"--resume {options.resume}: a sweep goes on from its own runs; give no checkpoint")
    return plan


def _all_parsed(path: Path, overrides: Sequence[str], plan: Sweep) -> dict[str, Parsed]:
    """Every combination under the first seed, and all that is wrong with any of them."""
    problems: list[str] = []
    parsed: dict[str, Parsed] = {}
    for cell in plan.cells():
        if cell.seed != plan.seeds[0]:
            continue
        try:
            parsed[str(cell.settings)] = parse(path, [*overrides, *cell.words])
            check_seeds(parsed[str(cell.settings)], plan)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(*dict.fromkeys(problems))
    return parsed


def check_seeds(parsed: Parsed, plan: Sweep) -> None:
    """Refuse several seeds of a run that goes through seeds itself: such runs repeat each other, and are no sample.

    Args:
        parsed: One combination.
        plan: What is varied.

    Raises:
        RecipeError: With the key of its own seeds.
    """
    own: Callable[[Any], str] = getattr(table.load(parsed.name), "own_seeds", lambda _: "")
    if len(plan.seeds) > 1 and (key := own(parsed.recipe)):
        raise RecipeError(
            f"--seeds: every run goes through the seeds of {key} itself, so that runs under several seeds repeat each "
            f"other, and an interval over them means nothing; leave --seeds out, and name as many seeds under {key}"
        )


def _check(plan: Sweep, parsed: Sequence[Parsed], *, quiet: bool) -> None:
    """The pre-flight of every combination; in full of the first."""
    for number, one in enumerate(parsed):
        check(one, quiet=quiet or number > 0)
    if not quiet:
        varied = " x ".join(f"{len(values)} of {key}" for key, values in plan.values.items())
        print(f"sweep: {len(plan)} runs, {' x '.join(filter(None, [varied, f'{len(plan.seeds)} seeds']))}", flush=True)


def check_inputs(cells: Iterable[Cell], folder: Path, parsed: Mapping[str, Parsed]) -> None:
    """Refuse files of the user's that are not as a finished run read them: one table would mix two of them.

    Args:
        cells: Of the sweep.
        folder: Of the sweep.
        parsed: The recipe of every combination of settings.

    Raises:
        RecipeError: With the file and the run.
    """
    for cell in cells:
        place = folder / CELLS / cell.name
        if (place / "result.json").is_file():
            noted = read_noted(place) or {}
            if fault := changed(noted) or added(noted, reads_of(parsed[str(cell.settings)])):
                raise RecipeError(
                    f"{fault} since {place} read it; put it back and go on with --resume, or start a new sweep"
                )


def folder_of(base: Parsed, plan: Sweep, options: argparse.Namespace) -> Path:
    """The folder of a new sweep, or the one that is gone on with.

    Args:
        base: The recipe before its keys are varied.
        plan: What is varied.
        options: The command line.

    Raises:
        RecipeError: When something else is there, or a sweep of another recipe or other keys.
    """
    parent = RUNS / "sweeps" / f"{base.name}-{base.recipe.name}"
    if options.resume is None:
        folder: Path = options.out or parent / str(max(run_numbers(parent), default=0) + 1)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            remedy = "add --resume to go on with it" if (folder / ABOUT).is_file() else "give another folder"
            raise RecipeError(f"--out {folder}: something is there; {remedy}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = options.out or parent / str(max(run_numbers(parent), default=0))
    if not (folder / ABOUT).is_file():
        raise RecipeError(f"--resume: no sweep is in {folder}; start one without it, or name its folder with --out")
    if (folder / RECIPE).read_text(encoding="utf-8") != to_yaml(base.recipe):
        raise RecipeError(f"--resume: the recipe of the sweep in {folder} was another one; put it back, or start anew")
    known = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if list(known["keys"]) != list(plan.values):
        raise RecipeError(
            f"--resume: the sweep in {folder} varies {', '.join(known['keys']) or 'seeds alone'}; values and seeds may "
            "be added to it, keys not"
        )
    return folder


def run_all(cells: Sequence[Cell], run: RunFolder, jobs: int, on: str | None) -> list[Cell]:
    """Run every cell that has no result, some at once; those that failed.

    Args:
        cells: Of the sweep.
        run: Its folder.
        jobs: How many at once.
        on: The engine.
    """
    folder = run.path
    (folder / LOGS).mkdir(exist_ok=True)
    missing = [cell for cell in cells if not (folder / CELLS / cell.name / "result.json").is_file()]
    failed: list[Cell] = []
    with (
        engine(on, folder, jobs) as start,
        run.phase("sweep", len(missing)) as progress,
        ThreadPoolExecutor(jobs) as pool,
    ):
        waiting = {pool.submit(_run_cell, cell, folder, start): cell for cell in missing}
        try:
            while waiting:
                for one in wait(waiting, return_when=FIRST_COMPLETED).done:
                    cell, code = waiting.pop(one), one.result()
                    if code == 130:
                        raise KeyboardInterrupt
                    if code:
                        failed.append(cell)
                    progress.advance()
        except BaseException:
            (folder / STOP).touch()
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def _run_cell(cell: Cell, folder: Path, start: Command) -> int:
    """One run, or what is left of it; its exit code."""
    place = folder / CELLS / cell.name
    begun = ["--resume"] if (place / "recipe.yaml").is_file() else []
    words = [str(folder / RECIPE), *cell.words, "--out", str(place), *begun]  # the user's file may change meanwhile
    return start([sys.executable, *RUN, *words], folder / LOGS / f"{cell.name}.log")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "it said nothing") + f" (log: {log})"
