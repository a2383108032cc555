"""One run in a folder: the lock, the front that holds it, and what a second run is told."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from recipes.errors import RunError
from recipes.running.folder import new_folder
from recipes.running.lock import LOCK, locked, refuse_live

ROOT = Path(__file__).parents[3]
TOY = "recipe: toy\n"
HOLD = """
import sys, time
from pathlib import Path
from recipes.running.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


def holder(folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def live(tmp_path):
    folder = tmp_path / "o"
    folder.mkdir()
    process = holder(folder)
    yield folder, process
    process.kill()
    process.communicate()


def test_a_live_folder_is_refused_with_its_process_and_host(live):
    folder, process = live
    told = json.loads((folder / LOCK).read_text())
    assert told["process"] == process.pid
    told = f"a run is at work.*process {process.pid} on {told['host']} since 2"
    with pytest.raises(RunError, match=told), locked(folder):
        pass
    with pytest.raises(RunError, match=f"process {process.pid}"):
        refuse_live(folder)
    assert (folder / LOCK).is_file()  # the refused one took nothing away
    with pytest.raises(RunError, match=f"process {process.pid}"):
        refuse_live(folder)


def test_a_dead_lock_is_free(live):
    folder, process = live
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / LOCK).is_file()
    with locked(folder):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()
    assert not (folder / LOCK).exists()
    (folder / LOCK).write_text('{"process": 1, "host": "elsewhere"')  # and so is half a file
    with ExitStack() as hold:
        assert new_folder("r", "n", out=folder, hold=hold) == folder


@pytest.mark.parametrize("words", [("--force",), ("--resume",), ()])
def test_a_live_run_is_neither_replaced_nor_resumed(front, tmp_path, words):
    assert front("r.yaml", "do=interrupt", "--out", "o", r=TOY).code == 130
    (tmp_path / "o/traceback.txt").write_text("mine")
    process = holder(tmp_path / "o")
    try:
        refused = front("r.yaml", "do=interrupt", "--out", "o", *words)
        assert refused.code == 1
        assert refused.out == ""
        assert refused.err.startswith(f"o: a run is at work in this folder, process {process.pid} on ")
        assert refused.err.count("\n") == 1
        assert (tmp_path / "o/traceback.txt").read_text() == "mine"
    finally:
        process.kill()
        process.communicate()
    assert front("r.yaml", "do=interrupt", "--out", "o", "--resume").code == 130  # and its death is enough
    assert front("r.yaml", "--out", "o", "--force").code == 0
    assert not (tmp_path / "o/traceback.txt").exists()
    assert not (tmp_path / "o" / LOCK).exists()


def _count(folder, turns, errors):
    done = 0
    while done < turns:
        try:
            with locked(folder):
                before = int((folder / "count").read_text())
                time.sleep(0.001)
                (folder / "count").write_text(str(before + 1))
                done += 1
        except RunError:
            time.sleep(0.001)
        except Exception as error:
            errors.put(repr(error))
            return


def test_no_two_hold_it_at_once(tmp_path):
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("spawn")
    errors = context.Queue()
    processes = [context.Process(target=_count, args=(tmp_path, 30, errors)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert errors.empty()
    assert (tmp_path / "count").read_text() == "90"
