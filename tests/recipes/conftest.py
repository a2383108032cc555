"""The front with the toy recipe in its table, run in this process or in one of its own."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from recipes.front import table
from recipes.run import main
from tests.recipes import tiny

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str
    cpu: float = 0.0


@pytest.fixture(scope="session")
def merged(tmp_path_factory) -> tiny.World:
    """A world with a finished merge of mood and topic in its folder `merge`; mood's file has two further columns."""
    world = tiny.World(tmp_path_factory.mktemp("merged"))
    told = tiny.sentences("mood", 150)
    lines = [f"{text},{label},{number},{text.split()[1]}" for number, (text, label) in enumerate(told)]
    (world.folder / "mood.csv").write_text("\n".join(["text,label,number,who", *lines]) + "\n", encoding="utf-8")
    recipe = world.recipe("merge", trainer={"max_epochs": 3}, baselines={"scales": [0.5], "probe": False})
    done = world.run(recipe, "merge")
    assert done.code == 0, done.err
    return world


@pytest.fixture
def front(tmp_path, monkeypatch, capsys) -> Callable[..., Outcome]:
    """Run the command here, in an empty folder; a dict of files is written first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(table.TABLE, "toy", table.Entry("tests.recipes.toy", "a recipe for tests"))

    def run(*words: object, **files: str) -> Outcome:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture
def command(tmp_path) -> Callable[..., Outcome]:
    """Run the command in a process of its own, in an empty folder."""

    def run(*words: object, flags: tuple[str, ...] = (), timeout: float = 120) -> Outcome:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *flags, "-m", "tests.recipes.toy_run", *map(str, words)],
            cwd=tmp_path,
            env=kept | {"PYTHONPATH": str(ROOT)},  # a user's interpreter compiles what it imports once
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Outcome(done.returncode, done.stdout, done.stderr, cpu)

    return run
