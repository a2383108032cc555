"""Carry out a parsed recipe: pre-flight, run folder, the run itself, and what to say when it ends badly."""

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from recipes.errors import ASKS, FULL, RecipeError, RunError, is_short_of_memory, unforeseen
from recipes.front import table
from recipes.front.compare import check_resume
from recipes.front.parse import Parsed
from recipes.front.schema import show
from recipes.front.show import to_yaml
from recipes.running import folder as runfolder
from recipes.running.environment import process_rank
from recipes.running.files import METRICS, write_text
from recipes.running.folder import RunFolder
from recipes.running.inputs import NAME as INPUTS, added, changed, note, read_noted
from recipes.running.lock import locked
from recipes.running.ranks import READY, board
from recipes.running.sources import named_paths, user_modules

LENGTHS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")  # how long a training is


def check(parsed: Parsed, *, quiet: bool = False) -> None:
    """Print the numbered pre-flight steps of a recipe; the first that fails raises and nothing is written."""
    steps: object = table.load(parsed.name).check(parsed.recipe)
    if not isinstance(steps, Iterable):
        raise RunError(f"recipe {parsed.name}: check(recipe) gives {steps!r}; yield one line of text for every step")
    for number, line in enumerate(steps, start=1):
        if not quiet:
            print(f"{number:2}. {line}", flush=True)


def run(parsed: Parsed, options: argparse.Namespace, command: Sequence[str]) -> int:
    """Check the recipe, open its folder and run it.

    Args:
        parsed: The recipe.
        options: The command line: `resume`, `out`, `force`, `quiet`, `debug`.
        command: The words of the command line, for `command.txt`.

    Returns:
        The exit code.
    """
    with ExitStack() as hold:
        folder = RunFolder(Path(), f"{parsed.name}-{parsed.recipe.name}", quiet=options.quiet)
        folder.reads = partial(reads_of, parsed)
        folder.board = hold.enter_context(board(None if runfolder.FOLDER_KEY in os.environ else options.out))
        if options.resume is not None:
            if not _reopen(parsed, options, folder, hold):
                folder.say(f"{folder.path} is complete already; nothing to do")
                return 0
        else:
            _open(parsed, options, folder, hold)
        folder.start(to_yaml(parsed.recipe), {"seed": parsed.recipe.seed}, ["python", "-m", "recipes.run", *command])
        if folder.board is not None:
            folder.board.say(READY)
        again = ["python", "-m", "recipes.run", *options.words, "--resume"]
        again += ["--out", str(options.out)] if options.out else []
        return _guarded(parsed, folder, shlex.join(again), debug=options.debug)


def _open(parsed: Parsed, options: argparse.Namespace, folder: RunFolder, hold: ExitStack) -> None:
    """Check the recipe, then make the folder of a new run."""
    # What `--force` must leave alone.
    needed = [Path(options.words[0]), *reads_of(parsed)] if options.force else []
    named = list(named_paths(parsed.plain)) if options.force else []
    if process_rank() == 0:
        if options.out is not None:
            runfolder.check_out(options.out, force=options.force, needed=needed, named=named)
        folder.inputs = note(folder.reads())
        check(parsed, quiet=options.quiet)
    folder.path = runfolder.new_folder(
        parsed.name,
        parsed.recipe.name,
        out=options.out,
        force=options.force,
        hold=hold,
        needed=needed,
        named=named,
    )


def _reopen(parsed: Parsed, options: argparse.Namespace, folder: RunFolder, hold: ExitStack) -> bool:
    """Find the folder of an earlier run and where to go on in it; false when there is nothing left to do."""
    path = folder.path = options.out or runfolder.newest_folder(parsed.name, parsed.recipe.name)
    accepted = check_resume(path, parsed)
    if process_rank() == 0:
        hold.enter_context(locked(path))
    if (path / "result.json").is_file() and not accepted:
        return False
    if folder.board is not None:
        folder.board.wait(READY)
    parts = _finished(parsed, path)
    if altered := [key for key in LENGTHS if key in accepted and parts]:
        before, now = accepted[altered[0]]
        raise RecipeError(
            f"--resume: {parts[0]} was trained with {altered[0]} {show(before)} and is not trained on to {show(now)}; "
            f"set {altered[0]} back to {show(before)}, or start a new run, without --resume"
        )
    for key, (before, now) in accepted.items():
        folder.say(f"resuming with {key} {show(now)} instead of {show(before)}")
    if process_rank() == 0:
        noted = read_noted(path)
        if noted is None and note(folder.reads()):
            raise RecipeError(
                f"--resume: {path / INPUTS}, which says what files the run began with, is missing or damaged; put it "
                "back, or start a new run"
            )
        folder.inputs = noted or {}
        if fault := changed(folder.inputs) or added(folder.inputs, folder.reads()):
            raise RecipeError(f"--resume: {fault} since the run was started; put it back, or start a new run")
        check(parsed, quiet=options.quiet)
        _tell_lost_rows(path / METRICS)
    folder.resume = _checkpoint(path, options.resume, parts)
    folder.say(f"resuming {path}" + (f" from {folder.resume}" if folder.resume != path else ""))
    return True


def _tell_lost_rows(metrics: Path) -> None:
    from recipes.running.metrics import lost_rows

    if lost := lost_rows(metrics):
        phases = ", ".join(name or "the training" for name in lost)
        print(
            f"{metrics} is not what it was: rows of {phases} were changed or lost; the run goes on, and its later rows "
            "are right",
            file=sys.stderr,
        )


def reads_of(parsed: Parsed) -> list[Path]:
    """The user's own files that a recipe says it reads, and the modules of the user's that it imports."""
    named: Callable[[Any], list[Path]] = getattr(table.load(parsed.name), "inputs", lambda _: [])
    return [*(path.expanduser() for path in named(parsed.recipe)), *user_modules(parsed.plain)]


def _finished(parsed: Parsed, path: Path) -> list[str]:
    """Names of the trainings in a folder that a recipe takes as they are; a recipe of one training has none."""
    found: Callable[[Path], list[str]] = getattr(table.load(parsed.name), "finished", lambda _: [])
    return found(path)


def _checkpoint(path: Path, named: str, finished: Sequence[str]) -> Path:
    """Return the checkpoint to go on from: the named one, the newest that loads, or the folder when there is none."""
    if named and not Path(named).exists():
        raise RecipeError(f"--resume {named}: no such checkpoint; give a path, or nothing for the newest one")
    if not named and not any((path / "checkpoints").rglob("*.ckpt")):
        return path
    from recipes.running.resume import newest_valid_checkpoint, verify_checkpoint

    if not named:
        return newest_valid_checkpoint(path / "checkpoints", lambda text: print(text, file=sys.stderr)) or path
    inside = (path / "checkpoints").resolve()
    if not Path(named).resolve().is_relative_to(inside):
        raise RecipeError(
            f"--resume {named}: this is no checkpoint of the run in {path}; give one under {path / 'checkpoints'}, or "
            "the folder of its run with --out"
        )
    verify_checkpoint(Path(named))
    found = path / "checkpoints" / Path(named).resolve().relative_to(inside)
    if found.parent.name in finished:
        raise RecipeError(
            f"--resume {named}: {found.parent.name} is trained to its end already and is not trained again; give "
            "nothing, for the newest checkpoint of what is left"
        )
    return found


def _guarded(parsed: Parsed, folder: RunFolder, again: str, *, debug: bool) -> int:
    """Run, and turn whatever goes wrong into one sentence and an exit code."""
    before = os.environ.get(runfolder.FOLDER_KEY)
    os.environ[runfolder.FOLDER_KEY] = str(folder.path.resolve())
    try:
        table.load(parsed.name).run(parsed.recipe, folder)
    except BaseException as error:
        if _interrupted(error):
            if process_rank() == 0:
                print(f"interrupted; go on with: {again}", file=sys.stderr)
            return 130
        if debug or isinstance(error, RecipeError | RunError) or not isinstance(error, Exception):
            raise
        raise RunError(_sentence(error, folder.path)) from error
    finally:
        if before is None:
            del os.environ[runfolder.FOLDER_KEY]
        else:
            os.environ[runfolder.FOLDER_KEY] = before
    if process_rank() == 0 and not folder.finished:
        raise RunError(
            f"recipe {parsed.name}: its run ended without folder.finish(result), so {folder.path} has no result and no "
            f"report; call folder.finish at the end of run in {table.entries()[parsed.name].module}"
        )
    folder.say(f"done: {folder.path}")
    return 0


def _interrupted(error: BaseException) -> bool:
    """Whether an interruption is what ended a run, whatever was raised while it was handled.

    Lightning answers Ctrl-C with SystemExit(1) and the request to terminate with a SystemExit of its own; and where the
    interruption falls into the closing of a logger, closing it once more fails, such as with "Writer is closed".
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        if isinstance(link, KeyboardInterrupt) or type(link).__name__ == "SIGTERMException":
            return True
        seen.add(id(link))
        link = link.__context__
    return False


def _sentence(error: Exception, path: Path) -> str:
    """Return one sentence about an unforeseen failure; its traceback goes into the run folder."""
    if isinstance(error, OSError) and error.errno in FULL:
        return f"the disk is full: {error.filename or path}; free some space and resume with --resume"
    if ASKS in str(error) or is_short_of_memory(error):
        return unforeseen(error)
    if "find_unused_parameters" in str(error):
        return (
            "the run failed: a parameter that is trained gets no gradient, for which several processes would wait for "
            "ever; start it again with trainer.strategy=ddp_find_unused_parameters_true, or freeze that parameter"
        )
    where = path / "traceback.txt"
    try:
        write_text(where, "".join(traceback.format_exception(error)))
    except OSError:
        where = Path("--debug")
    text = " ".join(str(error).split())
    return f"the run failed: {type(error).__name__}{f': {text}' if text else ''} (traceback: {where})"
