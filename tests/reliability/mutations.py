"""Recipes mutated at random, through the front and its checks: a sentence or an accepted recipe, never a traceback.

The n-th recipe is a function of n: a shipped one, its text or its tree changed in one to three places.
"""

import contextlib
import io
import json
import random
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from recipes.errors import RecipeError
from recipes.front import parse
from recipes.run import main
from tests.reliability.server import ROOT

SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the fast one, where it is
SHIPPED = sorted((ROOT / "recipes").glob("*/*.yaml"))
LONG_PARSE, LONG_CHECK = 20.0, 90.0  # seconds that one case may compute
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**63, -(2**70), 10**300, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "null",
        "nan",
        "~",
        "-",
        ".",
        "..",
        "/",
        "../../etc/passwd",
        "~nobody/x",
        "a" * 5000,
        "\u202e",
        "é\u0301",
    ),
    *("1e3", "0x10", "1_000", "yes", "2026-01-01", "{}", "[]", "%s%n", "{0.__class__}", "$HOME", "a\nb", "a\tb"),
    *("os.getcwd", "builtins.dict", "rl.envs.newsvendor.Newsvendor", "recipes", "a..b", "lightning.pytorch.Trainer"),
    *([], {}, [[]], [None], [{}], {"": ""}, {"a": {"b": {"c": 1}}}, ["a", "a"], [1, "a", None]),
    *({"class_path": "torch.nn.Linear"}, {"class_path": 3}, {"class_path": "", "init_args": []}),
]
LINES = [
    *("{", "}", "[", "]", "- ", ": :", "? x", "&a [*a]", "*b", "!!python/name:os.system", "!!binary aGk=", "!!set {a}"),
    *("<<: {a: 1}", "--- ", "...", "%YAML 9.9", "\t- x", "'", '"', "|", ">-", "@", "`", "#", "a: b: c", "? [a]: b"),
    *("x: !!float '1'", "!!omap [a: 1]", "!!timestamp 2020-01-01", "1: 2", "null: null", "true: 1", "? {a: b}\n: c"),
]
NUL = ["\x00", "\x07", "\ufeff", "\x85", "\u2028", "\ud7ff", "\x7f"]


def mutated(number: int) -> tuple[str, list[str]]:
    """The n-th recipe: the text of its YAML and the overrides of its command line."""
    draw = random.Random(number)
    text = draw.choice(SHIPPED).read_text(encoding="utf-8")
    for _ in range(draw.randint(1, 3)):
        text = (_tree if draw.random() < 0.6 else _text)(text, draw)
    words = [_word(text, draw) for _ in range(draw.choice((0, 0, 0, 1, 2)))]
    return text, words


def _tree(text: str, draw: random.Random) -> str:
    """Change one place of the parsed recipe; a text that is no mapping, or that holds itself, is left to the other."""
    try:
        tree = yaml.load(text, Loader=SAFE)  # noqa: S506 (it is a safe one)
        places = list(_places(tree))
    except (yaml.YAMLError, ValueError, RecursionError):
        return _text(text, draw)
    if not places:
        return _text(text, draw)
    parent, key = draw.choice(places)
    change = draw.randrange(6)
    if change == 0:
        del parent[key]
    elif change == 1 and isinstance(parent, dict):
        parent[_misspelt(str(key), draw)] = parent.pop(key)
    elif change == 2:
        other, name = draw.choice(places)
        with contextlib.suppress(KeyError, IndexError):
            parent[key] = other[name]
    elif change == 3:
        parent[key] = [parent[key]]
    else:
        parent[key] = draw.choice(VALUES)
    try:
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    except (RecursionError, ValueError, yaml.YAMLError):
        return text


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from _places(value)


def _misspelt(key: str, draw: random.Random) -> str:
    at = draw.randrange(len(key) + 1)
    return draw.choice([key[:at] + key[at + 1 :], f"{key[:at]}x{key[at:]}", key.upper(), "", f"{key}.{key}", key[::-1]])


def _text(text: str, draw: random.Random) -> str:
    """Change the text: a line, a character, the end."""
    lines = text.split("\n")
    at = draw.randrange(len(lines))
    change = draw.randrange(8)
    if change == 0:
        del lines[at]
    elif change == 1:
        lines.insert(at, lines[at])
    elif change == 2:
        lines.insert(at, draw.choice(LINES))
    elif change == 3:
        lines[at] = " " * draw.randint(1, 5) + lines[at]
    elif change == 4:
        lines[at] = lines[at].replace(":", draw.choice(["", "::", " ", ": !!str", ": &a", ": *a"]), 1)
    elif change == 5:
        place = draw.randrange(len(text) + 1)
        return text[:place] + draw.choice([*NUL, *"{}[]:,&*!|>\"%@`#-'"]) + text[place:]
    elif change == 6:
        return text[: draw.randrange(len(text) + 1)]
    else:
        lines[at] = lines[at].partition(":")[0] + ": " + str(draw.choice(VALUES))
    return "\n".join(lines)


def _word(text: str, draw: random.Random) -> str:
    keys = [line.partition(":")[0].strip(" -{") for line in text.split("\n") if ":" in line and line[:1] != "#"]
    key = draw.choice(["seed", "name", "trainer.max_epochs", "trainer", "", ".", "a.0.b", "0", *keys])
    return f"{key}{draw.choice(['=', '=', '=', '+=', ' =', '==', ''])}{draw.choice(VALUES)}"


class Late(BaseException):
    """A case is at work for too long; no handler of ours catches it."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `Late` when the block computes for longer; the clock does not count, as others use the machine too."""

    def ring(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def parse_many(words: list[str]) -> int:
    """Parse recipes; words: the first number, how many, the file for the findings.

    The findings are `accepted` and `refused` (counts), and `faults`: one line each for whatever was neither.
    """
    file = Path("mutated.yaml")
    found: dict[str, Any] = {"accepted": 0, "refused": 0, "faults": []}
    for number in range(int(words[0]), int(words[0]) + int(words[1])):
        text, overrides = mutated(number)
        file.write_text(text, encoding="utf-8", errors="surrogatepass")

        def attempt(overrides: list[str] = overrides) -> str:
            try:
                parse.parse(file, overrides)
            except RecipeError as error:
                return f"refused: {error}"
            return "accepted"

        _judge(found, number, attempt, LONG_PARSE)
    Path(words[2]).write_text(json.dumps(found), encoding="utf-8")
    return 0


def check_many(words: list[str]) -> int:
    """Put recipes through `--check`; words: the first number, how many, the file for the findings."""
    found: dict[str, Any] = {"accepted": 0, "refused": 0, "unforeseen": [], "written": [], "faults": []}
    before = {path.name for path in Path().iterdir()} | {"mutated.yaml"}
    for number in range(int(words[0]), int(words[0]) + int(words[1])):
        text, overrides = mutated(number)
        Path("mutated.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")

        def attempt(number: int = number, overrides: list[str] = overrides) -> str:
            said, told = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
                code = main(["mutated.yaml", *overrides, "--check"])
            error = told.getvalue()
            if code == 0:
                return "accepted"
            if "Traceback" in error or code not in (1, 2) or not error.strip():
                return f"code {code}: {error[-200:]}"
            if error.startswith("stopped: "):
                found["unforeseen"].append(f"{number}: {error.strip()[:300]}")
            return f"refused: {error}"

        _judge(found, number, attempt, LONG_CHECK)
    found["written"] = sorted({path.name for path in Path().iterdir()} - before)
    Path(words[2]).write_text(json.dumps(found), encoding="utf-8")
    return 0


def _judge(found: dict[str, Any], number: int, attempt: Callable[[], str], seconds: float) -> None:
    try:
        with within(seconds):
            said = attempt()
    except Late:
        said = f"at work for {seconds:.0f} s"
    except BaseException as error:
        said = f"{type(error).__name__}: {error} at {traceback.extract_tb(error.__traceback__)[-1]}"
    if said == "accepted":
        found["accepted"] += 1
    elif said.startswith("refused: ") and len(said) > 12 and "Traceback" not in said:
        found["refused"] += 1
    else:
        found["faults"].append(f"{number}: {said[:300]}")
