"""The command `python -m recipes.run FILE.yaml`: read, check, run; it imports neither torch nor lightning by itself."""

import _thread
import argparse
import contextlib
import io
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from recipes.errors import RecipeError, RunError, unforeseen
from recipes.running.output import outliving_readers

USAGE = """\
python -m recipes.run FILE.yaml [key.sub=value ...] [--check] [--print-config] [--resume [CKPT]]
                             [--out DIR] [--force] [--quiet] [--debug]
                             [--sweep KEY=A,B,C ...] [--seeds N] [--jobs N] [--on ENGINE] [--show NUMBER ...]
                             [--trials N --minimise NUMBER | --maximise NUMBER]
       python -m recipes.run --list | --schema NAME | --new NAME"""
EPILOG = """\
FILE.yaml is a path, or the name of a shipped recipe (see --list). An override changes one key:
  python -m recipes.run merge.yaml name=mine trainer.max_epochs=3 tasks.0.max_train=64
A run writes runs/<recipe>-<name>/<n>/. A sweep runs every combination of values under every seed:
  python -m recipes.run merge.yaml --sweep exclusive.rank=4,16 --seeds 3 --show rows.routed.normalised
It writes runs/sweeps/<recipe>-<name>/<n>/, and goes on with --resume.
Exit code: 0 done, 1 the run failed, 2 the recipe is wrong, 130 interrupted."""
_CHECKPOINT = re.compile(r".*\.ckpt/?")


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports mistakes as the front does."""

    def error(self, message: str) -> NoReturn:
        found = re.fullmatch(r"unrecognized arguments: (\S+)(.*)", message)
        if found is None:
            raise RecipeError(f"{message}; see --help")
        word = found[1]
        if "=" in word and "." in word.partition("=")[0]:
            raise RecipeError(f"{word}: unknown option; an override is written without dashes: {word.lstrip('-')}")
        from recipes.front.schema import did_you_mean

        options = [name for action in self._actions for name in action.option_strings if name != "-h"]
        raise RecipeError(f"{word}: unknown option; {did_you_mean(word, options)}")


def _parser() -> _Parser:
    parser = _Parser(
        prog="recipes.run",
        usage=USAGE,
        description="Run a recipe: YAML in, run folder out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="FILE.yaml key.sub=value", help="the recipe, then overrides")
    add("--check", action="store_true", help="numbered pre-flight checks, then the plan; writes nothing")
    add("--print-config", action="store_true", help="print the resolved recipe, with help as comments")
    add(
        "--resume",
        nargs="?",
        const=True,
        metavar="CKPT",
        help="go on with the newest run of this name, or the one in --out",
    )
    add("--out", type=Path, metavar="DIR", help="run folder to use instead of runs/<recipe>-<name>/<n>/")
    add("--force", action="store_true", help="replace the run in --out")
    add(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=A,B,C",
        help="run every value; several keys, all combinations",
    )
    add("--seeds", metavar="N", help="so many seeds of every combination, or these: 0,5,7")
    add("--jobs", type=int, metavar="N", help="runs of a sweep at once (1)")
    add("--on", metavar="ENGINE", help="where a sweep runs: dask:ADDRESS, or slurm:slurm_partition=gpu,timeout_min=60")
    add("--trials", type=int, metavar="N", help="let Optuna choose N combinations of values and ranges LOW..HIGH[:log]")
    add("--minimise", metavar="NUMBER", help="what the trials are for: a number of result.json, or metrics:COLUMN")
    add("--maximise", metavar="NUMBER", help="likewise, where more is better")
    add(
        "--show", action="append", metavar="NUMBER", help="a number of result.json for a sweep's table, or all below it"
    )
    add("--quiet", action="store_true", help="print errors only")
    add("--debug", action="store_true", help="show the traceback of a failure")
    add("--list", action="store_true", help="list the recipes")
    add("--schema", metavar="NAME", help="print the JSON schema of a recipe")
    add("--new", metavar="NAME", help="print a starter YAML of a recipe")
    return parser


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; the word after `--resume` belongs to it only when it names a checkpoint."""
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--resume":
            word = f"--resume={rest.pop(0)}" if rest and _CHECKPOINT.fullmatch(rest[0]) else "--resume="
        words.append(word)
    options = _parser().parse_intermixed_args(words)
    if not options.words and not (options.list or options.schema or options.new):
        raise RecipeError("name a recipe file, such as merge.yaml; see --list and --help")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 wrong recipe, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that knows no Unicode shows escapes, as for errors
        sys.stdout.reconfigure(errors="backslashreplace")
    with outliving_readers(), _delivering_interruptions():
        return _guarded(list(sys.argv[1:] if argv is None else argv))


@contextlib.contextmanager
def _delivering_interruptions() -> Iterator[None]:
    """Deliver an interruption that falls into a finalizer once more: Python prints and forgets what is raised there."""
    before = sys.unraisablehook

    def again(found: "sys.UnraisableHookArgs") -> None:
        if isinstance(found.exc_value, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main).start()  # at once, it would be raised in here
        else:
            before(found)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _guarded(command: list[str]) -> int:
    debug = "--debug" in command
    try:
        return _dispatch(_arguments(command), command)
    except (RecipeError, RunError) as error:
        if debug:
            traceback.print_exc()
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # whatever nobody foresaw: a sentence, not our frames
        if debug:
            raise
        print(unforeseen(error), file=sys.stderr)
        return 1


def _dispatch(options: argparse.Namespace, command: Sequence[str]) -> int:
    from recipes.front import show

    if options.list:
        print(show.list_recipes(), flush=True)
        return 0
    if options.schema:
        print(show.json_schema(options.schema), flush=True)
        return 0
    if options.new:
        print(show.starter(options.new), end="", flush=True)
        return 0
    from recipes.front import parse

    path, is_shipped = parse.find_recipe(options.words[0])
    if is_shipped:
        print(f"{options.words[0]} is not here: using the recipe that ships as {path}", file=sys.stderr)
    parsed = parse.parse(path, options.words[1:])
    if options.print_config:
        print(show.to_yaml(parsed.recipe), end="", flush=True)
        return 0
    if options.trials is not None:
        from recipes.running.search import search

        return search(path, parsed, options)
    for option in ("minimise", "maximise"):
        if getattr(options, option) is not None:
            raise RecipeError(f"--{option}: this is for a search; add --trials N")
    if options.sweep or options.seeds is not None:
        from recipes.running.sweep import sweep

        return sweep(path, parsed, options)
    for option in ("jobs", "show", "on"):
        if getattr(options, option) is not None:
            raise RecipeError(f"--{option}: this is for a sweep; add --sweep or --seeds")
    from recipes.running.execute import check, run

    if options.check:
        check(parsed, quiet=options.quiet)
        return 0
    return run(parsed, options, command)


def abandoned(code: int) -> int:
    """Return an exit code, or end here where one of several processes failed: its ending would wait for the others."""
    torch = sys.modules.get("torch")
    if code and torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(abandoned(main()))
