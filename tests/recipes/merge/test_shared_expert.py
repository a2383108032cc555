"""The processes of a run see the same of an expert that another run is making in the cache."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from recipes.merge.experts import expert_damage
from recipes.merge.finetune import alone_with
from recipes.running.seals import stamp

ROOT = Path(__file__).parents[3]
RANK = """
import sys
from pathlib import Path

from recipes.merge import finetune
from recipes.merge.experts import expert_damage
from recipes.running.ranks import board

entry, out, together, rank = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "together", int(sys.argv[4])
finetune.TURN = 0.3  # several turns pass while the other run trains
if together:
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=2)
print("begun", flush=True)
with board(None if together else out) as told, finetune.alone_with(entry, told):
    print("trains" if expert_damage(entry) else "is there", flush=True)
    sys.stdin.readline()
"""


def finish(entry: Path) -> None:
    entry.mkdir()
    (entry / "expert.json").write_text(json.dumps({"task": "mood"}))
    stamp(entry)


@pytest.mark.parametrize("way", ["together", "board"])
@pytest.mark.parametrize("complete", [True, False])
def test_all_processes_wait_for_another_run_and_then_take_one_decision(tmp_path, way, complete):
    entry = tmp_path / "experts/mood-1"
    entry.parent.mkdir()
    with FileLock(entry.with_name(".mood-1.lock")):
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(entry), str(tmp_path / "out"), way, str(rank)],
                env=os.environ | {"PYTHONPATH": str(ROOT), "RANK": str(rank), "WORLD_SIZE": "2"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        assert [rank.stdout.readline() for rank in ranks] == ["begun\n"] * 2
        time.sleep(1.5)  # a process that does not wait decides here, and the expert is not there
        if complete:
            finish(entry)
    decided = [rank.stdout.readline() for rank in ranks]
    for rank in ranks:
        rank.communicate("\n", timeout=60)
    assert decided == (["is there\n"] * 2 if complete else ["trains\n"] * 2)


def test_of_two_runs_one_makes_the_expert_and_the_other_finds_it(tmp_path):
    entry = tmp_path / "experts/mood-1"
    with alone_with(entry):
        assert expert_damage(entry)
        finish(entry)
    with alone_with(entry):
        assert not expert_damage(entry)
