"""A run goes on without the readers of its output, and ends as it would have."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes import run

ROOT = Path(__file__).parents[3]


def unread(folder: Path, *words: str, stderr_too: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the front with a reader of its output that has left already."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, "-m", "tests.recipes.toy_run", *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=writer,
            stderr=writer if stderr_too else subprocess.PIPE,
            text=True,
            timeout=250,
            check=False,
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize("stderr_too", [False, True])
def test_a_run_goes_on(tmp_path, stderr_too):
    (tmp_path / "r.yaml").write_text("recipe: toy\n")
    done = unread(tmp_path, "r.yaml", "--out", "o", stderr_too=stderr_too)
    assert (done.returncode, done.stderr) == (0, None if stderr_too else "")
    assert (tmp_path / "o/result.json").is_file()


@pytest.mark.parametrize("words", [("path=none", "--check"), ("path=none", "--out", "o"), ("do=fail", "--out", "o")])
def test_a_refusal_and_a_failure_keep_their_exit_codes(tmp_path, words):
    (tmp_path / "r.yaml").write_text("recipe: toy\n")
    done = unread(tmp_path, "r.yaml", *words)
    assert done.returncode == (1 if "do=fail" in words else 2)
    assert ("path: none does not exist" if "path=none" in words else "it cannot be done") in done.stderr


def test_a_refusal_that_nobody_reads_keeps_its_exit_code(tmp_path):
    (tmp_path / "r.yaml").write_text("recipe: toy\nrnk: 3\n")
    assert unread(tmp_path, "r.yaml", "--out", "o", stderr_too=True).returncode == 2


def test_a_list_ends_when_nobody_reads_it(tmp_path):
    done = unread(tmp_path, "--list")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interruption_that_falls_into_a_finalizer_still_ends_the_run(monkeypatch, capsys):
    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def work(*_):
        Dying()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(0.01)
        return 0

    monkeypatch.setattr(run, "_dispatch", work)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of pytest ignore it
    try:
        assert run.main(["merge.yaml"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "interrupted\n"
