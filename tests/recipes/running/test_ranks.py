"""The processes of a launcher wait for rank 0 for as long as it lives, and no longer."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from recipes.errors import RecipeError
from recipes.running.ranks import READY, Board, board

ROOT = Path(__file__).parents[3]
ZERO = """
import sys
from pathlib import Path
from recipes.running.ranks import READY, board

with board(Path(sys.argv[1])) as told:
    print("begun", flush=True)
    sys.stdin.readline()
    told.wait("anything")  # rank 0 waits for nobody
    told.say("something")
    told.say(READY)
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def zero(tmp_path):
    """Rank 0 of a launcher, in its pre-flight until it is told to go on."""
    process = subprocess.Popen(
        [sys.executable, "-c", ZERO, str(tmp_path / "o")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "RANK": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    yield process
    process.kill()
    process.communicate()


def test_a_long_preflight_is_waited_for(zero, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o/command.txt").write_text("of an earlier run, which says nothing")
    waiting = threading.Thread(target=Board(tmp_path / "o").wait, args=(READY, 0.2), daemon=True)
    waiting.start()
    time.sleep(1.0)  # five times the patience for one that has not begun
    assert waiting.is_alive()
    zero.stdin.write("\n")
    zero.stdin.flush()
    assert zero.stdout.readline() == "ready\n"
    waiting.join(20)
    assert not waiting.is_alive()


def test_the_end_of_rank_zero_is_noticed(zero, tmp_path):
    said = []

    def wait():
        try:
            Board(tmp_path / "o").wait(READY)
        except RecipeError as error:
            said.append(str(error))

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    time.sleep(0.5)
    zero.kill()
    waiting.join(20)
    assert said == [f"--out {tmp_path / 'o'}: rank 0 ended before this process could go on; see its message"]


def test_a_rank_zero_that_never_begins_is_given_up(tmp_path):
    (tmp_path / ".o.rank0").write_text("ready\n")  # of one that was killed
    with pytest.raises(RecipeError, match=r"rank 0 has not begun within 0 seconds; see its message"):
        Board(tmp_path / "o").wait(READY, 0.2)


def test_a_run_of_one_process_leaves_nothing(tmp_path, monkeypatch):
    with board(tmp_path / "o") as told:
        assert told is None
        assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    with board(tmp_path / "o") as told:
        told.say(READY)
        assert (tmp_path / ".o.rank0").read_text() == "ready\n"
    assert list(tmp_path.iterdir()) == []
